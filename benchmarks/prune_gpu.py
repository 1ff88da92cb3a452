"""``armor prune`` on two blocks in the shape of Llama-2-7B: seconds by layer, peak memory.

    python benchmarks/prune_gpu.py            # on a GPU
    python benchmarks/prune_gpu.py --small    # a test without one: no result

Weights and text are random, so that losses mean nothing. The seconds of the second block, times 32,
are those of the whole model but for reading, checking and writing it. Writes prune_gpu.json, after
each layer what there is.
"""

from __future__ import annotations

import argparse
import random
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

import torch
from common import add_common, write_result
from tokenizers import Tokenizer, decoders, models, pre_tokenizers
from transformers import LlamaConfig, LlamaForCausalLM, PreTrainedTokenizerFast

import armor
from armor.memory import peak_memory
from armor.run.prune import Progress

SIZES = {"hidden_size": 4096, "intermediate_size": 11008, "num_attention_heads": 32}
SMALL = {"hidden_size": 64, "intermediate_size": 172, "num_attention_heads": 4}
BLOCKS = 2


def make_model(folder: Path, sizes: dict[str, int]) -> None:
    """Random weights in bfloat16, and a tokenizer of bytes."""
    config = LlamaConfig(**sizes, num_hidden_layers=BLOCKS, vocab_size=512)
    LlamaForCausalLM(config).to(torch.bfloat16).save_pretrained(folder)
    letters = sorted(pre_tokenizers.ByteLevel.alphabet())
    tokenizer = Tokenizer(models.BPE({letter: i for i, letter in enumerate(letters)}, []))
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    PreTrainedTokenizerFast(tokenizer_object=tokenizer).save_pretrained(folder)


def memory(device: torch.device) -> dict[str, int]:
    """Peaks so far, bytes."""
    found = {"peak_host_bytes": peak_memory()}
    if device.type == "cuda":
        found["peak_gpu_bytes"] = torch.cuda.max_memory_allocated(device)
    return found


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    add_common(parser, "prune_gpu")
    parser.add_argument("--small", action="store_true", help="on the CPU: a test, no result")
    arguments = parser.parse_args()
    if not arguments.small and not torch.cuda.is_available():
        print("prune_gpu needs a CUDA device and found none; --small tries it", file=sys.stderr)
        raise SystemExit(2)
    # "cuda" would start a process for each of several GPUs, whose memory is not seen here.
    device = torch.device("cpu" if arguments.small else "cuda:0")
    samples, iterations = (4, 2) if arguments.small else (128, None)
    finished: dict[str, float] = {}

    def done(layer: str, _: Any) -> None:
        finished[layer] = time.perf_counter() - begin
        write_result(arguments, device, {"finished_at": finished, **memory(device)})

    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        make_model(folder / "model", SMALL if arguments.small else SIZES)
        draw = random.Random(0)
        words = ["".join(draw.choices("abcdefgh", k=draw.randint(2, 9))) for _ in range(500)]
        text = " ".join(draw.choices(words, k=samples * 512))
        (folder / "text.txt").write_text(text, encoding="utf-8")
        config = armor.PruneConfig(
            calibration=str(folder / "text.txt"),
            samples=samples,
            seq_len=64 if arguments.small else 512,
            iterations=iterations,
            block_size=4 if arguments.small else None,
        )
        begin = time.perf_counter()
        result = armor.prune(
            folder / "model",
            config,
            folder / "out",
            device=str(device),
            progress=Progress(finished=done),
        )
    ends = [
        max(at for layer, at in finished.items() if f".{index}." in layer)
        for index in range(BLOCKS)
    ]
    figures: dict[str, Any] = {
        "seconds": result.seconds,
        "seconds_of_second_block": ends[1] - ends[0],
        "minutes_of_32_blocks": 32 * (ends[1] - ends[0]) / 60,
        "seconds_by_layer": {layer: record.seconds for layer, record in result.records.items()},
        "finished_at": finished,
        **memory(device),
    }
    for key, value in figures.items():
        if not isinstance(value, dict):
            print(f"{key}: {value:,.1f}")
    print(f"wrote {write_result(arguments, device, figures)}")


if __name__ == "__main__":
    main()
