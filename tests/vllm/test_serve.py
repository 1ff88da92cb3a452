"""``vllm serve FOLDER`` as a user starts it: streams the right tokens, and stops when told to."""

from __future__ import annotations

import json
import os
import signal
import socket
import subprocess
import sys
import time
import urllib.error
import urllib.request
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

SECONDS = 1800


@contextmanager
def served(folder: Path, environment: dict[str, str], log: Path) -> Iterator[tuple[str, Any]]:
    """The address of a server, and its process."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    command = [str(Path(sys.executable).parent / "vllm"), "serve", str(folder)]
    command += ["--host", "127.0.0.1", "--port", str(port), "--dtype", "float32"]
    command += ["--enforce-eager", "--gpu-memory-utilization", "0.1", "--max-num-seqs", "4"]
    environment = {**environment, "VLLM_ENABLE_V1_MULTIPROCESSING": "1"}
    with log.open("w") as output:
        process = subprocess.Popen(
            command, env=environment, stdout=output, stderr=output, start_new_session=True
        )
        try:
            yield f"http://127.0.0.1:{port}", process
        finally:
            if process.poll() is None:
                os.killpg(process.pid, signal.SIGKILL)


def wait(address: str, process: Any, log: Path) -> None:
    """Until it answers."""
    end = time.monotonic() + SECONDS
    while time.monotonic() < end:
        assert process.poll() is None, log.read_text()[-6000:]
        try:
            with urllib.request.urlopen(f"{address}/health", timeout=60):
                return
        except (urllib.error.URLError, OSError):
            time.sleep(1)
    raise AssertionError(log.read_text()[-6000:])


def stream(address: str, folder: Path, prompt: list[int], count: int) -> list[int]:
    """The tokens that are sent, one event each."""
    body = {
        "model": str(folder),
        "prompt": prompt,
        "max_tokens": count,
        "temperature": 0,
        "ignore_eos": True,
        "stream": True,
        "logprobs": 1,
        "return_tokens_as_token_ids": True,
    }
    request = urllib.request.Request(
        f"{address}/v1/completions",
        json.dumps(body).encode(),
        {"Content-Type": "application/json"},
    )
    tokens = []
    with urllib.request.urlopen(request, timeout=SECONDS) as answer:
        for line in answer:
            data = line.decode().strip().removeprefix("data: ")
            if not data or data == "[DONE]":
                continue
            for choice in json.loads(data)["choices"]:
                named = (choice["logprobs"] or {}).get("tokens", [])
                tokens += [int(token.removeprefix("token_id:")) for token in named]
    return tokens


def test_serve(
    pruned: Callable[..., Path],
    engines: Any,
    prompts: list[list[int]],
    environment: dict[str, str],
    tmp_path: Path,
) -> None:
    folder = pruned("Llama", {})
    (wanted,) = engines.transformers([{"folder": folder, "prompts": prompts[:1], "tokens": 16}])
    log = tmp_path / "log.txt"
    with served(folder, environment, log) as (address, process):
        wait(address, process, log)
        assert stream(address, folder, prompts[0], 16) == wanted["outputs"][0]["tokens"]
        process.send_signal(signal.SIGTERM)
        assert process.wait(SECONDS) in (0, -signal.SIGTERM), log.read_text()[-6000:]
