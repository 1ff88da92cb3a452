"""The README.md inside a checkpoint folder."""

from __future__ import annotations

import textwrap
from collections.abc import Mapping

from armor.checkpoint.format import LayerSpec
from armor.sparse.pattern import counted

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

{about}

- `armor inspect .` lists every layer: block, bytes, loss, certificate.
- `vllm serve .` serves it, where vLLM and armor-prune are installed.
- `armor export . --out dense` multiplies the weights out into a plain checkpoint for other servers.
- `armor_run.json` says how the model was made.
"""

_ABOUT = (
    "This is a language model with {layers} linear layers pruned to {patterns} by ARMOR (arXiv"
    " 2510.05528): each weight is stored as `A S B`, a packed sparse core S between two"
    " block-diagonal matrices A and B (a baseline method has S alone). All other tensors are those"
    " of the dense model, and so is its licence."
)


def readme(layers: Mapping[str, LayerSpec]) -> str:
    """The text for a checkpoint with these pruned layers."""
    found = [spec.pattern for spec in layers.values()]
    mixed = len(set(found)) > 1
    patterns = f"mixed patterns ({counted(found)})" if mixed else f"{found[0]} sparsity"
    about = _ABOUT.format(layers=len(layers), patterns=patterns)
    return _TEXT.format(about=textwrap.fill(about, 100, break_on_hyphens=False))
