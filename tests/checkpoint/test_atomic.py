"""A small file is there complete, or as it was before."""

from __future__ import annotations

from pathlib import Path

import pytest

from armor.checkpoint.atomic import atomic_write


def test_it_replaces_the_file_at_the_end(tmp_path: Path) -> None:
    path = tmp_path / "file"
    path.write_text("before")
    with atomic_write(path) as file:
        file.write(b"after")
        assert path.read_text() == "before"
    assert path.read_text() == "after"
    assert list(tmp_path.iterdir()) == [path]


def test_an_error_leaves_what_was_there(tmp_path: Path) -> None:
    path = tmp_path / "file"
    path.write_text("before")

    def fail() -> None:
        with atomic_write(path) as file:
            file.write(b"af")
            raise OSError(28, "full")

    with pytest.raises(OSError, match="full") as caught:
        fail()
    assert caught.value.filename == str(path)
    assert path.read_text() == "before"
    assert list(tmp_path.iterdir()) == [path]
