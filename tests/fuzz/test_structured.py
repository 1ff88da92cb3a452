"""Structured cases: whatever a header or the metadata says, it is refused or it is true."""

from __future__ import annotations

import json
import math
import os
import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from armor.checkpoint.format import LayerSpec, from_metadata, short, to_metadata
from armor.checkpoint.jsonfile import parse_json, read_json
from armor.checkpoint.tensorfile import read_file
from armor.errors import ArmorError
from armor.sparse.pattern import Pattern

BITS = {"F64": 64, "F32": 32, "I16": 16, "BF16": 16, "U8": 8, "BOOL": 8, "F4": 4}


def attempt(function: Callable[[Any], Any], given: Any) -> Any:
    """What the function returns, None if it refuses, which it does in one line."""
    try:
        return function(given)
    except ArmorError as error:
        check_message(str(error))
    return None


def check_message(message: str) -> None:
    assert message.isprintable()
    assert 10 < len(message) < 600


sizes = st.one_of(
    st.integers(0, 5), st.integers(-2, 2**70), st.sampled_from([0.5, True, None, "3"])
)
json_values = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(),
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(st.text(), inner, max_size=4),
    max_leaves=12,
)


@st.composite
def headers(draw: st.DrawFn) -> tuple[Any, int]:
    """A header, and how many bytes follow it; mostly with offsets that could be right."""
    header: dict[str, Any] = {}
    end = 0
    for name in draw(st.lists(st.text(max_size=4), max_size=4, unique=True)):
        dtype = draw(st.sampled_from([*BITS, "XX"]))
        shape = draw(st.lists(sizes, max_size=4))
        whole = all(type(size) is int for size in shape)
        size = min(abs(math.prod(shape)) * BITS.get(dtype, 8) // 8 if whole else 0, 2**66)
        lie = draw(st.sampled_from([0, 0, 0, 1, -1, 2**40]))
        entry: Any = {"dtype": dtype, "shape": shape, "data_offsets": [end, end + size + lie]}
        header[name] = draw(st.sampled_from([entry, entry, entry, list(entry.values()), None]))
        end += size
    return header, min(end, 4096)


@given(headers())
@settings(max_examples=400)
def test_headers_are_refused_or_true(case: tuple[Any, int]) -> None:
    header, nbytes = case
    encoded = json.dumps(header).encode()
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder, "x.safetensors")
        path.write_bytes(len(encoded).to_bytes(8, "little") + encoded + bytes(nbytes))
        tensors = attempt(read_file, path)
    if tensors is None:
        return
    start = 8 + len(encoded)
    assert list(tensors) == sorted(header, key=lambda name: list(tensors).index(name))
    for name, stored in tensors.items():
        assert [stored.dtype, list(stored.shape)] == [header[name]["dtype"], header[name]["shape"]]
        assert stored.nbytes * 8 == math.prod(stored.shape) * BITS[stored.dtype]
        assert start <= stored.offset
        assert stored.offset + stored.nbytes <= start + nbytes


entries = st.fixed_dictionaries(
    {"shape": st.lists(sizes, min_size=1, max_size=3), "block": sizes | st.just(4)},
    optional={
        "more": json_values,
        "pattern": st.sampled_from(["1:4", "4:8", "50%", "3:16", "2 :4"]) | json_values,
        "count": sizes,
    },
)
metadata = st.fixed_dictionaries(
    {
        "quant_method": st.just("armor"),
        "format": st.just(1) | json_values,
        "pattern": st.sampled_from(["2:4", "4:8", "50%"]) | json_values,
        "layers": st.dictionaries(st.text() | st.just("a.b"), entries | json_values) | json_values,
    }
)


@given(metadata | json_values)
@settings(max_examples=400)
def test_metadata_is_refused_or_means_what_it_says(data: Any) -> None:
    layers = attempt(from_metadata, data)
    if layers is None:
        return
    assert from_metadata(to_metadata(layers)) == layers
    for name, entry in data["layers"].items():
        spec = layers[name]
        assert entry["shape"] == list(spec.shape)
        assert entry["block"] == spec.block
        assert entry.get("pattern", data["pattern"]) == str(spec.pattern)
        assert entry.get("count") == spec.count


PATTERNS = st.sampled_from(["2:4", "4:8", "1:2", "1%", "99%"]).map(Pattern.parse)


@given(
    st.dictionaries(
        st.from_regex(r"[a-z0-9_]{1,9}(\.[a-z0-9_]{1,9}){0,4}", fullmatch=True),
        st.tuples(st.integers(4, 9999), st.integers(4, 9999), st.sampled_from([None, 4]), PATTERNS),
        min_size=1,
    )
)
def test_sound_metadata_is_read(
    given_layers: dict[str, tuple[int, int, int | None, Pattern]],
) -> None:
    layers = {
        name: LayerSpec((r, c), block, own, own.count((r, c)) if own.is_unstructured else None)
        for name, (r, c, block, own) in given_layers.items()
    }
    assert from_metadata(json.loads(json.dumps(to_metadata(layers)))) == layers


@given(json_values)
def test_json_is_read_as_written(data: Any) -> None:
    text = json.dumps(data, allow_nan=True)
    assert json.dumps(parse_json(text.encode()), allow_nan=True) == text


@given(st.binary(max_size=60))
def test_any_bytes_as_json(raw: bytes) -> None:
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder, "x.json")
        path.write_bytes(raw)
        assert isinstance(attempt(read_json, path), dict | None)


@pytest.mark.parametrize(
    ("raw", "reason"),
    [
        (b'{"a": 1, "a": 2}', "the same key twice"),
        (b'{"a": {"b": 1, "c": 2, "b": 1}}', "the same key twice"),
        (b'{"a": ' + b"[" * 100 + b"]" * 100 + b"}", "nested too deeply"),
        (b"[" * 10**6, "nested too deeply"),
        (b'{"a": "\\ud800"}', "surrogates not allowed"),
        (b'{"a": "\xff"}', "invalid start byte"),
        (b"\xff\xfe{\x00}\x00", "invalid start byte"),
        (b'{"a": ' + b"9" * 5000 + b"}", "4300 digits"),
        (b'{"a": 1', "Expecting"),
        (b"", "Expecting value"),
    ],
)
def test_json_that_is_refused(tmp_path: Path, raw: bytes, reason: str) -> None:
    (tmp_path / "x.json").write_bytes(raw)
    with pytest.raises(ArmorError, match=reason) as caught:
        read_json(tmp_path / "x.json")
    assert str(caught.value).isprintable()
    assert "copy or download" in str(caught.value)


def test_a_pair_of_surrogates_is_a_character() -> None:
    assert parse_json(b'{"a": "\\ud83d\\ude00"}') == {"a": "\U0001f600"}


def test_json_of_a_terabyte(tmp_path: Path) -> None:
    with (tmp_path / "x.json").open("wb") as file:
        os.truncate(file.fileno(), 10**12)
    with pytest.raises(ArmorError, match="larger than 64 MB"):
        read_json(tmp_path / "x.json")


def test_what_a_message_quotes_is_short_and_printable() -> None:
    deep: list[Any] = []
    for _ in range(10_000):
        deep = [deep]
    for value in (deep, 10**4000, "\x1b[2J\n" * 100, "\ud800", {"a": deep}, list(range(10**6))):
        assert len(short(value)) <= 60
        assert short(value).isprintable()
