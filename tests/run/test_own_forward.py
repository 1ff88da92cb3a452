"""Models that do more than call their blocks in a row are refused before anything is solved."""

from __future__ import annotations

import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
import transformers
from torch import Tensor, nn
from transformers import AutoConfig, AutoModelForCausalLM, PretrainedConfig, PreTrainedModel
from transformers.modeling_outputs import CausalLMOutput
from transformers.models.auto.modeling_auto import MODEL_FOR_CAUSAL_LM_MAPPING_NAMES

import armor
from armor.checkpoint.folder import unfinished_folder
from armor.config import PruneConfig
from armor.errors import ArmorError
from armor.run.prune import Progress

pytestmark = pytest.mark.transformers_compat
Settings = Callable[..., PruneConfig]


class ToyConfig(PretrainedConfig):  # type: ignore[misc, no-any-unimported]
    """`trick`: what the model does besides calling its blocks."""

    model_type = "armor-toy"

    def __init__(self, trick: str = "none", **kwargs: Any) -> None:
        self.trick = trick
        self.vocab_size, self.hidden_size, self.max_position_embeddings = 300, 32, 64
        kwargs.setdefault("tie_word_embeddings", False)
        super().__init__(**kwargs)


class Notes:
    """An object of an unknown kind that blocks write to."""

    def __init__(self) -> None:
        self.seen: list[Tensor] = []


class ToyBlock(nn.Module):
    """One linear, and what `notes` has."""

    def __init__(self) -> None:
        super().__init__()
        self.linear = nn.Linear(32, 32)

    def forward(self, hidden_states: Tensor, notes: Notes | None = None) -> Tensor:
        output = hidden_states + torch.tanh(self.linear(hidden_states))
        if notes is not None:
            output = output + sum(notes.seen)
            notes.seen.append(output)
        return output


class ToyForCausalLM(PreTrainedModel):  # type: ignore[misc, no-any-unimported]
    """Three blocks."""

    config_class = ToyConfig

    def __init__(self, config: ToyConfig) -> None:
        super().__init__(config)
        self.embed = nn.Embedding(300, 32)
        self.layers = nn.ModuleList(ToyBlock() for _ in range(3))
        self.norm = nn.LayerNorm(32)
        self.head = nn.Linear(32, 300, bias=False)
        if config.trick == "buffer":
            self.register_buffer("scale", torch.tensor([3.25, -7.5]), persistent=False)
        self.post_init()

    def get_input_embeddings(self) -> nn.Module:
        return self.embed

    def get_output_embeddings(self) -> nn.Module:
        return self.head

    def forward(self, input_ids: Tensor, use_cache: bool = False) -> Any:
        trick = self.config.trick
        hidden = first = self.embed(input_ids)
        notes = Notes() if trick == "notes" else None
        for number, layer in enumerate(self.layers):
            hidden = layer(hidden, notes)
            if trick == "between" and number == 1:
                hidden = 1.1 * hidden
            if trick == "error" and hidden.equal(first):
                raise RuntimeError("no two\nare equal")
        if trick == "after":
            hidden = hidden + first
        return CausalLMOutput(logits=self.head(self.norm(hidden)))


@pytest.fixture(autouse=True)
def known(monkeypatch: pytest.MonkeyPatch) -> None:
    """The toy is an architecture like any other."""
    monkeypatch.setitem(MODEL_FOR_CAUSAL_LM_MAPPING_NAMES, "armor-toy", "ToyForCausalLM")
    AutoConfig.register("armor-toy", ToyConfig, exist_ok=True)
    AutoModelForCausalLM.register(ToyConfig, ToyForCausalLM, exist_ok=True)


@pytest.fixture
def save(tiny_model: Path, tmp_path: Path) -> Callable[[str], Path]:
    def make(trick: str) -> Path:
        folder = tmp_path / trick
        shutil.copytree(tiny_model, folder)
        torch.manual_seed(0)
        ToyForCausalLM(ToyConfig(trick)).eval().save_pretrained(folder)
        return folder

    return make


def test_a_model_that_calls_its_blocks_in_a_row_passes(
    save: Callable[[str], Path], settings: Settings, tmp_path: Path
) -> None:
    result = armor.prune(save("none"), settings(method="wanda"), tmp_path / "out", workers=1)
    assert len(result.records) == 3


@pytest.mark.parametrize(
    ("trick", "says"),
    [
        ("between", r"what layers\.2 is given differs .* relative error of 0\.091"),
        ("after", "what follows its blocks differs"),
        ("notes", r"layers\.1 differs"),
        ("error", "cannot be run on text, block by block: such a model is not supported"),
        ("buffer", "other values in its buffer scale"),
    ],
)
def test_others_are_refused(
    save: Callable[[str], Path], settings: Settings, tmp_path: Path, trick: str, says: str
) -> None:
    if trick == "buffer" and transformers.__version__ < "5":
        pytest.skip("transformers 4 leaves buffers as they are built")
    started: list[str] = []
    folder, out = save(trick), tmp_path / "out"
    with pytest.raises(ArmorError, match=says) as error:
        armor.prune(
            folder,
            settings(method="wanda"),
            out,
            workers=1,
            progress=Progress(started=started.append),
        )
    assert "\n" not in str(error.value)
    assert not started
    assert not out.exists()
    assert not unfinished_folder(out).exists()
