"""One model in vLLM, in a process of its own: ``python engine.py JOB.json RESULT.json``.

The job has `folder`, `options` of ``LLM``, `prompts` (lists of token ids), `tokens` to generate, and
may have `lora`, the folder of an adapter. The result has for each prompt the greedy `tokens` and
their `logprobs`, and `bytes`, what each worker holds in parameters and buffers.
"""

from __future__ import annotations

import json
import sys
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


def main() -> None:
    job = json.loads(Path(sys.argv[1]).read_text())
    from vllm import LLM, SamplingParams
    from vllm.lora.request import LoRARequest

    options = {
        "dtype": "float32",
        "enforce_eager": True,
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
    result = {"outputs": outputs, "bytes": llm.collective_rpc(held_bytes)}
    Path(sys.argv[2]).write_text(json.dumps(result))


if __name__ == "__main__":
    main()
