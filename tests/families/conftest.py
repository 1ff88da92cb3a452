"""The families under test, and a tokenizer and calibration text for tiny models of any family."""

from __future__ import annotations

import string
from collections import Counter
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pytest
import torch
import transformers
from tokenizers import Regex, Tokenizer, models, pre_tokenizers
from transformers import PreTrainedTokenizerFast

VOCABULARY = 128
CONTEXT = 64
_SIZES = {
    "vocab_size": VOCABULARY,
    "hidden_size": 32,
    "intermediate_size": 64,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "max_position_embeddings": CONTEXT,
    "initializer_range": 0.15,  # logits far apart: greedy generation has no ties
    "bos_token_id": None,
    "eos_token_id": None,
    "pad_token_id": None,
}


@dataclass(frozen=True)
class Family:
    """A family of models.

    Attributes:
        config: name of its configuration class; the model's is the same with ForCausalLM.
        sizes: what differs from `_SIZES`.
        linears: how many layers the tiny model has pruned.
        note: for the table in docs/models.md.
    """

    config: str
    linears: int
    sizes: dict[str, Any] = field(default_factory=dict)
    note: str = ""

    @property
    def exists(self) -> bool:
        """Whether the installed transformers knows it."""
        return hasattr(transformers, self.config)

    def model(self, dtype: torch.dtype = torch.float32, **changes: Any) -> Any:
        """A tiny random model, its biases and norms random too."""
        torch.manual_seed(0)
        config = getattr(transformers, self.config)(**{**_SIZES, **self.sizes, **changes})
        kind = self.config.replace("TextConfig", "Config").replace("Config", "ForCausalLM")
        model = getattr(transformers, kind)(config)
        generator = torch.Generator().manual_seed(1)
        for name, parameter in model.named_parameters():
            if parameter.ndim == 1 or name.endswith("_bias"):
                noise = torch.randn(parameter.shape, generator=generator)
                parameter.data += 0.1 * noise
        return model.to(dtype).eval()


_MOE = {"num_experts": 4, "num_experts_per_tok": 2}

FAMILIES = {
    "Llama 1 and 2": Family("LlamaConfig", 14, {"num_key_value_heads": 4}),
    "Llama 3": Family("LlamaConfig", 14, {"tie_word_embeddings": True, "rope_theta": 500000.0}),
    "Mistral": Family("MistralConfig", 14, {"sliding_window": 16}),
    "Qwen2, Qwen2.5": Family("Qwen2Config", 14, note="q, k, v with biases"),
    "Qwen3": Family("Qwen3Config", 14, {"head_dim": 16}, "q and k are normalised"),
    "Gemma 2": Family("Gemma2Config", 14, {"head_dim": 8, "sliding_window": 16}, "tied"),
    "Gemma 3 (text)": Family(
        "Gemma3TextConfig",
        14,
        {
            "head_dim": 8,
            "sliding_window": 16,
            "layer_types": ["sliding_attention", "full_attention"],
        },
        "tied, a window in one block only",
    ),
    "Phi-3": Family("Phi3Config", 14, note="fused qkv and gate_up, in parts"),
    "OLMo-2": Family("Olmo2Config", 14),
    "Granite": Family("GraniteConfig", 14),
    "SmolLM3": Family("SmolLM3Config", 14, note="no rotary positions in some blocks"),
    "GPT-NeoX": Family(
        "GPTNeoXConfig",
        12,
        {"num_key_value_heads": 4},
        "attention beside the MLP, biases, fused qkv in parts",
    ),
    "Mixtral": Family("MixtralConfig", 32, {"num_local_experts": 4, "num_experts_per_tok": 2}),
    "Qwen3-MoE": Family("Qwen3MoeConfig", 32, {**_MOE, "moe_intermediate_size": 48, "head_dim": 8}),
    "OLMoE": Family("OlmoeConfig", 32, {**_MOE}),
    "gpt-oss": Family(
        "GptOssConfig",
        32,
        {"num_local_experts": 4, "num_experts_per_tok": 2, "head_dim": 8, "sliding_window": 16},
        "experts transposed, with biases, gate and up row by row",
    ),
    "Llama 4 (text)": Family(
        "Llama4TextConfig",
        38,
        {
            "num_local_experts": 4,
            "head_dim": 8,
            "intermediate_size_mlp": 48,
            "attention_chunk_size": 16,
        },
        "experts transposed, their inputs times scores",
    ),
}


@pytest.fixture(scope="session")
def tokenizer() -> PreTrainedTokenizerFast:
    """One id a character."""
    vocabulary = {character: index for index, character in enumerate(["?", *string.printable])}
    tokenizer = Tokenizer(models.WordLevel(vocabulary, unk_token="?"))
    tokenizer.pre_tokenizer = pre_tokenizers.Split(Regex("[\\s\\S]"), "isolated")
    return PreTrainedTokenizerFast(tokenizer_object=tokenizer)


@pytest.fixture(scope="session")
def text(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """About 9,000 characters."""
    file = tmp_path_factory.mktemp("texts") / "calibration.txt"
    file.write_text("\n".join(f"line {i}: the square of {i} is {i * i}." for i in range(300)))
    return file


@pytest.fixture(params=FAMILIES)
def family(request: pytest.FixtureRequest) -> Family:
    """Every family in turn, or those that the test names."""
    request.node.user_properties.append(("family", request.param))
    return FAMILIES[request.param]


# The table in docs/models.md: pytest tests/families --families-table docs/models.md

BEGIN, END = "<!-- families -->", "<!-- /families -->"
_HEAD = ("family", "what is special", "layers pruned", "transformers 4", "transformers 5")
_RAN = {
    "test_families": "whole way",
    "test_layout": "parts",
    "test_experts": "experts",
    "test_shapes": "shapes",
}
_passed: dict[str, set[str]] = {}
_outcomes: dict[str, tuple[str, str]] = {}  # by model type: the class, and what became of it


def pytest_addoption(parser: pytest.Parser) -> None:
    parser.addoption("--families-table", type=Path, help="write what passed into this page")
    parser.addoption(
        "--every-architecture", action="store_true", help="every causal type, not only a few"
    )
    parser.addoption(
        "--architectures-table", type=Path, help="write what became of each type into this page"
    )


def pytest_runtest_logreport(report: pytest.TestReport) -> None:
    for name, value in report.user_properties:
        if name == "architecture":
            _outcomes[value[0]] = value[1:]
    family = dict(report.user_properties).get("family")
    ran = _RAN.get(report.nodeid.partition("::")[0].rpartition("/")[2].removesuffix(".py"))
    if report.when == "call" and isinstance(family, str) and ran:
        _passed.setdefault(family, set()).add(ran if report.passed else f"{ran} FAILED")


def pytest_sessionfinish(session: pytest.Session) -> None:
    if hasattr(session.config, "workerinput"):
        return
    if session.config.getoption("--architectures-table", None):
        write_architectures(session.config.getoption("--architectures-table"))
    page = session.config.getoption("--families-table", None)
    if page is None:
        return
    text = page.read_text()
    before, rest = text.split(BEGIN)
    old, after = rest.split(END)
    known = {cells[0]: cells for cells in table_rows(old)}
    column = 3 if transformers.__version__ < "5" else 4
    lines = ["| " + " | ".join(_HEAD) + " |", "|---|---|---|---|---|"]
    for name, family in FAMILIES.items():
        cells = [name, family.note, str(family.linears), *known.get(name, [""] * 5)[3:]]
        cells[column] = f"{transformers.__version__}: {', '.join(sorted(_passed.get(name, ())))}"
        lines.append("| " + " | ".join(cells) + " |")
    page.write_text(before + BEGIN + "\n" + "\n".join(lines) + "\n" + END + after)


def write_architectures(page: Path) -> None:
    """Write what became of the types that ran into the table of all, with counts."""
    before, rest = page.read_text().split("<!-- architectures -->")
    old, after = rest.split("<!-- /architectures -->")
    rows = {kind: tuple(about) for kind, *about in table_rows(old)} | _outcomes
    counts = Counter(outcome.partition(":")[0] for _, outcome in rows.values())
    lines = [
        f"Of the {len(rows)} causal types of transformers {transformers.__version__},"
        f" {counts['works']} work, {counts['refused']} are refused with the line below, and of"
        f" {counts['not tried']} no tiny random model could be made.",
        "",
        "| model type | class | what becomes of it |",
        "|---|---|---|",
        *(f"| {kind} | {' | '.join(about)} |" for kind, about in sorted(rows.items())),
    ]
    table = "\n".join(lines)
    page.write_text(f"{before}<!-- architectures -->\n{table}\n<!-- /architectures -->{after}")


def table_rows(text: str) -> list[list[str]]:
    """The cells of a Markdown table, without its head."""
    lines = [line for line in text.splitlines() if line.startswith("|")][2:]
    return [[cell.strip() for cell in line.strip("|").split("|")] for line in lines]


@pytest.fixture(scope="session")
def table() -> list[list[str]]:
    """The rows of the table in docs/models.md."""
    page = (Path(__file__).parents[2] / "docs" / "models.md").read_text()
    return table_rows(page.split(BEGIN)[1].split(END)[0])


@pytest.fixture(scope="session")
def families() -> dict[str, Family]:
    """All families by name."""
    return FAMILIES
