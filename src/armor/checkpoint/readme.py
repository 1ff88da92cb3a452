"""The README.md inside a checkpoint folder."""

from __future__ import annotations

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

This is a language model with {layers} linear layers pruned to 2:4 sparsity by ARMOR (arXiv
2510.05528): each weight is stored as `A S B`, a packed 2:4 core S between two block-diagonal
matrices A and B (a baseline method has S alone). All other tensors are those of the dense model,
and so is its licence.

- `armor inspect .` lists every layer: block, bytes, loss, certificate.
- `armor export . --out dense` multiplies the weights out into a plain checkpoint for any server.
- `armor_run.json` says how the model was made.
"""


def readme(layers: int) -> str:
    """The text for a checkpoint with this many pruned layers."""
    return _TEXT.format(layers=layers)
