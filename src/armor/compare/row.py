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
        kl: by text name, the mean divergence of the predictions from the dense model's, nats a
            token; None of the dense model, and where it was not measured.
        rival: spends other bytes than a bare core, by a size, low rank or rounding.
        stored_dense: `linear_bytes` counts a compact form; the checkpoint itself is dense.
    """

    label: str
    method: str
    perplexity: dict[str, float]
    linear_bytes: int
    dense_linear_bytes: int
    seconds: float
    gap_left: dict[str, float] | None = None
    kl: dict[str, float] | None = None
    rival: bool = False
    stored_dense: bool = False

    @property
    def is_yardstick(self) -> bool:
        """Whether `gap_left` may be measured by this row: a baseline with nothing but its core."""
        return self.method not in ("dense", "armor") and not self.rival

    @classmethod
    def read(cls, data: Mapping[str, Any]) -> Row:
        """The inverse of `to_dict`, of a file in which infinity is null.

        Raises:
            TypeError, AttributeError: no row.
        """
        known = {name: data[name] for name in (f.name for f in fields(cls)) if name in data}
        row = cls(**known)
        kl = None if row.kl is None else _finite(row.kl)
        return replace(row, perplexity=_finite(row.perplexity), kl=kl)

    def to_dict(self) -> dict[str, Any]:
        """A JSON-ready dict."""
        return asdict(self)


def _finite(values: Mapping[str, float | None]) -> dict[str, float]:
    return {text: inf if value is None else value for text, value in values.items()}
