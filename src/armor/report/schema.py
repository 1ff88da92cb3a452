"""What a report accepts from the JSON files it reads: the names and types of their rows."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

from armor.checkpoint.jsonfile import number
from armor.report.metrics import METRICS, is_figure, is_interval

Fields = Mapping[str, Callable[[Any], bool]]
_ABSENT = object()


def _text(value: Any) -> bool:
    return isinstance(value, str)


def _number(value: Any) -> bool:
    return number(value) is not None


def _flag(value: Any) -> bool:
    return isinstance(value, bool)


def _positive(value: Any) -> bool:
    return 0.0 < (number(value) or 0.0) < 1e30


def _count(value: Any) -> bool:
    return type(value) is int and 0 <= value < 2**63


def _count_or_null(value: Any) -> bool:
    return value is None or _count(value)


def _optional(check: Callable[[Any], bool]) -> Callable[[Any], bool]:
    return lambda value: value is _ABSENT or check(value)


def _table(check: Callable[[Any], bool]) -> Callable[[Any], bool]:
    return lambda value: isinstance(value, dict) and bool(value) and all(map(check, value.values()))


def _name(value: Any) -> bool:
    """A folder in the comparison's, and nowhere else."""
    return _text(value) and value not in ("", ".", "..") and not set(value) & set("/\\\0")


def eval_fields() -> dict[str, Fields]:
    """The lists in the JSON of ``armor eval``."""
    figures: dict[str, Callable[[Any], bool]] = {}
    for metric in METRICS:
        figures[metric.key] = is_figure if metric.required else _optional(is_figure)
        if metric.interval is not None:
            figures[metric.interval] = is_interval if metric.required else _optional(is_interval)
    return {
        "perplexity": {
            "source": _text,
            "seq_len": _count,
            "tokens": _count,
            "reference": _optional(_text),
            "bos": _optional(_flag),
            **figures,
        },
        "tasks": {
            "task": _text,
            "shots": _count,
            "metric": _text,
            "value": _number,
            "stderr": is_figure,
            "samples": _count,
        },
    }


BENCH: dict[str, Fields] = {
    "layers": {"layer": _text, "batch": _count, "contender": _text, "seconds": _positive},
    "model": {"contender": _text, "prefill": _number, "decode": _positive, "bytes": _count},
}
#: results.json of a comparison. The dense model's row may lack its sizes.
COMPARISON: dict[str, Fields] = {
    "rows": {
        "label": _name,
        "method": _text,
        "perplexity": _table(lambda value: value is None or _positive(value)),
        "linear_bytes": _count,
        "dense_linear_bytes": _count,
        "seconds": _number,
        "gap_left": lambda value: value in (None, _ABSENT) or _table(_number)(value),
        "kl": lambda value: value in (None, _ABSENT) or _table(is_figure)(value),
        "rival": _optional(lambda value: isinstance(value, bool)),
        "stored_dense": _optional(lambda value: isinstance(value, bool)),
    }
}
_HEAD: Fields = {
    "machine": lambda value: value is None or isinstance(value, dict),
    "seq_len": _count_or_null,
    "max_chars": _count_or_null,
    "bos": lambda value: value is None or _text(value),
    "texts": lambda value: value is None or isinstance(value, dict),
}


def fits(data: Mapping[str, Any], lists: Mapping[str, Fields]) -> bool:
    """Whether there is one of the lists, and every row of them has its fields."""
    found = [name for name in lists if name in data]
    return (
        bool(found)
        and all(check(data.get(name)) for name, check in _HEAD.items())
        and all(isinstance(data[name], list) for name in found)
        and all(
            isinstance(row, dict)
            and all(check(row.get(key, _ABSENT)) for key, check in lists[name].items())
            for name in found
            for row in data[name]
        )
    )
