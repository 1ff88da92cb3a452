"""SparseGPT 2:4 by llm-compressor, for benchmarks/prune_time.py. Runs in an environment with
`pip install llmcompressor==0.14.0`, not with armor.

The text is always tokenised, which is part of the work; --windows has the token windows to take, as
{"windows": [[id, ...], ...]}, in place of those drawn here."""

import argparse
import json
from pathlib import Path

import torch
from datasets import Dataset
from llmcompressor import oneshot
from llmcompressor.modifiers.pruning import SparseGPTModifier
from transformers import AutoModelForCausalLM, AutoTokenizer

parser = argparse.ArgumentParser()
parser.add_argument("model")
parser.add_argument("calibration")
parser.add_argument("out")
parser.add_argument("--samples", type=int, default=128)
parser.add_argument("--seq-len", type=int, default=256)
parser.add_argument("--windows", type=Path)
args = parser.parse_args()

torch.manual_seed(0)
tokenizer = AutoTokenizer.from_pretrained(args.model)
model = AutoModelForCausalLM.from_pretrained(args.model, dtype=torch.float32)
text = Path(args.calibration).read_text(encoding="utf-8")
ids = torch.tensor(tokenizer(text, add_special_tokens=False)["input_ids"])
windows = ids[: len(ids) // args.seq_len * args.seq_len].view(-1, args.seq_len)
chosen = windows[torch.randperm(len(windows))[: args.samples]]
if args.windows:
    chosen = torch.tensor(json.loads(args.windows.read_text(encoding="utf-8"))["windows"])
dataset = Dataset.from_dict(
    {"input_ids": chosen.tolist(), "attention_mask": torch.ones_like(chosen).tolist()}
)
oneshot(
    model=model,
    tokenizer=tokenizer,
    dataset=dataset,
    recipe=SparseGPTModifier(
        sparsity=0.5, mask_structure="2:4", targets=["Linear"], ignore=["lm_head"]
    ),
    max_seq_length=args.seq_len,
    num_calibration_samples=args.samples,
    output_dir=args.out,
)
