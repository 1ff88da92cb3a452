"""compare: several pruning settings on one model, each pruned, stored, loaded and measured."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from functools import cache, partial
from math import inf
from pathlib import Path
from typing import Any

from armor.checkpoint.folder import check_outside
from armor.checkpoint.lock import Lock
from armor.compare.checkpoints import DENSE, Checkpoints
from armor.compare.equal_bytes import SameBytes
from armor.compare.row import Row
from armor.config import PruneConfig
from armor.evaluation.measure import Measurement
from armor.methods import METHODS
from armor.models.load import load_tokenizer
from armor.run.prune import Progress
from armor.run.shared import Shared
from armor.text.bos import bos_choice, resolve_bos
from armor.text.source import TextLike

#: The folder of the measurements, one file a label.
MEASURED = "measured"
#: What the runs share; removed at the end.
SHARED = ".shared"
Windows = Callable[[int, int], None]


def compare(
    model: str,
    settings: Mapping[str, PruneConfig | SameBytes],
    texts: Mapping[str, TextLike],
    out: Path,
    *,
    seq_len: int | None = None,
    max_chars: int | None = None,
    bos: str = "auto",
    device: str = "cpu",
    on_start: Callable[[str], Progress] = lambda label: Progress(),
    on_text: Callable[[str, str], Windows] = lambda label, text: lambda done, total: None,
    on_row: Callable[[list[Row]], None] = lambda rows: None,
) -> list[Row]:
    """Prune `model` with every setting and measure each on every text.

    What `out` already holds is not done again: neither a checkpoint of the same model, settings and
    calibration text, nor its perplexity on the same text. The settings share the calibration tokens
    and, where they need nothing but the dense model's moments (magnitude, NoWag-P, armor with dense
    targets), those; each of the others reads its own pruned model. Predictions are compared with
    the dense model's, which is in memory together with the one that is measured.

    Args:
        model: folder or Hub id of the dense model.
        settings: by label; one with the bytes of another row comes after it.
        texts: evaluation texts by name.
        out: folder for one checkpoint a label, results.json and the measurements.
        bos: "auto", "always" or "never": whether windows of the texts begin with BOS; how the
            models are calibrated, `settings` say.
        device: "cpu" or "cuda", to prune and to evaluate on.
        on_start: called with each label (and "dense") before its work; gives its display.
        on_text: called with a label and a text's name before it is read; gives what is called with
            the windows done and their number.
        on_row: called with the rows so far after each label.

    Returns:
        The dense model's row, then one for each setting, in order.
    """
    if Path(model).is_dir():
        check_outside(out, Path(model))
    bos, settings = decide_bos(model, bos, settings)
    out.mkdir(parents=True, exist_ok=True)
    lock = Lock(out / ".lock", f"another comparison is working in {out}", "choose another --out")
    rows: list[Row] = []
    with lock, Shared(out / SHARED) as shared:
        store = Checkpoints(out, model)
        for label, given in {DENSE: None, **settings}.items():
            config = _settled(given, model, out, store)
            known = config is None or store.is_done(label, config)
            work = measurement(out, label, model, device, bos) if known else None
            wanted = [(text, seq_len, max_chars) for text in texts.values()]
            progress = None
            if work is None or not all(work.knows_perplexity(*args) for args in wanted):
                progress = on_start(label)
            if config is not None and not known:
                store.prune(label, config, device, progress or Progress(), shared)
            work = work or measurement(out, label, model, device, bos)
            found = {
                name: work.perplexity(text, seq_len, max_chars, on_text(label, name))
                for name, text in texts.items()
            }
            rows.append(make_row(label, config, found, store.sizes(label)))
            store.write(with_gaps(rows), texts, seq_len, max_chars, bos)
            on_row(with_gaps(rows))
    return with_gaps(rows)


def measurement(out: Path, label: str, model: str, device: str, bos: str = "auto") -> Measurement:
    """What is measured about one label of the comparison in `out`."""
    folder = out / MEASURED
    folder.mkdir(exist_ok=True)
    checkpoint = model if label == DENSE else str(out / label)
    reference = None if label == DENSE else model
    return Measurement(checkpoint, device, folder / f"{label}.json", reference=reference, bos=bos)


def _settled(
    given: PruneConfig | SameBytes | None, model: str, out: Path, store: Checkpoints
) -> PruneConfig | None:
    if isinstance(given, SameBytes):
        return given.settle(model, out, store.sizes(given.label))
    return given


def make_row(
    label: str,
    config: PruneConfig | None,
    found: Mapping[str, Mapping[str, Any]],
    sizes: Mapping[str, Any],
) -> Row:
    """The row of a model, without its gaps.

    Args:
        config: None of the dense model. found: `Measurement.perplexity` by text name.
    """

    def values(key: str) -> dict[str, float]:
        return {name: inf if row[key] is None else row[key] for name, row in found.items()}

    if config is None:
        return Row(label, DENSE, values("perplexity"), **sizes)
    method = METHODS[config.method]
    return Row(
        label,
        config.method,
        values("perplexity"),
        **sizes,
        kl=values("kl"),
        rival=method.is_plain or (config.size is not None and not method.wrappers),
        stored_dense=method.is_plain,
    )


def bos_of_model(model: str, choice: str) -> str:
    """What ``--bos`` means for `model`: "always" or "never", for which no tokenizer is loaded.

    Raises:
        ArmorError: an unknown choice, no such model, or no BOS token.
    """
    if bos_choice(choice) == "never":
        return "never"
    return resolve_bos(choice, load_tokenizer(model))


def decide_bos(
    model: str, bos: str, settings: Mapping[str, PruneConfig | SameBytes]
) -> tuple[str, dict[str, PruneConfig | SameBytes]]:
    """`bos` and the settings, whose own it may differ from, as `bos_of_model` decides them."""
    decide = cache(partial(bos_of_model, model))

    def decided(given: PruneConfig | SameBytes) -> PruneConfig | SameBytes:
        if isinstance(given, SameBytes):
            return replace(given, config=replace(given.config, bos=decide(given.config.bos)))
        return replace(given, bos=decide(given.bos))

    return decide(bos), {label: decided(given) for label, given in settings.items()}


def with_gaps(rows: Sequence[Row]) -> list[Row]:
    """The rows with the dense model's sizes filled in and `gap_left` where baselines were run.

    The yardstick is the best row with `Row.is_yardstick`, text by text.
    """
    dense = rows[0].perplexity
    baselines = [row for row in rows[1:] if row.is_yardstick]
    size = max((row.dense_linear_bytes for row in rows), default=0)
    done = [replace(rows[0], linear_bytes=size, dense_linear_bytes=size)]
    for row in rows[1:]:
        gaps = {}
        for name, value in row.perplexity.items():
            gap = min((base.perplexity[name] for base in baselines), default=dense[name])
            if gap > dense[name]:
                gaps[name] = (value - dense[name]) / (gap - dense[name])
        done.append(replace(row, gap_left=gaps or None))
    return done
