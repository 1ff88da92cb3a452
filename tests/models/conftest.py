"""A stand-in for the Hugging Face Hub on the loopback address."""

from __future__ import annotations

import hashlib
import json
import threading
import urllib.parse
from collections.abc import Iterator
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import pytest

_COMMIT = "0123456789abcdef" * 2 + "01234567"


@dataclass
class Hub:
    """Serves the folders OWNER/NAME below `root` as models.

    Attributes:
        denied: of these models only the description may be read, or not even that.
        sent: the files that were downloaded, in order, with their sizes.
    """

    root: Path
    url: str = ""
    denied: dict[str, str] = field(default_factory=dict)
    sent: list[tuple[str, int]] = field(default_factory=list)


def _handler(hub: Hub) -> type[BaseHTTPRequestHandler]:
    class Handler(BaseHTTPRequestHandler):
        protocol_version = "HTTP/1.1"

        def log_message(self, *args: Any) -> None:
            pass

        def do_HEAD(self) -> None:
            self.do_GET()

        def do_GET(self) -> None:
            path = urllib.parse.unquote(urllib.parse.urlparse(self.path).path).strip("/")
            if path.startswith("api/models/"):
                self.describe("/".join(path.split("/")[2:4]), "tree" in path.split("/"))
            else:
                repository, _, rest = path.partition("/resolve/")
                self.send_file(repository, rest.partition("/")[2])

        def describe(self, repository: str, as_tree: bool) -> None:
            if hub.denied.get(repository) == "wholly":
                return self.answer(403, b"{}", {"X-Error-Code": "GatedRepo"})
            folder = hub.root / repository
            if not folder.is_dir():
                return self.answer(404, b"{}", {"X-Error-Code": "RepoNotFound"})
            files = [path for path in sorted(folder.rglob("*")) if path.is_file()]
            names = [path.relative_to(folder).as_posix() for path in files]
            if as_tree:
                tree = [
                    {"type": "file", "path": name, "size": path.stat().st_size, "oid": _COMMIT}
                    for name, path in zip(names, files, strict=True)
                ]
                return self.answer(200, json.dumps(tree).encode(), {})
            about = {"id": repository, "sha": _COMMIT, "private": False, "tags": []}
            about["siblings"] = [{"rfilename": name} for name in names]
            return self.answer(200, json.dumps(about).encode(), {})

        def send_file(self, repository: str, name: str) -> None:
            if repository in hub.denied:
                return self.answer(403, b"", {"X-Error-Code": "GatedRepo"})
            path = hub.root / repository / name
            if not path.is_file():
                return self.answer(404, b"", {"X-Error-Code": "EntryNotFound"})
            data = path.read_bytes()
            if self.command == "GET":
                hub.sent.append((f"{repository}/{name}", len(data)))
            return self.answer(200, data, {"ETag": f'"{hashlib.sha256(data).hexdigest()}"'})

        def answer(self, code: int, body: bytes, headers: dict[str, str]) -> None:
            self.send_response(code)
            known = {"X-Repo-Commit": _COMMIT, "Content-Length": str(len(body))}
            for key, value in (known | headers).items():
                self.send_header(key, value)
            self.end_headers()
            if self.command != "HEAD":
                self.wfile.write(body)

    return Handler


@pytest.fixture
def hub(tmp_path: Path) -> Iterator[Hub]:
    """Empty at first."""
    made = Hub(tmp_path / "hub")
    server = ThreadingHTTPServer(("127.0.0.1", 0), _handler(made))
    server.daemon_threads = True
    made.url = f"http://127.0.0.1:{server.server_port}"
    thread = threading.Thread(target=server.serve_forever, daemon=True)
    thread.start()
    yield made
    server.shutdown()
    server.server_close()
    thread.join()
