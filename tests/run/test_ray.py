"""The Ray engine on a real cluster of two worker processes, one of which is killed."""

from __future__ import annotations

import socket
import threading
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

import armor
from armor.config import PruneConfig
from armor.errors import ArmorError

pytest.importorskip("ray", reason="the Ray engine is an extra")
pytestmark = [
    pytest.mark.slow,
    # Ray leaves sockets and files to the garbage collector.
    pytest.mark.filterwarnings("ignore::ResourceWarning"),
    pytest.mark.filterwarnings("ignore::pytest.PytestUnraisableExceptionWarning"),
    pytest.mark.filterwarnings("ignore::FutureWarning:ray"),
    pytest.mark.filterwarnings("ignore::DeprecationWarning:ray"),
]


@pytest.fixture(autouse=True)
def no_cluster(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """No other cluster is used, and none is left running."""
    import ray

    monkeypatch.delenv("RAY_ADDRESS", raising=False)
    yield
    ray.shutdown()


@pytest.mark.parametrize("target", ["compensated", "dense"])
def test_the_bytes_are_those_of_one_worker(
    tiny_model: Path,
    settings: Callable[..., PruneConfig],
    weights: Callable[[Path], dict[str, bytes]],
    killer: Callable[..., Any],
    tmp_path: Path,
    target: str,
) -> None:
    armor.prune(tiny_model, settings(target=target), tmp_path / "one", workers=1)
    kills = killer(1, "ray::IDLE", "ray::model", "ray::calibration")
    armor.prune(
        tiny_model,
        settings(target=target),
        tmp_path / "ray",
        engine="ray",
        workers=2,
        progress=kills.progress(),
    )
    assert kills.left == 0
    assert weights(tmp_path / "ray") == weights(tmp_path / "one")


def test_a_cluster_that_is_not_there_is_one_line(
    tiny_model: Path,
    settings: Callable[..., PruneConfig],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setenv("RAY_ADDRESS", "127.0.0.1:1")
    with pytest.raises(ArmorError, match=r"no Ray cluster answers at 127.0.0.1:1") as caught:
        armor.prune(tiny_model, settings(), tmp_path / "out", engine="ray")
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("answer", [b"", b"HTTP/1.1 400 Bad Request\r\n\r\n"])
def test_something_else_than_a_cluster_is_one_line(
    tiny_model: Path,
    settings: Callable[..., PruneConfig],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    answer: bytes,
) -> None:
    def serve(listener: socket.socket) -> None:
        line, _ = listener.accept()
        with line:
            line.recv(100)
            line.sendall(answer)

    with socket.create_server(("127.0.0.1", 0)) as listener:
        threading.Thread(target=serve, args=(listener,), daemon=True).start()
        monkeypatch.setenv("RAY_ADDRESS", f"127.0.0.1:{listener.getsockname()[1]}")
        with pytest.raises(ArmorError, match="what listens there is not Ray"):
            armor.prune(tiny_model, settings(), tmp_path / "out", engine="ray")


def test_a_cluster_that_runs_already(
    tiny_model: Path,
    settings: Callable[..., PruneConfig],
    weights: Callable[[Path], dict[str, bytes]],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    import ray

    armor.prune(tiny_model, settings(), tmp_path / "one", workers=1)
    found = ray.init(address="local", num_cpus=2, include_dashboard=False, log_to_driver=False)
    monkeypatch.setenv("RAY_ADDRESS", found.address_info["gcs_address"])
    armor.prune(tiny_model, settings(), tmp_path / "ray", workers=2, engine="ray")
    assert weights(tmp_path / "ray") == weights(tmp_path / "one")
