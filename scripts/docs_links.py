"""For mkdocs: links from a page to files outside docs/, such as ``../scripts/x.py``.

They work on GitHub as they stand. In the site, the files that pages link to are copied to
``repository/``, and the links lead there; a link to a file that does not exist stays as it is, so
that the strict build names it.
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

#: ``](../path)``, in a link or an image; the path is relative to the repository.
_OUTSIDE = re.compile(r"\]\(\.\./([^)\s#]+)(#[^)\s]*)?\)")
FOLDER = "repository"


def outside(markdown: str, root: Path) -> Iterator[str]:
    """The files of the repository at `root` that a page of docs/ links to."""
    for path, _ in _OUTSIDE.findall(markdown):
        if (root / path).is_file():
            yield path


def rewritten(markdown: str, root: Path) -> str:
    """The page with its links to files outside docs/ leading to their copies."""

    def link(match: re.Match[str]) -> str:
        path = match[1]
        return f"]({address(path)})" if (root / path).is_file() else match[0]

    return _OUTSIDE.sub(link, markdown)


def address(path: str) -> str:
    """Where the copy of a file is; ``.txt`` keeps a Markdown file from becoming a page."""
    return f"{FOLDER}/{path}.txt" if path.endswith(".md") else f"{FOLDER}/{path}"


def on_files(files: Any, config: Any) -> Any:
    """mkdocs' hook: add the files that pages link to."""
    from mkdocs.structure.files import File

    root = Path(config.config_file_path).parent
    pages = [Path(file.abs_src_path) for file in files.documentation_pages()]
    found = {path for page in pages for path in outside(page.read_text(encoding="utf-8"), root)}
    for path in sorted(found):
        files.append(File.generated(config, address(path), abs_src_path=str(root / path)))
    return files


def on_page_markdown(markdown: str, page: Any, config: Any, files: Any) -> str:
    """mkdocs' hook: lead the links of a page to the copies."""
    return rewritten(markdown, Path(config.config_file_path).parent)
