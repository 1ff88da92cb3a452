"""Row: one line of a comparison."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, dataclass, fields, replace
from math import inf
from typing import Any


@dataclass(frozen=True)
class Row:
    """One line of the comparison.

    Attributes:
        label: "dense" or a key of the settings. method: the pruning method, "dense" for none.
        perplexity: by text name.
        gap_left: by text name, the share of the best baseline's gap to dense that is left.
        linear_bytes, dense_linear_bytes: the decoder's linears as stored, and as they were.
        seconds: wall time of the pruning run.
    """

    label: str
    method: str
    perplexity: dict[str, float]
    linear_bytes: int
    dense_linear_bytes: int
    seconds: float
    gap_left: dict[str, float] | None = None

    @classmethod
    def read(cls, data: Mapping[str, Any]) -> Row:
        """The inverse of `to_dict`, of a file in which infinity is null.

        Raises:
            TypeError, AttributeError: no row.
        """
        known = {name: data[name] for name in (f.name for f in fields(cls)) if name in data}
        row = cls(**known)
        finite = {text: inf if value is None else value for text, value in row.perplexity.items()}
        return replace(row, perplexity=finite)

    def to_dict(self) -> dict[str, Any]:
        """A JSON-ready dict."""
        return asdict(self)
