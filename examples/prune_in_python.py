"""Prune a model from Python: settings for single layers, progress, a look inside, generation.

Works offline on the small Llama that comes with armor:

    python examples/prune_in_python.py
"""

from __future__ import annotations

import tempfile
from pathlib import Path
from typing import Any

from transformers import AutoTokenizer

import armor
from armor.checkpoint.records import LayerRecord
from armor.demo.text import calibration_text, model_dir
from armor.run.prune import Progress


def main(out: Path, **changes: Any) -> None:
    """Prune into the new folder `out`; `changes` are settings of `PruneConfig`."""
    settings: dict[str, Any] = {
        "calibration": (calibration_text(),),  # or a file, or "hf:NAME"
        "block_size": 16,
        "seq_len": 256,
        # Single layers have settings of their own; a later pattern of names wins.
        "overrides": {"*.v_proj": {"skip": True}, "*.down_proj": {"block": 32}},
    }
    config = armor.PruneConfig(**{**settings, **changes})

    def finished(name: str, record: LayerRecord) -> None:
        print(f"{name}: loss {record.loss:.4f}, NoWag-P's {record.nowag_loss:.4f}")

    # Interrupted? The same call continues. `device="cuda"`, `workers=4` or `engine="ray"` go here.
    armor.prune(model_dir(), config, out, progress=Progress(finished=finished))

    found = armor.inspect(out)
    totals = found["totals"]
    print(f"{totals['layers']} layers pruned to {totals['ratio']:.2f} of their bytes,")
    print(f"{totals['certified']} of them certified; dense: {', '.join(found['dense_layers'])}")

    model = armor.load(out)
    tokenizer = AutoTokenizer.from_pretrained(out)
    inputs = tokenizer("The statement", return_tensors="pt")
    tokens = model.generate(
        inputs.input_ids, attention_mask=inputs.attention_mask, max_new_tokens=20, do_sample=False
    )
    print(tokenizer.decode(tokens[0], skip_special_tokens=True))


if __name__ == "__main__":
    with tempfile.TemporaryDirectory() as folder:
        main(Path(folder) / "pruned")
