"""The README.md inside a checkpoint folder."""

from __future__ import annotations

from collections.abc import Mapping

from armor.checkpoint.format import LayerSpec

_TEXT = """\
**Run `import armor` before `from_pretrained`: without it transformers loads RANDOM weights.**

```python
import armor  # pip install armor-prune; teaches transformers this format
from transformers import AutoModelForCausalLM, AutoTokenizer

folder = "."  # this folder
model = AutoModelForCausalLM.from_pretrained(folder)
tokenizer = AutoTokenizer.from_pretrained(folder)
inputs = tokenizer("Once upon a time", return_tensors="pt")
print(tokenizer.decode(model.generate(**inputs, max_new_tokens=50)[0]))
```

This is a language model with {layers} linear layers pruned to {pattern} sparsity by ARMOR (arXiv
2510.05528): each weight is stored as `A S B`, a packed {pattern} core S between two block-diagonal
matrices A and B (a baseline method has S alone). All other tensors are those of the dense model,
and so is its licence.

- `armor inspect .` lists every layer: block, bytes, loss, certificate.
- `armor export . --out dense` multiplies the weights out into a plain checkpoint for any server.
- `armor_run.json` says how the model was made.
"""


def readme(layers: Mapping[str, LayerSpec]) -> str:
    """The text for a checkpoint with these pruned layers."""
    patterns = dict.fromkeys(str(spec.pattern) for spec in layers.values())
    return _TEXT.format(layers=len(layers), pattern=" and ".join(patterns))
