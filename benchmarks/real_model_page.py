"""The page of benchmarks/real_model.py, from its JSON."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from typing import Any

#: The row that the others are compared with.
OWN = "armor"
#: Rows of at most this many times its bytes count as no larger: shares of layers come in steps.
NO_LARGER = 1.005

Facts = Mapping[str, Any]
BOS = {"never": "without BOS", "always": "that begin with BOS"}


def page(data: Facts) -> str:
    """Everything that `data`, the contents of real_model.json, has so far, as Markdown."""
    rows = data["rows"]
    texts = list(rows[0]["perplexity"])
    lines = ["# Every method on a real model", "", *_head(data)]
    lines += ["", "## Perplexity and KL", "", "### 2:4", ""]
    lines += [*_perplexities([row for row in rows if not row["rival"]], texts)]
    if rivals := [row for row in rows if row["rival"]]:
        own = [row for row in rows if row["label"] == OWN]
        lines += ["", f"### What the bytes of {OWN} buy otherwise, and rounding", ""]
        lines += [*_perplexities([*own, *rivals], texts)]
    if any(row["stored_dense"] for row in rows):
        lines += ["", "\\* bytes of a compact form; the files themselves are stored dense."]
    for key, name in (("perplexity", "perplexity"), ("kl", "KL")):
        if (said := ahead(rows, key, name)) is not None:
            lines += ["", said]
    if data["tasks"]:
        lines += ["", "## Tasks, in percent", "", *_tasks(data["tasks"])]
    return "\n".join(lines) + "\n"


def ahead(rows: Sequence[Facts], key: str, name: str) -> str | None:
    """Which rows have a lower `key` ("perplexity" or "kl") than `OWN` at no more bytes.

    None where that row is not there yet, or is the only one that was pruned.
    """
    own = next((row for row in rows if row["label"] == OWN), None)
    others = [row for row in rows[1:] if row["label"] != OWN]
    if own is None or not others:
        return None
    found = []
    for row in others:
        if row["linear_bytes"] > NO_LARGER * own["linear_bytes"]:
            continue
        texts = [text for text in own[key] if _value(row, key, text) < _value(own, key, text)]
        if texts:
            found.append(f"{row['label']} on {' and '.join(texts)}")
    said = "; ".join(found) or "none"
    return f"Lower {name} than {OWN} at no more bytes (to 0.5 %): {said}."


def _head(data: Facts) -> list[str]:
    options, machine, versions = data["options"], data["machine"], data["versions"]
    samples, length = options["samples"], options["seq_len"]
    read = [
        f"{name}, {about['tokens']:,} predicted tokens in {about['windows']} windows"
        for name, about in data["texts"].items()
    ]
    first, *others = data["texts"]
    return [
        f"{options['model']}: windows of {length} tokens {BOS[data['bos']]}, in calibration and"
        f" evaluation; calibrated on {samples * length:,} tokens ({samples} windows) of"
        f" {data['calibration']}; the first {options['max_chars']:,} characters of each evaluation"
        f" text are read ({'; '.join(read)}); evaluated in float32; {machine['cpu']},"
        f" {machine['threads']} threads, {data['date']}, revision {data['revision']}, torch"
        f" {versions['torch']}, transformers {versions['transformers']}.",
        "",
        f"{first} is of the calibration's domain; {', '.join(others)} are of others. *KL*:"
        " KL(dense || row) of the predictions, nats a token. *Gap left*: on the first text, of the"
        " best baseline's perplexity gap to dense. *MB*, *of dense*: the decoder's linears as"
        " stored; wrappers cost bytes, so rows of armor are larger than the baselines beside them."
        " *Seconds*: of pruning (>: interrupted, the last part alone). *GB*: peak resident memory"
        " of pruning (where Linux resets it; what earlier rows left in the process counts)."
        " *Held out*: error on held-out calibration windows over that on the fitted ones.",
    ]


def _perplexities(rows: Sequence[Facts], texts: Sequence[str]) -> list[str]:
    heads = ["method"]
    for text in texts:
        heads += [text, "KL"]
    heads += ["gap left", "MB", "of dense", "seconds", "GB", "held out"]
    body = []
    for row in rows:
        cells = [row["label"]]
        for text in texts:
            cells += [_number(row["perplexity"][text], ".3f"), _kl(row, text)]
        gap = (row["gap_left"] or {}).get(texts[0])
        star = "\\*" if row["stored_dense"] else ""
        cells += [
            "-" if gap is None else f"{gap:.1%}",
            f"{row['linear_bytes'] / 1e6:.1f}{star}",
            f"{row['linear_bytes'] / max(row['dense_linear_bytes'], 1):.3f}",
            _seconds(row),
            _given(row["peak_memory_bytes"], 1e-9),
            _given(row["generalisation"]),
        ]
        body.append(cells)
    return _table(heads, body)


def _tasks(tasks: Mapping[str, Sequence[Facts]]) -> list[str]:
    """Accuracy and, where there is one, that by length, each with its standard error."""
    columns: dict[tuple[str, str], int] = {}  # with the number of documents
    cells: dict[str, dict[tuple[str, str], str]] = {}
    for label, found in tasks.items():
        own = cells.setdefault(label, {})
        for result in found:
            for metric in ("acc", "acc_norm"):
                if metric in result:
                    column = (result["task"], metric)
                    columns[column] = result["n"]
                    error = result[f"{metric}_stderr"]
                    said = "-" if error is None else f"{100 * error:.1f}"
                    own[column] = f"{100 * result[metric]:.1f} ± {said}"
    heads = [f"{task} {metric}" for task, metric in columns]
    body = [
        [label, *(own.get(column, "...") for column in columns)] for label, own in cells.items()
    ]
    counts = " and ".join(f"{count:,}" for count in sorted(set(columns.values())))
    return [
        *_table(["method", *heads], body),
        "",
        f"No shots; the first {counts} documents of each task, the same for every row; ± one"
        " standard error of the figure. *acc_norm*: by likelihood a letter of the answer."
        " winogrande is scored by partial evaluation; lambada asks whether the last word is the"
        " greedy continuation.",
    ]


def _value(row: Facts, key: str, text: str) -> float:
    """For a comparison; null in the JSON is infinity."""
    value = (row[key] or {}).get(text)
    return float("inf") if value is None else float(value)


def _number(value: float | None, form: str) -> str:
    if value is None:
        return "inf"
    return f"{value:{form}}" if value < 1000 else f"{value:,.0f}"


def _kl(row: Facts, text: str) -> str:
    return "-" if row["kl"] is None else _number(row["kl"][text], ".4f")


def _seconds(row: Facts) -> str:
    """Of the last part alone where the run was interrupted: more than that."""
    if not row["seconds"]:
        return "-"
    return f"{'> ' if row['resumed_layers'] else ''}{_number(row['seconds'], '.1f')}"


def _given(value: float | None, scale: float = 1.0) -> str:
    return "-" if value is None else f"{value * scale:.2f}"


def _table(heads: Sequence[str], body: Iterable[Sequence[str]]) -> list[str]:
    rule = "|" + "---|" * len(heads)
    return [f"| {' | '.join(heads)} |", rule, *(f"| {' | '.join(row)} |" for row in body)]
