"""KL divergence and top-token agreement against a plain computation, the record, the refusals."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import pytest
import torch
import typer
from transformers import AutoModelForCausalLM, LlamaConfig, LlamaForCausalLM
from typer.testing import CliRunner

from armor.cli import evaluate as command
from armor.errors import ArmorError
from armor.evaluation import divergence, measure
from armor.evaluation.perplexity import evaluate
from armor.models.load import load_model, load_tokenizer

WINDOW = 32


@pytest.fixture
def text(tmp_path: Path) -> Path:
    path = tmp_path / "text.txt"
    path.write_text("Some words, and then some other ones. " * 9)
    return path


@pytest.fixture(scope="module")
def other(tiny_model: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """`tiny_model` with every weight moved a little."""
    folder = tmp_path_factory.mktemp("models") / "other"
    shutil.copytree(tiny_model, folder)
    model = AutoModelForCausalLM.from_pretrained(tiny_model)
    torch.manual_seed(1)
    with torch.no_grad():
        for weight in model.parameters():
            weight += 0.05 * torch.randn_like(weight)
    model.save_pretrained(folder)
    return folder


def run(*arguments: object) -> tuple[BaseException | None, str]:
    """`armor eval` in windows of `WINDOW` on the CPU: what it raised, and the words it printed."""
    app = typer.Typer()
    command.register(app)
    options = ["--seq-len", WINDOW, "--device", "cpu"]
    done = CliRunner().invoke(app, [str(some) for some in (*arguments, *options)])
    return done.exception, " ".join(done.stdout.split())


def plain(model: Path, reference: Path, text: Path) -> tuple[list[float], float]:
    """Mean divergence of each window, and the share of equal top tokens, in float64."""
    ids = load_tokenizer(str(model))(text.read_text(), add_special_tokens=False)["input_ids"]
    networks = [
        AutoModelForCausalLM.from_pretrained(f, dtype=torch.float32) for f in (model, reference)
    ]
    means, same = [], []
    for start in range(0, len(ids) - WINDOW + 1, WINDOW):
        window = torch.tensor([ids[start : start + WINDOW]])
        with torch.no_grad():
            ours, theirs = (network(window).logits[0, :-1].double() for network in networks)
        q, p = ours.softmax(-1), theirs.softmax(-1)
        means.append(float((p * (p / q).log()).sum(-1).mean()))
        same += (ours.argmax(-1) == theirs.argmax(-1)).tolist()
    return means, sum(same) / len(same)


@pytest.mark.transformers_compat
@pytest.mark.parametrize("chunk", [divergence._CHUNK, 257 * 7])
def test_equals_a_plain_computation(
    tiny_model: Path, other: Path, text: Path, chunk: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(divergence, "_CHUNK", chunk)
    model, reference = (load_model(str(f), torch.float32).train() for f in (other, tiny_model))
    tokenizer = load_tokenizer(str(other))
    arguments = {"seq_len": WINDOW, "batch_size": 3}
    result = evaluate(model, tokenizer, text, reference=reference, **arguments)
    assert model.training
    assert reference.training
    means, same = plain(other, tiny_model, text)
    found = result.divergence
    assert found is not None
    kl = sum(means) / len(means)
    assert found.kl == pytest.approx(kl, rel=1e-9)
    assert found.same_top1 == same
    assert 0.1 < same < 0.99
    half = 1.96 * float(torch.tensor(means, dtype=torch.float64).std()) / len(means) ** 0.5
    assert found.kl_ci95 == pytest.approx((kl - half, kl + half), rel=1e-9)
    alone = evaluate(model, tokenizer, text, **arguments)
    assert result.to_dict() == alone.to_dict() | found.to_dict()


def test_itself_and_the_record(
    tiny_model: Path,
    other: Path,
    text: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    file = tmp_path / "eval.json"
    arguments = [tiny_model, "--ppl", text, "--json", file]
    error, _ = run(*arguments)
    assert error is None
    alone = json.loads(file.read_text())["perplexity"][0]
    assert not {"kl", "reference"} & alone.keys()
    error, shown = run(*arguments, "--reference", tiny_model)
    assert error is None
    assert "same top token" in shown
    assert "0.00000 0.00000 100.00%" in shown
    assert "known from" not in shown
    first = json.loads(file.read_text())["perplexity"][0]
    assert (first["kl"], first["kl_ci95"], first["same_top1"]) == (0.0, [0.0, 0.0], 1.0)
    assert first["reference"] == str(tiny_model)
    assert first["perplexity"] == alone["perplexity"]
    error, shown = run(*arguments, "--reference", other)  # another one is measured anew
    assert error is None
    assert "known from" not in shown
    second = json.loads(file.read_text())["perplexity"][0]
    assert second["kl"] > 0.01
    assert f"{second['kl']:.5f}" in shown
    monkeypatch.setattr(measure, "load_model", None)
    for again in ([], ["--reference", tiny_model], ["--reference", other]):
        error, shown = run(*arguments, *again)
        assert error is None  # not even loaded
        assert "1 known from" in shown


def test_tokens_that_a_model_excludes() -> None:
    logits = torch.tensor([[0.0, 0.0, 0.0], [1.0, 0.0, -1.0]])
    without = logits.clone()
    without[:, 2] = -torch.inf
    kl, same = divergence.window_divergence(logits, without).tolist()
    expected = -float(logits.double().softmax(-1)[:, :2].sum(-1).log().sum())
    assert kl == pytest.approx(expected)
    assert same == 2
    sums = torch.stack([divergence.window_divergence(without, logits)] * 2)
    found = divergence.summarise(sums, 2)
    assert (found.kl, found.kl_ci95, found.same_top1) == (torch.inf, None, 1.0)


def test_refusals(tiny_model: Path, text: Path, tmp_path: Path) -> None:
    def refused(*arguments: object) -> str:
        error, _ = run(tiny_model, *arguments)
        assert isinstance(error, ArmorError)
        assert "\n" not in str(error)
        return str(error)

    on_text = ("--ppl", text, "--reference")
    assert "no such folder" in refused(*on_text, tmp_path / "no")
    (tmp_path / ".half.run").mkdir()
    assert "half is not finished" in refused(*on_text, tmp_path / "half")
    assert "give one: --ppl FILE" in refused("--tasks", "quick", "--reference", tiny_model)
    renamed = tmp_path / "renamed"  # one token bears another name
    shutil.copytree(tiny_model, renamed)
    tokenizer = renamed / "tokenizer.json"
    tokenizer.write_text(tokenizer.read_text().replace("<end>", "<stop>"))
    assert "renamed has another vocabulary than" in refused(*on_text, renamed)
    broken = tmp_path / "broken"
    shutil.copytree(tiny_model, broken)
    model = LlamaForCausalLM.from_pretrained(broken)
    model.model.norm.weight.data[0] = torch.nan
    model.save_pretrained(broken)
    assert "the reference's logits on" in refused(*on_text, broken)


def test_another_number_of_tokens(tiny_model: Path, text: Path) -> None:
    config = LlamaConfig.from_pretrained(tiny_model)
    config.vocab_size += 7
    model, tokenizer = load_model(str(tiny_model), torch.float32), load_tokenizer(str(tiny_model))
    with pytest.raises(ArmorError, match="knows 257 tokens and the reference 264"):
        evaluate(model, tokenizer, text, seq_len=WINDOW, reference=LlamaForCausalLM(config))
