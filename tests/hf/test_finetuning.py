"""An armor model in the hands of the libraries that people train with: peft and Trainer."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from transformers import AutoModelForCausalLM, Trainer, TrainingArguments

import armor
from armor.config import PruneConfig
from armor.errors import ArmorError
from armor.linear import armor_layers


@pytest.fixture(scope="module")
def pruned(tiny_model: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("pruned")
    text = folder / "text.txt"
    text.write_text("\n".join(f"line {i}: the square of {i} is {i * i}." for i in range(200)))
    config = PruneConfig(calibration=str(text), samples=8, seq_len=32, iterations=2, block_size=8)
    armor.prune(tiny_model, config, folder / "tiny")
    return folder / "tiny"


def load(folder: Path) -> Any:
    return AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32)


def windows(model: nn.Module) -> list[dict[str, Tensor]]:
    draw = torch.Generator().manual_seed(0)
    ids = torch.randint(3, 40, (16, 24), generator=draw)
    return [{"input_ids": one, "labels": one} for one in ids]


def train(model: Any, out: Path, steps: int, rate: float, **more: Any) -> list[float]:
    """The losses of ``Trainer``."""
    arguments = TrainingArguments(
        output_dir=str(out),
        max_steps=steps,
        per_device_train_batch_size=4,
        learning_rate=rate,
        logging_steps=1,
        save_strategy="no",
        report_to=[],
        disable_tqdm=True,
        use_cpu=True,
        seed=0,
        **more,
    )
    trainer = Trainer(model=model, args=arguments, train_dataset=windows(model))
    trainer.train()
    return [entry["loss"] for entry in trainer.state.log_history if "loss" in entry]


@pytest.mark.parametrize("bf16", [False, True])
def test_trainer_on_the_factors_holds_the_masks(pruned: Path, tmp_path: Path, bf16: bool) -> None:
    model = load(pruned)
    armor.unfreeze(model)
    before = {name: layer.packed().to_factors() for name, layer in armor_layers(model)}
    before = {name: (own.mask, own.core.clone()) for name, own in before.items()}
    losses = train(model, tmp_path / "run", 20, 1e-2, bf16=bf16)
    assert losses[-1] < losses[0] - 0.5
    for name, layer in armor_layers(model):
        mask, core = before[name]
        own = layer.packed().to_factors()
        assert torch.equal(own.mask, mask)
        assert not own.core[~mask].any()
        assert not torch.equal(own.core, core)
    model.save_pretrained(tmp_path / "saved")
    again = dict(load(tmp_path / "saved").named_parameters())
    for name, parameter in model.named_parameters():
        assert torch.equal(again[name], parameter), name


# Versions of peft read what this version of transformers calls by another name.
@pytest.mark.filterwarnings("ignore:.*is_gradient_checkpointing:FutureWarning")
def test_lora_trains_saves_and_loads(pruned: Path, tmp_path: Path) -> None:
    peft = pytest.importorskip("peft")
    model = load(pruned)
    packed = {name: p.clone() for name, p in model.named_parameters()}

    def config() -> Any:
        targets = ["q_proj", "v_proj", "down_proj"]
        return armor.lora(peft.LoraConfig(r=4, target_modules=targets, task_type="CAUSAL_LM"))

    adapted = peft.get_peft_model(model, config())
    losses = train(adapted, tmp_path / "run", 20, 3e-2)
    assert losses[-1] < losses[0] - 0.3
    for name, parameter in load(pruned).named_parameters():
        assert torch.equal(parameter, packed[name])  # and none of them moved:
    for name, parameter in adapted.named_parameters():
        if "lora_" not in name:
            plain = name.removeprefix("base_model.model.").replace(".base_layer", "")
            assert torch.equal(parameter, packed[plain]), name
    adapted.save_pretrained(tmp_path / "adapter")
    again = peft.PeftModel.from_pretrained(load(pruned), tmp_path / "adapter", config=config())
    ids = windows(model)[0]["input_ids"].unsqueeze(0)
    adapted.eval()
    with torch.no_grad():
        torch.testing.assert_close(again(ids).logits, adapted(ids).logits)
    with pytest.raises(ArmorError, match="cannot be merged"):
        again.merge_and_unload()


def test_lora_that_would_change_the_weights_is_refused() -> None:
    peft = pytest.importorskip("peft")
    with pytest.raises(ArmorError, match="pissa"):
        armor.lora(peft.LoraConfig(init_lora_weights="pissa"))


@pytest.mark.filterwarnings("ignore:.*is_gradient_checkpointing:FutureWarning")
def test_lora_on_all_linears(pruned: Path) -> None:
    peft = pytest.importorskip("peft")
    model = load(pruned)
    layers = {path for path, _ in armor_layers(model)}
    config = peft.LoraConfig(r=4, target_modules="all-linear", task_type="CAUSAL_LM")
    with pytest.raises(ArmorError, match="needs the model"):
        armor.lora(config)
    adapted = peft.get_peft_model(model, armor.lora(config, model))
    prefix = "base_model.model."
    found = {name.removeprefix(prefix) for name, _ in adapted.named_parameters()}
    assert layers == {n.partition(".lora_A")[0] for n in found if ".lora_A" in n}
