"""Trains the bundled demo model: a 0.9M-parameter Llama on Python's own documentation.

    nice python scripts/train_demo_model.py [--steps 2000] [--out src/armor/demo/assets]

Text: the training part of the documentation topics (`armor.demo.text`) and the docstrings and
comments of the standard library, without any paragraph of the held-out topics. One thread and
fixed seeds; prints the held-out loss as it goes. Takes about a quarter of an hour on a free core.
"""

from __future__ import annotations

import argparse
import ast
import json
import math
import platform
import re
import sysconfig
import time
from pathlib import Path

import torch
from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers
from torch import Tensor
from transformers import LlamaConfig, LlamaForCausalLM

from armor.demo.text import calibration_text, evaluation_text, model_dir, unseen_paragraphs

VOCABULARY = 1024
CONTEXT = 256
BATCH = 16
TOPIC_SHARE = 0.2  # of the windows; the rest are from the library
PEAK_RATE, END_RATE, WARM_UP = 4e-3, 2e-4, 100
END_OF_TEXT = "<|endoftext|>"
_NOT_DOCUMENTATION = {"site-packages", "test", "tests", "idlelib", "turtledemo", "pydoc_data"}
_COMMENT = re.compile(r"(?:^[ \t]*#.*\n){2,}", re.MULTILINE)  # two lines or more
_COMMENT_SIGN = re.compile(r"^[ \t]*#+ ?", re.MULTILINE)

README = """\
A Llama of {parameters:,} parameters, made by `scripts/train_demo_model.py`.
Trained on the documentation topics and the standard library's docstrings and comments of Python
{python}, (c) Python Software Foundation, PSF licence (https://docs.python.org/3/license.html); the
model and its tokenizer are Apache-2.0, as this project.
{steps:,} steps of {tokens:,} tokens; loss in nats a token: {train:.3f} on the training topics,
{held_out:.3f} on the held-out ones.
"""


def library_prose(exclude: str) -> str:
    """Docstrings and comments of the standard library, each paragraph once, none in `exclude`."""
    root = Path(sysconfig.get_path("stdlib"))
    texts = []
    for path in sorted(root.rglob("*.py")):
        if _NOT_DOCUMENTATION & set(path.relative_to(root).parts):
            continue
        try:
            source = path.read_text("utf-8")
            tree = ast.parse(source)
        except (SyntaxError, UnicodeDecodeError):
            continue  # deliberately broken files of 2to3
        for node in ast.walk(tree):
            if isinstance(node, ast.Module | ast.ClassDef | ast.FunctionDef):
                texts.append(ast.get_docstring(node) or "")
        texts += [_COMMENT_SIGN.sub("", block) for block in _COMMENT.findall(source)]
    return "\n\n".join(unseen_paragraphs(texts, exclude))


def train_tokenizer(text: str) -> Tokenizer:
    """A byte-level BPE: every byte sequence can be encoded."""
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=VOCABULARY,
        special_tokens=[END_OF_TEXT],
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    tokenizer.train_from_iterator([text], trainer)
    return tokenizer


def save_tokenizer(tokenizer: Tokenizer, out: Path) -> None:
    """Written by hand, because transformers 4 and 5 name the same tokenizer class differently."""
    tokenizer.save(str(out / "tokenizer.json"))
    settings = {
        "tokenizer_class": "PreTrainedTokenizerFast",
        "bos_token": END_OF_TEXT,
        "eos_token": END_OF_TEXT,
        "pad_token": END_OF_TEXT,
        "model_max_length": CONTEXT,
        "clean_up_tokenization_spaces": False,
    }
    (out / "tokenizer_config.json").write_text(json.dumps(settings, indent=2) + "\n")


def new_model() -> LlamaForCausalLM:
    torch.manual_seed(0)
    return LlamaForCausalLM(
        LlamaConfig(
            vocab_size=VOCABULARY,
            hidden_size=128,
            intermediate_size=384,
            num_hidden_layers=4,
            num_attention_heads=4,
            num_key_value_heads=2,
            max_position_embeddings=CONTEXT,
            tie_word_embeddings=True,
            bos_token_id=0,
            eos_token_id=0,
            pad_token_id=0,
        )
    )


def rate(step: int, steps: int) -> float:
    """Linear warm-up, then a cosine from `PEAK_RATE` to `END_RATE`."""
    if step < WARM_UP:
        return PEAK_RATE * (step + 1) / WARM_UP
    progress = (step - WARM_UP) / max(1, steps - WARM_UP)
    return END_RATE + (PEAK_RATE - END_RATE) * (1 + math.cos(math.pi * progress)) / 2


def sample(texts: list[Tensor], shares: list[float], random: torch.Generator) -> Tensor:
    """(BATCH, CONTEXT) int64: windows at random places, each from text t with chance shares[t]."""
    windows = []
    chosen = torch.multinomial(torch.tensor(shares), BATCH, replacement=True, generator=random)
    for index in chosen.tolist():
        start = int(torch.randint(len(texts[index]) - CONTEXT, (1,), generator=random))
        windows.append(texts[index][start : start + CONTEXT])
    return torch.stack(windows)


@torch.no_grad()
def loss_on(model: LlamaForCausalLM, tokens: Tensor, limit: int = 64) -> float:
    """Mean loss in nats a token over the first `limit` whole windows of `tokens`."""
    windows = tokens[: len(tokens) // CONTEXT * CONTEXT].view(-1, CONTEXT)[:limit]
    model.eval()
    losses = [model(input_ids=part, labels=part).loss for part in windows.split(1)]
    model.train()
    return float(torch.stack(losses).mean())


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--steps", type=int, default=2000)
    parser.add_argument("--out", type=Path, default=model_dir())
    arguments = parser.parse_args()
    steps, out = arguments.steps, arguments.out
    out.mkdir(parents=True, exist_ok=True)
    torch.set_num_threads(1)
    random = torch.Generator().manual_seed(0)

    held_out, topics = evaluation_text(), calibration_text()
    library = library_prose(exclude=held_out)
    tokenizer = train_tokenizer(topics + library)
    save_tokenizer(tokenizer, out)
    ids = [torch.tensor(tokenizer.encode(text).ids) for text in (topics, library, held_out)]
    print("tokens: topics {}, library {}, held out {}".format(*map(len, ids)), flush=True)

    model = new_model()
    decayed = [p for p in model.parameters() if p.ndim == 2]
    others = [p for p in model.parameters() if p.ndim != 2]
    optimizer = torch.optim.AdamW(
        [{"params": decayed, "weight_decay": 0.3}, {"params": others, "weight_decay": 0.0}],
        betas=(0.9, 0.95),
    )
    started = time.monotonic()
    for step in range(steps):
        for group in optimizer.param_groups:
            group["lr"] = rate(step, steps)
        batch = sample(ids[:2], [TOPIC_SHARE, 1 - TOPIC_SHARE], random)
        loss = model(input_ids=batch, labels=batch).loss
        optimizer.zero_grad()
        loss.backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()
        if step % 100 == 99 or step == steps - 1:
            train, unseen = loss_on(model, ids[0], 32), loss_on(model, ids[2])
            seconds = time.monotonic() - started
            print(
                f"step {step + 1}  batch {float(loss.detach()):.3f}  topics {train:.3f}  "
                f"held out {unseen:.3f}  {seconds:.0f} s",
                flush=True,
            )
    model.save_pretrained(out)
    (out / "README.md").write_text(
        README.format(
            parameters=model.num_parameters(),
            python=platform.python_version(),
            steps=steps,
            tokens=BATCH * CONTEXT,
            train=train,
            held_out=unseen,
        )
    )


if __name__ == "__main__":
    main()
