"""The jobs of engine.py in transformers with armor, in float32."""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file

import armor


def add_lora(model: Any, folder: Path) -> None:
    """``y + scale B A x`` for every linear of an adapter."""
    config = json.loads((folder / "adapter_config.json").read_text())
    scale = config["lora_alpha"] / config["r"]
    weights = load_file(folder / "adapter_model.safetensors")
    for name, module in model.named_modules():
        key = f"base_model.model.{name}.lora_{{}}.weight"
        if key.format("A") in weights:
            low, up = weights[key.format("A")], weights[key.format("B")]

            def added(_: Any, x: Any, y: Any, low: Any = low, up: Any = up) -> Any:
                return y + scale * (x[0] @ low.T @ up.T)

            module.register_forward_hook(added)


@torch.no_grad()
def run(job: dict[str, Any]) -> dict[str, Any]:
    """The result of a job, without `bytes`."""
    model = armor.load(job["folder"], dtype=torch.float32)
    if "lora" in job:
        add_lora(model, Path(job["lora"]))
    outputs = []
    for ids in job["prompts"]:
        start = torch.tensor([ids])
        generated = model.generate(
            input_ids=start,
            attention_mask=torch.ones_like(start),
            max_new_tokens=job["tokens"],
            min_new_tokens=job["tokens"],
            do_sample=False,
            output_logits=True,
            return_dict_in_generate=True,
        )
        tokens = generated.sequences[0, len(ids) :]
        scores = torch.cat(generated.logits).float().log_softmax(-1)
        logprobs = scores.gather(1, tokens[:, None])[:, 0]
        outputs.append({"tokens": tokens.tolist(), "logprobs": logprobs.tolist()})
    return {"outputs": outputs}


def main() -> None:
    results = [run(job) for job in json.loads(Path(sys.argv[1]).read_text())]
    Path(sys.argv[2]).write_text(json.dumps(results))


if __name__ == "__main__":
    main()
