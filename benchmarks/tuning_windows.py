"""Tuning on what a window of blocks puts out: which window is the best?

    python benchmarks/tuning_windows.py --model MODEL --pruned DIR --calibration TEXT --text OTHER

Goes through a pruned model from the first block to the last: the attention half and the MLP half of
each block, each block, or two or four blocks together are trained on what the dense model has
there, given what the tuned ones before put out, as ``armor tune --mode block`` does for one block.
Loss, optimiser and rounding are those of that command; here both whole models are in memory, so
this is for small ones. Every window takes the same number of steps, so every block does. Writes
benchmarks/results/tuning_windows-MODEL.{json,md}.
"""

from __future__ import annotations

import argparse
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from common import add_common, use_threads, write_result
from real_model import CPU
from torch import Tensor
from transformers import AutoTokenizer

from armor.checkpoint.jsonfile import write_text
from armor.checkpoint.reader import Checkpoint
from armor.models.folder import ModelFolder
from armor.models.load import load_model
from armor.text.sources import parse_source
from armor.text.windows import token_windows
from armor.tuning.config import HELD_OUT, TuneConfig
from armor.tuning.divergence import divergence
from armor.tuning.steps import Steps, order
from armor.tuning.student import Student

#: Windows by name: blocks of each, 0 for halves.
WINDOWS = {"half a block": 0, "one block": 1, "two blocks": 2, "four blocks": 4}
TOGETHER = 4
"""Windows of text of a step."""


def ends(count: int, length: int) -> list[tuple[list[str], str]]:
    """What is trained together: prefixes of names, and the module whose input is judged.

    Args:
        count: of blocks. length: of a window in blocks, 0 for halves.
    """
    after = [f"model.layers.{index}" for index in range(1, count)] + ["model.norm"]
    if length == 0:
        found = []
        for index in range(count):
            block, middle = f"model.layers.{index}.", "post_attention_layernorm"
            first = [block + "self_attn.", block + "input_layernorm."]
            found.append((first, block + middle))
            found.append(([block + "mlp.", block + middle], after[index]))
        return found
    groups = [range(i, min(i + length, count)) for i in range(0, count, length)]
    return [([f"model.layers.{i}." for i in group], after[group[-1]]) for group in groups]


class Stopped(Exception):
    """The forward pass has come to where it is judged."""


def state_at(model: Any, place: str, windows: Tensor) -> Tensor:
    """What the module at `place` is given, (windows, seq, width)."""
    found: list[Tensor] = []

    def take(_: Any, given: Any) -> None:
        found.append(given[0])
        raise Stopped

    hook = model.get_submodule(place).register_forward_pre_hook(take)
    try:
        model(input_ids=windows, use_cache=False)
    except Stopped:
        pass
    finally:
        hook.remove()
    return found[0]


def error(own: Tensor, wanted: Tensor) -> Tensor:
    """The mean over tokens of their squared error over their squared size."""
    return ((own - wanted).square().sum(-1) / wanted.square().sum(-1)).mean()


def train(
    student: Student,
    dense: Any,
    group: tuple[list[str], str],
    windows: Tensor,
    steps: int,
    size: float,
) -> None:
    """Train a window of blocks; it stays as it was where that lowers nothing held out."""
    prefixes, place = group
    held_out, text = windows[-HELD_OUT:], windows[:-HELD_OUT]
    own = {n: p for n, p in student.trained.items() if n.startswith(tuple(prefixes))}
    others = [p for n, p in student.trained.items() if n not in own]

    @torch.no_grad()
    def judged() -> float:
        with student.rounded():
            return float(error(state_at(student.model, place, held_out), wanted))

    with torch.no_grad():
        wanted = state_at(dense, place, held_out)
    best, least = {n: p.detach().clone() for n, p in own.items()}, judged()
    optimiser = Steps(own, size, steps)
    for number, chosen in enumerate(order(len(text), TOGETHER, steps, 0)):
        student.merge()
        with torch.no_grad():
            target = state_at(dense, place, text[chosen])
        error(state_at(student.model, place, text[chosen]), target).backward()
        student.pull_back()
        for parameter in others:
            parameter.grad = None
        optimiser.take(number)
        if (number + 1) % max(1, steps // 3) == 0 and (now := judged()) < least:
            best, least = {n: p.detach().clone() for n, p in own.items()}, now
    with torch.no_grad():
        for name, parameter in own.items():
            parameter.copy_(best[name])


@torch.no_grad()
def far(student: Student, dense: Any, windows: Tensor) -> float:
    """KL from the dense model's predictions, in nats a token, of what would be stored."""
    total = 0.0
    with student.rounded():
        for part in windows.split(4):
            own, other = (
                model(input_ids=part, use_cache=False).logits.flatten(0, 1)
                for model in (student.model, dense)
            )
            total += float(divergence(own, other))
    return total / windows.numel()


def page(rows: list[dict[str, Any]], texts: list[str], about: str) -> str:
    """The Markdown table."""
    lines = ["# Tuning by windows of blocks", "", about, ""]
    lines += [f"| trained together | {' | '.join(texts)} | seconds |"]
    lines += ["|---" * (2 + len(texts)) + "|"]
    for row in rows:
        kl = " | ".join(f"{value:.4f}" for value in row["kl"].values())
        lines.append(f"| {row['window']} | {kl} | {row['seconds']:.0f} |")
    return "\n".join([*lines, ""])


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    add_common(parser, "tuning_windows")
    parser.set_defaults(threads=2)
    parser.add_argument("--model", type=Path, required=True)
    parser.add_argument("--pruned", type=Path, required=True, help="a Llama-like checkpoint")
    parser.add_argument("--calibration", required=True)
    parser.add_argument("--text", action="append", default=[], help="to judge by, too; repeatable")
    parser.add_argument("--seq-len", type=int, default=256)
    parser.add_argument("--steps", type=int, default=60, help="of a window (%(default)s)")
    args = parser.parse_args()
    use_threads(args.threads)
    tokenizer = AutoTokenizer.from_pretrained(args.model)

    def windows(text: str, count: int) -> Tensor:
        return token_windows(
            parse_source(text), tokenizer, count, args.seq_len, 0, "never", fewer=True
        )

    text = windows(args.calibration, args.steps * TOGETHER + HELD_OUT)
    judge = {Path(one).name: windows(one, 32) for one in args.text}
    folder = ModelFolder.open(args.pruned)
    dense = load_model(ModelFolder.open(args.model), torch.float32, "cpu").requires_grad_(False)
    rows: list[dict[str, Any]] = []
    kinds: dict[str, Callable[[int], list[Any]]] = {"not tuned": lambda _: []}
    kinds |= {name: lambda count, own=own: ends(count, own) for name, own in WINDOWS.items()}
    for kind, groups in kinds.items():
        pruned = load_model(folder, torch.float32, "cpu")
        student = Student.of(pruned, Checkpoint.of(folder.files))
        begun = time.perf_counter()
        for group in groups(len(pruned.model.layers)):
            train(student, dense, group, text, args.steps, TuneConfig.step_size)
        seconds = time.perf_counter() - begun
        kl = {name: far(student, dense, own) for name, own in judge.items()}
        rows.append({"window": kind, "kl": kl, "seconds": seconds})
        print(rows[-1], flush=True)
    options = vars(args) | {"model": args.model.name, "text": list(judge)}
    options |= {
        "calibration": Path(args.calibration).name,
        "name": f"{args.name}-{args.model.name}",
    }
    del options["pruned"]
    path = write_result(argparse.Namespace(**options), CPU, {"rows": rows})
    about = (
        f"{args.model.name}, {args.steps} steps a window on {Path(args.calibration).name}; KL from"
        " the dense model in nats a token on other texts. Machine, versions and date:"
        f" [{path.name}]({path.name})."
    )
    write_text(path.with_suffix(".md"), page(rows, list(judge), about))


if __name__ == "__main__":
    main()
