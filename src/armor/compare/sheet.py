"""The sheet of a reproduction: measured figures beside the published ones, as Markdown."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from math import isfinite
from typing import Any

from armor.compare.row import Row
from armor.evaluation.tasks import TaskSpec

_ABSENT = "-"
_TO_COME = "..."


@dataclass
class Sheet:
    """What is known so far.

    Attributes:
        title: of the page. facts: printed above the tables, by name.
        labels: the rows, dense first. texts: the perplexities' columns.
        specs: the tasks' columns.
        published: by label, then by text or task; see `armor.compare.paper.published`.
        notes: below the tables.
        rows: of the comparison. tasks: by label and name, as `TaskResult.to_dict`.
    """

    title: str
    facts: Mapping[str, str]
    labels: Sequence[str]
    texts: Sequence[str]
    specs: Sequence[TaskSpec]
    published: Mapping[str, Mapping[str, float]] = field(default_factory=dict)
    notes: Sequence[str] = ()
    rows: list[Row] = field(default_factory=list)
    tasks: dict[str, dict[str, dict[str, Any]]] = field(default_factory=dict)

    def to_dict(self) -> dict[str, Any]:
        """All figures, JSON-ready."""
        return {
            "title": self.title,
            "facts": dict(self.facts),
            "rows": [row.to_dict() for row in self.rows],
            "tasks": {label: list(found.values()) for label, found in self.tasks.items()},
            "published": {label: dict(found) for label, found in self.published.items()},
        }

    def markdown(self) -> str:
        """The page; what is not measured yet shows as three dots."""
        lines = [f"# {self.title}", ""]
        lines += [f"- {name}: {value}" for name, value in self.facts.items()]
        lines += ["", "Every cell: measured / published.", "", "## Perplexity", ""]
        lines += self._perplexity()
        if self.specs:
            lines += ["", "## Tasks, in percent (shots in brackets)", "", *self._tasks()]
        if self.notes:
            lines += ["", *self.notes]
        return "\n".join(lines) + "\n"

    def _perplexity(self) -> list[str]:
        heads = ["method", *self.texts, "gap left", "linears of dense", "seconds"]
        known = {row.label: row for row in self.rows}
        body = []
        for label in self.labels:
            row = known.get(label)
            cells = [
                self._cell(label, text, row.perplexity[text] if row else None, "{:.3f}")
                for text in self.texts
            ]
            body.append([label, *cells, *(_gap_size_time(row) if row else [_TO_COME] * 3)])
        return _table(heads, body)

    def _tasks(self) -> list[str]:
        heads = ["method", *(self._head(spec) for spec in self.specs)]
        body = []
        for label in self.labels:
            found = self.tasks.get(label, {})
            values = [
                found[spec.name]["value"] if spec.name in found else None for spec in self.specs
            ]
            cells = [
                self._cell(label, spec.name, value, "{:.2f}", 100)
                for spec, value in zip(self.specs, values, strict=True)
            ]
            body.append([label, *cells])
        return _table(heads, body)

    def _head(self, spec: TaskSpec) -> str:
        done = [found[spec.name] for found in self.tasks.values() if spec.name in found]
        shots = done[0]["shots"] if done else spec.shots
        metric = done[0]["metric"] if done else "acc"
        kind = "" if metric == "acc" else f" {metric.replace(',', ' ')}"
        return f"{spec.name} ({'own' if shots is None else shots}){kind}"

    def _cell(
        self, label: str, column: str, value: float | None, form: str, scale: float = 1
    ) -> str:
        own = _TO_COME if value is None else _number(value * scale, form)
        theirs = self.published.get(label, {}).get(column)
        return f"{own} / {_ABSENT if theirs is None else f'{theirs * scale:.2f}'}"


def _gap_size_time(row: Row) -> list[str]:
    """Gap, size and time of a row."""
    return [
        _number(max(row.gap_left.values()) if row.gap_left else None, "{:.1%}"),
        _number(row.linear_bytes / max(row.dense_linear_bytes, 1), "{:.3f}"),
        _number(row.seconds or None, "{:.0f}"),
    ]


def _number(value: float | None, form: str) -> str:
    if value is None:
        return _ABSENT
    return form.format(value) if isfinite(value) else "inf"


def _table(heads: Sequence[str], body: Iterable[Sequence[str]]) -> list[str]:
    rule = "|" + "---|" * len(heads)
    return [f"| {' | '.join(heads)} |", rule, *(f"| {' | '.join(row)} |" for row in body)]
