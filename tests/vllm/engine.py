"""Models in vLLM, one after another: ``python engine.py JOBS.json RESULTS.json``.

A job has `folder`, `options` of ``LLM``, `prompts` (lists of token ids) and `tokens` to generate,
and maybe `lora`, the folder of an adapter. Its result has for each prompt the greedy `tokens` and
their `logprobs`, and `bytes`, what each worker holds in parameters and buffers; or `error`.

One process for all saves most of the time of a start. Workers are processes of their own.
"""

from __future__ import annotations

import gc
import json
import sys
import traceback
from pathlib import Path
from typing import Any


def held_bytes(worker: Any) -> int:
    """Of every tensor of the model, once."""
    model = worker.model_runner.model
    storages = {}
    for tensor in (*model.parameters(), *model.buffers()):
        storage = tensor.untyped_storage()
        storages[storage.data_ptr()] = storage.nbytes()
    return sum(storages.values())


def run(job: dict[str, Any]) -> dict[str, Any]:
    """The result of a job."""
    from vllm import LLM, SamplingParams
    from vllm.lora.request import LoRARequest

    options = {
        "dtype": "float32",
        "enforce_eager": True,
        # A worker in this process would import numba, and the next one then fails.
        "distributed_executor_backend": "mp",
        "gpu_memory_utilization": 0.1,
        "max_num_seqs": 8,
        **job["options"],
    }
    llm = LLM(job["folder"], **options)
    sampling = SamplingParams(
        temperature=0, max_tokens=job["tokens"], logprobs=1, ignore_eos=True, detokenize=False
    )
    prompts = [{"prompt_token_ids": ids} for ids in job["prompts"]]
    lora = LoRARequest("adapter", 1, job["lora"]) if "lora" in job else None
    outputs = []
    for request in llm.generate(prompts, sampling, use_tqdm=False, lora_request=lora):
        (completion,) = request.outputs
        tokens = list(completion.token_ids)
        chosen = [by[token].logprob for by, token in zip(completion.logprobs, tokens, strict=True)]
        outputs.append({"tokens": tokens, "logprobs": chosen})
    held = llm.collective_rpc(held_bytes)
    llm.llm_engine.engine_core.shutdown()
    return {"outputs": outputs, "bytes": held}


def main() -> None:
    results = []
    for job in json.loads(Path(sys.argv[1]).read_text()):
        try:
            results.append(run(job))
        except Exception:
            results.append({"error": traceback.format_exc()})
        gc.collect()
        Path(sys.argv[2]).write_text(json.dumps(results))


if __name__ == "__main__":
    main()
