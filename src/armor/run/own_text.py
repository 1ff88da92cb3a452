"""The windows of a run: of a text, or written by the dense model itself (``self``).

What a model writes is of its own domain, and there is as much of it as anybody wants (the idea is
that of "Self-calibration for Language Model Quantization and Pruning", arXiv 2410.17170).
"""

from __future__ import annotations

import logging
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from torch import Tensor

from armor.checkpoint.folder import full_disk
from armor.checkpoint.tensorfile import map_file, write_whole_file
from armor.errors import ArmorError
from armor.models.folder import ModelFolder
from armor.models.load import load_model, load_tokenizer
from armor.run.manifest import digest
from armor.simd.processor import has_bfloat16
from armor.text.own import OwnText
from armor.text.source import TextLike
from armor.text.sources import parse_source, read_text
from armor.text.windows import token_windows, tokenize

#: Windows that are written side by side, always so many: a smaller draw begins a larger one.
_BATCH = 32
#: In the folder of an unfinished run.
_FILE = "own-text.safetensors"


def draw_windows(
    calibration: TextLike,
    folder: ModelFolder,
    samples: int,
    seq_len: int,
    seed: int,
    bos: str,
    fewer: bool = False,
    keep: Path | None = None,
    device: str = "cpu",
) -> Tensor:
    """The windows of a text, see `token_windows`, or those that the model writes itself.

    Args:
        folder: of the dense model. bos: "always" or "never".
        keep: a folder for what the model has written, so that a run that goes on has it.
        device: where the model writes; the CPU if this machine, unlike others, has no GPU.

    Returns:
        Token ids, int64, (samples, seq_len).

    Raises:
        ArmorError: see `token_windows`; a model that cannot begin a text, no prompts, a full disk,
            a model too large to be on the GPU as a whole.
    """
    source = parse_source(calibration)
    tokenizer = load_tokenizer(folder)
    if not isinstance(source, OwnText):
        return token_windows(source, tokenizer, samples, seq_len, seed, bos, fewer)
    prompts = [] if source.prompts is None else _prompts(source.prompts, tokenizer, seq_len // 2)
    about = [samples, seq_len, seed, bos, prompts, _identity(folder)]
    if keep is not None and (found := _kept(keep / _FILE, digest(about))) is not None:
        return found
    where = torch.device(device if torch.cuda.is_available() else "cpu")
    try:
        written = _write(folder, tokenizer, samples, seq_len, seed, bos == "always", prompts, where)
    except torch.OutOfMemoryError as error:
        raise ArmorError(
            f"--calibration self: no room on {where} for the whole model and {_BATCH} windows of"
            f" {seq_len} tokens; give a text file, a shorter --seq-len, or --device cpu"
        ) from error
    windows = written.clone()  # an ordinary tensor, not one of inference mode
    if keep is not None:
        with full_disk(keep.parent):
            keep.mkdir(parents=True, exist_ok=True)
            write_whole_file(keep / _FILE, {"windows": windows}, {"about": digest(about)})
    return windows


@torch.inference_mode()
def _write(
    folder: ModelFolder,
    tokenizer: Any,
    samples: int,
    seq_len: int,
    seed: int,
    begins: bool,
    prompts: list[list[int]],
    device: torch.device,
) -> Tensor:
    """Have the model write `samples` windows, sampled at temperature 1.

    Args:
        begins: whether a window begins with BOS.
    """
    log = logging.getLogger("armor")
    first = _first_token(tokenizer)
    stored = folder.tensors.values()
    lowered = has_bfloat16() and all(one.dtype == "BF16" for one in stored)
    is_cpu = device.type == "cpu"
    dtype = None if not is_cpu else torch.bfloat16 if lowered else torch.float32
    model = load_model(folder, dtype, str(device))
    if is_cpu:  # where torch's fused attention takes several times as long for one row
        model.set_attn_implementation("eager")
    # A text that ends is followed by the next, as in training: nothing stops before the window is
    # full.
    ends = {"eos_token_id": None, "pad_token_id": first}
    plain = {"do_sample": True, "temperature": 1.0, "top_k": 0, "top_p": 1.0, "min_p": None}
    made: list[Tensor] = []
    while len(made) * _BATCH < samples:
        number = len(made) * _BATCH
        own = prompts[number % len(prompts) :] + prompts if prompts else []
        starts = [[first, *prompt] for prompt in (own * _BATCH)[:_BATCH]] or [[first]] * _BATCH
        longest = max(map(len, starts))
        pads = [longest - len(start) for start in starts]
        padded = [[first] * pad + start for pad, start in zip(pads, starts, strict=True)]
        kept = [[0] * pad + [1] * (longest - pad) for pad in pads]
        ids, mask = (torch.tensor(one, dtype=torch.int64, device=device) for one in (padded, kept))
        with torch.random.fork_rng([] if is_cpu else [device]):
            torch.manual_seed(seed * 1_000_003 + len(made))
            written = model.generate(
                ids,
                attention_mask=mask,
                max_new_tokens=seq_len,
                **ends,
                **plain,
            ).cpu()
        rows = [row[pad : pad + 1 + seq_len] for row, pad in zip(written, pads, strict=True)]
        made.append(torch.stack([row[:seq_len] if begins else row[1:] for row in rows]))
        log.info("the model has written %d of %d windows", number + _BATCH, samples)
    return torch.cat(made)[:samples]


def _first_token(tokenizer: Any) -> int:
    """What a text begins after: BOS, or the end of another."""
    for token in (tokenizer.bos_token_id, tokenizer.eos_token_id):
        if token is not None:
            return int(token)
    raise ArmorError(
        "--calibration self: the tokenizer has neither BOS nor EOS to begin a text with; give a"
        " text file"
    )


def _prompts(name: str, tokenizer: Any, most: int) -> list[list[int]]:
    """The lines of a text as token ids, each cut after `most`."""
    lines = [line for line in read_text(name).splitlines() if line.strip()]
    found = [tokenize(tokenizer, line)[:most].tolist() for line in lines]
    return [ids for ids in found if ids]


def _identity(folder: ModelFolder) -> list[list[Any]]:
    """Changes with the model's files."""
    paths = sorted({stored.path for stored in folder.tensors.values()})
    return [[path.name, path.stat().st_size, path.stat().st_mtime_ns] for path in paths]


def _kept(path: Path, about: str) -> Tensor | None:
    """The windows that an interrupted run has kept, if they are the same."""
    try:
        with safe_open(path, framework="pt") as file:
            if (file.metadata() or {}).get("about") != about:
                return None
        return map_file(path)["windows"].clone()
    except (OSError, SafetensorError, ArmorError):
        return None
