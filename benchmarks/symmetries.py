"""Free symmetries of a model: what a change of basis that costs no bytes is worth to the pruning.

    make smollm2
    python benchmarks/symmetries.py

Each variant computes the same function as the dense model (checked in the run), in float32:

- *MLP permuted*: the channels between up_proj and down_proj in a random order, or dealt out so that
  each group of four has one of the strongest, the strong, the weak and the weakest quarter.
- *stream rotated*: the residual stream in another orthogonal basis, random or that of its principal
  axes (norms are folded into the linears first, the output head is untied).
- *heads rotated*: the channels of each value head in a random orthogonal basis, undone in o_proj.

Of each, the first --blocks blocks are pruned with the default settings and --samples windows, and
the model is compared with the dense one on text that it was not calibrated on. Writes
benchmarks/results/symmetries.{json,md}; what is in --work already is not done again.
"""

from __future__ import annotations

import argparse
import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from common import add_common, shared_folder, smollm2_folder, use_threads, write_result
from real_model import CALIBRATION, CPU, TEXTS
from torch import Tensor
from transformers import AutoModelForCausalLM, AutoTokenizer

import armor
from armor.checkpoint.generalisation import generalisation
from armor.checkpoint.inspect import Inspection
from armor.checkpoint.jsonfile import write_text
from armor.compare.compare import measurement
from armor.config import PruneConfig
from armor.errors import ArmorError
from armor.report.numbers import geometric_mean
from armor.text.sources import parse_source
from armor.text.windows import token_windows

WINDOWS = 16
"""Of the calibration text: what channels and axes are chosen by."""


def orthogonal(size: int, generator: torch.Generator) -> Tensor:
    """Drawn uniformly, float64."""
    drawn = torch.randn(size, size, generator=generator, dtype=torch.float64, device="cpu")
    q, r = torch.linalg.qr(drawn)
    return q * r.diagonal().sign()


def turn(weight: torch.nn.Parameter, left: Tensor | None, right: Tensor | None) -> None:
    """``left @ weight @ right``, in float64."""
    exact = weight.data.double()
    exact = exact if left is None else left @ exact
    weight.data.copy_(exact if right is None else exact @ right)


def permute_mlp(model: Any, order: Callable[[int], Tensor]) -> None:
    """Put the channels inside each MLP in the `order` of that block."""
    for number, block in enumerate(model.model.layers):
        own = order(number)
        for linear in (block.mlp.gate_proj, block.mlp.up_proj):
            linear.weight.data = linear.weight.data[own].contiguous()
        block.mlp.down_proj.weight.data = block.mlp.down_proj.weight.data[:, own].contiguous()


def rotate_stream(model: Any, basis: Tensor) -> None:
    """The residual stream in `basis`, whose columns are the new axes."""
    head = model.lm_head.weight.data.clone() * model.model.norm.weight.data
    model.lm_head.weight = torch.nn.Parameter(head)
    model.config.tie_word_embeddings = False
    model.model.norm.weight.data.fill_(1.0)
    turn(model.lm_head.weight, None, basis)
    turn(model.model.embed_tokens.weight, None, basis)
    for block in model.model.layers:
        own = block.self_attn
        for norm, linears in (
            (block.input_layernorm, (own.q_proj, own.k_proj, own.v_proj)),
            (block.post_attention_layernorm, (block.mlp.gate_proj, block.mlp.up_proj)),
        ):
            for linear in linears:
                linear.weight.data *= norm.weight.data
                turn(linear.weight, None, basis)
            norm.weight.data.fill_(1.0)
        for linear in (own.o_proj, block.mlp.down_proj):
            turn(linear.weight, basis.mT, None)


def rotate_heads(model: Any, generator: torch.Generator) -> None:
    """Each value head in a basis of its own; the heads of queries that share it undo it."""
    config = model.config
    for block in model.model.layers:
        own = [
            orthogonal(block.self_attn.head_dim, generator)
            for _ in range(config.num_key_value_heads)
        ]
        shared = config.num_attention_heads // config.num_key_value_heads
        turn(block.self_attn.v_proj.weight, torch.block_diag(*own).mT, None)
        undo = torch.block_diag(*(one for one in own for _ in range(shared)))
        turn(block.self_attn.o_proj.weight, None, undo)


class Activations:
    """Of the dense model on a few windows: what the variants are chosen by.

    Attributes:
        energies: by block, the mean square of each channel inside the MLP.
        stream: second moment of what the first block is given and all of them put out.
    """

    def __init__(self, model: Any, windows: Tensor) -> None:
        size = model.config.hidden_size
        self.stream = torch.zeros(size, size, dtype=torch.float64, device="cpu")
        self.energies: list[Tensor] = []
        hooks = []
        for block in model.model.layers:
            energy = torch.zeros(block.mlp.down_proj.in_features, dtype=torch.float64, device="cpu")
            self.energies.append(energy)

            def take(_: Any, given: Any, energy: Tensor = energy) -> None:
                energy.add_(given[0].double().square().sum((0, 1)))

            hooks.append(block.mlp.down_proj.register_forward_pre_hook(take))
        with torch.no_grad():
            for part in windows.split(4):
                states = model(input_ids=part, use_cache=False, output_hidden_states=True)
                for hidden in states.hidden_states[:-1]:
                    # Each token alike, however large it is: a few hold nearly all of the energy.
                    x = hidden.flatten(0, 1).double()
                    x = x / x.norm(dim=1, keepdim=True)
                    self.stream += x.mT @ x
        for hook in hooks:
            hook.remove()

    def dealt(self, number: int, model: Any) -> Tensor:
        """The channels of a block, each group of four of one of each quarter by strength."""
        weight = model.model.layers[number].mlp.down_proj.weight.data.double()
        strength = self.energies[number] * weight.square().sum(0)
        return strength.argsort(descending=True).view(4, -1).mT.flatten()


def variants(model: Any, found: Activations) -> dict[str, Callable[[], None]]:
    """By name, what changes `model` in place."""
    generator = torch.Generator("cpu").manual_seed(0)
    size, inner = model.config.hidden_size, model.config.intermediate_size

    def shuffled(_: int) -> Tensor:
        return torch.randperm(inner, generator=generator, dtype=torch.int64, device="cpu")

    return {
        "as it is": lambda: None,
        "MLP permuted, random": lambda: permute_mlp(model, shuffled),
        "MLP permuted, dealt": lambda: permute_mlp(model, lambda n: found.dealt(n, model)),
        "stream rotated, random": lambda: rotate_stream(model, orthogonal(size, generator)),
        "stream rotated, principal axes": lambda: rotate_stream(
            model, torch.linalg.eigh(found.stream).eigenvectors.flip(1)
        ),
        "heads rotated, random": lambda: rotate_heads(model, generator),
    }


def make(source: Path, name: str, windows: Tensor, out: Path) -> float:
    """Save the variant `name` of `source` as `out`; the largest difference of a logit."""
    model = AutoModelForCausalLM.from_pretrained(source, dtype=torch.float32).eval()
    with torch.no_grad():
        before = model(input_ids=windows[:1]).logits
        variants(model, Activations(model, windows))[name]()
        difference = float((model(input_ids=windows[:1]).logits - before).abs().max())
    model.save_pretrained(out)
    AutoTokenizer.from_pretrained(source).save_pretrained(out)
    return difference


def measure(args: argparse.Namespace, source: Path, name: str, windows: Tensor) -> dict[str, Any]:
    """What is lost by pruning the first blocks of a variant."""
    label = name.replace(" ", "-").replace(",", "")
    dense, out = args.work / f"{label}-dense", args.work / label
    difference = make(source, name, windows, dense)
    if difference > 0.01:
        raise ArmorError(f"{name}: logits differ by {difference}, so it is another function")
    include = tuple(f"*.layers.{block}.*" for block in range(args.blocks))
    config = PruneConfig(
        calibration=str(shared_folder() / CALIBRATION),
        include=include,
        samples=args.samples,
        seq_len=512,
        bos="never",
    )
    if not out.is_dir():
        armor.prune(dense, config, out, device="cpu")
    found = Inspection.of(out)
    records = [layer.record for layer in found.layers.values()]
    row: dict[str, Any] = {
        "variant": name,
        "difference": difference,
        "held_out": geometric_mean(record.held_out_error or 0.0 for record in records),
        "ratio": generalisation(records),
        "seconds": found.run.seconds,
        "perplexity": {},
        "kl": {},
    }
    work = measurement(args.work, label, str(source), "cpu", "never")
    for text, place in TEXTS.items():
        measured = work.perplexity(shared_folder() / place, 512, args.max_chars)
        row["perplexity"][text], row["kl"][text] = measured["perplexity"], measured["kl"]
    return row


def page(rows: list[dict[str, Any]], about: str) -> str:
    """The Markdown table."""
    lines = ["# Free symmetries", "", about, ""]
    lines += [f"| variant | held-out error | {' | '.join(f'{text}: KL' for text in TEXTS)} |"]
    lines += ["|---" * (2 + len(TEXTS)) + "|"]
    for row in rows:
        kl = " | ".join(f"{row['kl'][text]:.4f}" for text in TEXTS)
        lines.append(f"| {row['variant']} | {row['held_out']:.4f} | {kl} |")
    return "\n".join([*lines, ""])


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    add_common(parser, "symmetries")
    parser.set_defaults(threads=os.cpu_count() or 1)
    parser.add_argument("--blocks", type=int, default=4, help="that are pruned (%(default)s)")
    parser.add_argument("--samples", type=int, default=32, help="windows (%(default)s)")
    parser.add_argument("--max-chars", type=int, default=30_000, help="of each text (%(default)s)")
    parser.add_argument("--work", type=Path, default=Path("build/symmetries"))
    args = parser.parse_args()
    use_threads(args.threads)
    try:
        source = smollm2_folder()
        args.work.mkdir(parents=True, exist_ok=True)
        windows = token_windows(
            parse_source(str(shared_folder() / CALIBRATION)),
            AutoTokenizer.from_pretrained(source),
            WINDOWS,
            512,
            0,
            "never",
        )
        rows: list[dict[str, Any]] = []
        model = AutoModelForCausalLM.from_pretrained(source, dtype=torch.float32)
        for name in variants(model, Activations(model, windows)):
            rows.append(measure(args, source, name, windows))
            print(rows[-1], flush=True)
            options = {key: value for key, value in vars(args).items() if key != "work"}
            data = {"calibration": CALIBRATION, "rows": rows}
            path = write_result(argparse.Namespace(**options), CPU, data)
            about = (
                f"SmolLM2-135M-Instruct in float32, the first {args.blocks} blocks pruned with the"
                f" default settings and {args.samples} windows of 512 tokens of WikiText-2 valid."
                " Held-out error: of each layer's output on calibration windows that it was not"
                " fitted to, geometric mean. KL from the dense model in nats a token, the first"
                f" {args.max_chars:,} characters of texts that it was not calibrated on. Machine,"
                f" versions and date: [{path.name}]({path.name})."
            )
            write_text(path.with_suffix(".md"), page(rows, about))
    except ArmorError as error:
        raise SystemExit(f"error: {error}") from None


if __name__ == "__main__":
    main()
