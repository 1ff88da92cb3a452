"""What a program sets for the whole process (defaults of torch, its modes) changes no number."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

import armor
from armor.config import PruneConfig
from armor.factorize.adam import factorize_adam
from armor.factorize.exact import factorize
from armor.factorize.problem import Problem
from armor.linear import ArmorLinear
from armor.methods import METHODS
from armor.sparse.factors import Factors
from armor.sparse.pattern import Pattern
from armor.text.windows import token_windows

State = Callable[[], AbstractContextManager[None]]


def default_dtype(dtype: torch.dtype) -> State:
    @contextmanager
    def state() -> Iterator[None]:
        before = torch.get_default_dtype()
        torch.set_default_dtype(dtype)
        try:
            yield
        finally:
            torch.set_default_dtype(before)

    return state


@contextmanager
def default_device() -> Iterator[None]:
    """A tensor made on it has no numbers, and does not go together with others."""
    torch.set_default_device("meta")
    try:
        yield
    finally:
        torch.set_default_device(None)


@contextmanager
def deterministic() -> Iterator[None]:
    """Torch refuses what is not, and fills what is not initialised with NaN."""
    torch.use_deterministic_algorithms(True)
    try:
        yield
    finally:
        torch.use_deterministic_algorithms(False)


STATES: dict[str, State] = {
    "float64": default_dtype(torch.float64),
    "bfloat16": default_dtype(torch.bfloat16),
    "float16": default_dtype(torch.float16),
    "device": default_device,
    "inference mode": lambda: torch.inference_mode(),
    "no grad": lambda: torch.no_grad(),
    "deterministic": deterministic,
}


@pytest.fixture(params=STATES)
def state(request: pytest.FixtureRequest) -> State:
    """Each state in turn, as a context."""
    return STATES[request.param]


def problem(full: bool = True) -> Problem:
    draw = torch.Generator().manual_seed(0)
    inputs = torch.randn(96, 24, generator=draw) @ torch.randn(24, 24, generator=draw)
    moment = inputs.T @ inputs / 96 + 0.01 * torch.eye(24)
    found = Problem(torch.randn(16, 24, generator=draw), moment)
    return found if full else Problem(found.target, found.mean_square)


def tensors(factors: Factors) -> list[Tensor]:
    parts = (factors.core, factors.mask, factors.left, factors.right)
    return [part for part in parts if part is not None]


def same(state: State, work: Callable[[], list[Tensor]]) -> None:
    expected = work()
    with state():
        found = work()
    assert [(each.dtype, each.device) for each in found] == [
        (each.dtype, each.device) for each in expected
    ]
    for one, other in zip(found, expected, strict=True):
        assert torch.equal(one, other)


@pytest.mark.parametrize("pattern", ["2:4", "4:8", "50%"])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
@pytest.mark.parametrize("batch", [1, 20, 200])
def test_a_layer(state: State, pattern: str, dtype: torch.dtype, batch: int) -> None:
    draw = torch.Generator().manual_seed(0)
    core = torch.randn(64, 64, generator=draw)
    kept = Pattern.parse(pattern)
    mask = METHODS["magnitude"].load()(Problem(core, torch.ones(64)), kept).mask
    blocks = [torch.randn(2, 32, 32, generator=draw) for _ in range(2)]
    x = torch.randn(batch, 64, generator=draw).to(dtype)
    factors = Factors(core * mask, mask, *blocks, kept).cast(dtype)

    def work() -> list[Tensor]:
        linear = ArmorLinear.from_factors(factors)
        return [linear(x).detach(), linear.dense_weight()]

    same(state, work)


@pytest.mark.parametrize("pattern", ["2:4", "4:8", "50%"])
@pytest.mark.parametrize("method", sorted(name for name in METHODS if name != "armor"))
def test_baselines(state: State, method: str, pattern: str) -> None:
    given, kept = problem(METHODS[method].moment == "full"), Pattern.parse(pattern)
    same(state, lambda: tensors(METHODS[method].load()(given, kept)))


@pytest.mark.parametrize("pattern", ["2:4", "4:8"])
@pytest.mark.parametrize("full", [True, False])
def test_the_exact_solver(state: State, full: bool, pattern: str) -> None:
    given, kept = problem(full), Pattern.parse(pattern)
    start = METHODS["nowag"].load()(given, kept)

    def work() -> list[Tensor]:
        factors, losses = factorize(given, 8, [start], 6, pattern=kept)
        return [*tensors(factors), torch.tensor(losses, dtype=torch.float64, device="cpu")]

    same(state, work)


def test_the_adam_solver(state: State) -> None:
    given = problem(full=False)
    start = METHODS["nowag"].load()(given, Pattern.parse("2:4"))
    same(state, lambda: tensors(factorize_adam(given, 8, [start], 20)[0]))


def test_windows(state: State, byte_tokenizer: Any) -> None:
    text = ["".join(f"line {number}\n" for number in range(300))]
    same(state, lambda: [token_windows(text, byte_tokenizer, 4, 16, 0)])


@pytest.mark.parametrize(
    "changes",
    [{}, {"method": "sparsegpt"}, {"size": 0.95}, {"solver": "adam", "objective": "diag"}],
    ids=["armor", "sparsegpt", "size", "adam"],
)
def test_a_run(state: State, tiny: Path, text: Path, tmp_path: Path, changes: Any) -> None:
    quick = {"samples": 8, "seq_len": 16, "iterations": 2}
    config = PruneConfig(**{"calibration": str(text), **quick, **changes})
    armor.prune(tiny, config, tmp_path / "plain", workers=1)
    with state():
        armor.prune(tiny, config, tmp_path / "out", workers=1)
        armor.export_dense(tmp_path / "out", tmp_path / "dense")
    armor.export_dense(tmp_path / "plain", tmp_path / "plain-dense")
    for one, other in (("out", "plain"), ("dense", "plain-dense")):
        file = "model.safetensors"
        assert (tmp_path / one / file).read_bytes() == (tmp_path / other / file).read_bytes()


@pytest.fixture(scope="session")
def text(tmp_path_factory: pytest.TempPathFactory) -> Path:
    file = tmp_path_factory.mktemp("texts") / "calibration.txt"
    file.write_text("\n".join(f"line {i}: the square of {i} is {i * i}." for i in range(100)))
    return file


@pytest.fixture(scope="session")
def tiny(
    make_llama: Callable[..., Any], byte_tokenizer: Any, tmp_path_factory: pytest.TempPathFactory
) -> Path:
    """One random block of width 32 over bytes."""
    folder = tmp_path_factory.mktemp("models") / "tiny"
    make_llama(num_hidden_layers=1, bos_token_id=None, eos_token_id=256).save_pretrained(folder)
    byte_tokenizer.save_pretrained(folder)
    return folder
