"""Requests and tokens a second in vLLM, on this CPU: a dense model beside its pruned one, in turns.

    make vllm     # makes the environment
    .venv-vllm/bin/python benchmarks/serving.py --dense MODEL --pruned DIR

Both engines are up, each with its worker processes, and take turns; an idle one waits. Each turn
serves `requests` prompts of `prompt` random tokens at once, `tokens` tokens each. The results are
the medians, and the fastest and the slowest turn.
"""

import argparse
import os
import random
import statistics
import time
from importlib.metadata import version
from pathlib import Path
from typing import Any

os.environ.setdefault("VLLM_CPU_KVCACHE_SPACE", "1")
os.environ.setdefault("VLLM_ENABLE_V1_MULTIPROCESSING", "0")
os.environ.setdefault("VLLM_ALLOW_INSECURE_SERIALIZATION", "1")  # a worker is asked with a function

import torch
from common import add_common, machine, write_result

from armor.checkpoint.inspect import Inspection


def engine(folder: Path, arguments: argparse.Namespace) -> Any:
    """A model in vLLM."""
    from vllm import LLM

    return LLM(
        str(folder),
        dtype=arguments.dtype,
        max_model_len=arguments.prompt + arguments.tokens,
        gpu_memory_utilization=0.1,
        enforce_eager=not arguments.compiled,
        distributed_executor_backend="mp",
        enable_prefix_caching=False,
        disable_log_stats=True,
    )


def seconds(llm: Any, requests: int, arguments: argparse.Namespace, seed: int) -> float:
    """Of one turn."""
    from vllm import SamplingParams

    generator = random.Random(seed)
    prompts = [
        {"prompt_token_ids": [generator.randrange(1000, 20_000) for _ in range(arguments.prompt)]}
        for _ in range(requests)
    ]
    sampling = SamplingParams(temperature=0, max_tokens=arguments.tokens, ignore_eos=True)
    start = time.perf_counter()
    llm.generate(prompts, sampling, use_tqdm=False)
    return time.perf_counter() - start


def held_bytes(worker: Any) -> int:
    """Of the parameters and buffers of a worker's model, each once."""
    model = worker.model_runner.model
    storages = [tensor.untyped_storage() for tensor in (*model.parameters(), *model.buffers())]
    return sum({storage.data_ptr(): storage.nbytes() for storage in storages}.values())


def measured(arguments: argparse.Namespace) -> tuple[list[dict[str, Any]], int]:
    """A row for each number of requests and each model; the bytes that the pruned one holds.

    (Of a dense linear vLLM's CPU library keeps a copy of its own, which no one can count.)
    """
    llms = {name: engine(getattr(arguments, name), arguments) for name in ("dense", "pruned")}
    held = sum(llms["pruned"].collective_rpc(held_bytes))
    rows = []
    for requests in arguments.requests:
        times: dict[str, list[float]] = {name: [] for name in llms}
        for turn in range(arguments.turns + 1):
            for name, llm in llms.items():
                times[name].append(seconds(llm, requests, arguments, turn))
        for name, all_times in times.items():
            taken = all_times[1:]  # the first compiles
            median = statistics.median(taken)
            rows.append(
                {
                    "model": name,
                    "requests": requests,
                    "requests_a_second": requests / median,
                    "tokens_a_second": requests * arguments.tokens / median,
                    "seconds": [min(taken), median, max(taken)],
                }
            )
    return rows, held


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    add_common(parser, "serving")
    parser.add_argument("--dense", type=Path, required=True)
    parser.add_argument("--pruned", type=Path, required=True)
    parser.add_argument("--dtype", default="bfloat16", help="(default: %(default)s)")
    parser.add_argument("--requests", type=int, nargs="+", default=[1, 8], help="at once")
    parser.add_argument("--prompt", type=int, default=64, help="tokens (default: %(default)s)")
    parser.add_argument("--tokens", type=int, default=32, help="to generate (%(default)s)")
    parser.add_argument("--turns", type=int, default=5, help="of each (default: %(default)s)")
    parser.add_argument("--compiled", action="store_true", help="with torch.compile")
    arguments = parser.parse_args()
    os.environ["OMP_NUM_THREADS"] = str(arguments.threads)  # of the workers
    os.environ.setdefault("VLLM_CPU_OMP_THREADS_BIND", "nobind")
    torch.set_num_threads(arguments.threads)
    rows, held = measured(arguments)
    for row in rows:
        print(
            f"{row['model']:8} {row['requests']:3} at once  {row['requests_a_second']:7.3f}"
            f" requests/s  {row['tokens_a_second']:7.1f} tokens/s"
        )
    data = {
        "vllm": version("vllm"),
        "held_bytes": held,
        "stored_bytes": Inspection.of(arguments.pruned).model_bytes,
        "rows": rows,
    }
    # Where the models lie is of no interest.
    arguments.dense, arguments.pruned = arguments.dense.name, arguments.pruned.name
    path = write_result(arguments, torch.device("cpu"), data)
    print(f"{machine(torch.device('cpu'))['cpu']}; wrote {path}")


if __name__ == "__main__":
    main()
