"""The same job as that of engine.py in transformers with armor, in float32."""

from __future__ import annotations

import json
import sys
from pathlib import Path

import torch

import armor


@torch.no_grad()
def main() -> None:
    job = json.loads(Path(sys.argv[1]).read_text())
    model = armor.load(job["folder"], dtype=torch.float32)
    if "lora" in job:
        from peft import PeftModel

        model = PeftModel.from_pretrained(model, job["lora"])
    outputs = []
    for ids in job["prompts"]:
        start = torch.tensor([ids])
        generated = model.generate(
            input_ids=start,
            attention_mask=torch.ones_like(start),
            max_new_tokens=job["tokens"],
            min_new_tokens=job["tokens"],
            do_sample=False,
            output_logits=True,
            return_dict_in_generate=True,
        )
        tokens = generated.sequences[0, len(ids) :]
        scores = torch.cat(generated.logits).float().log_softmax(-1)
        logprobs = scores.gather(1, tokens[:, None])[:, 0]
        outputs.append({"tokens": tokens.tolist(), "logprobs": logprobs.tolist()})
    Path(sys.argv[2]).write_text(json.dumps({"outputs": outputs}))


if __name__ == "__main__":
    main()
