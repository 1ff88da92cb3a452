"""tune: a pruned checkpoint in, one of the same form that predicts more as the dense model does."""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from torch import Tensor, nn

from armor.calibrate.stream import BATCH_TOKENS
from armor.checkpoint.changed import write_changed
from armor.checkpoint.folder import unfinished_folder
from armor.checkpoint.reader import Checkpoint
from armor.checkpoint.tuning import Curve, TuningRecord
from armor.config import PruneConfig
from armor.device import kind_of_device
from armor.errors import ArmorError
from armor.memory import give_freed_memory, keep_freed_memory, peak_memory
from armor.models.digest import digest_weights
from armor.models.folder import ModelFolder
from armor.models.load import load_tokenizer
from armor.models.streamed import StreamedModel
from armor.run.finished import ASKED, TUNING, check_place, check_tuning
from armor.run.layer_names import LayerNames
from armor.run.manifest import code_digest, digest, hash_tensors
from armor.run.open import open_model
from armor.run.own_text import draw_windows
from armor.run.placement import Placement
from armor.text.bos import BOS_CHOICES, bos_choice, resolve_bos
from armor.text.sources import parse_source
from armor.text.windows import check_window, context_length, default_window
from armor.tuning.block import BlockTuning, parts_of
from armor.tuning.config import (
    BLOCK,
    HELD_OUT,
    HELD_OUT_SHARE,
    MOST_TOKENS,
    TOKENS,
    TuneConfig,
)
from armor.tuning.full import FullTuning, parts
from armor.tuning.keeper import Text
from armor.tuning.learner import Spec
from armor.tuning.plan import Plan, make_block_plan
from armor.tuning.state import State
from armor.tuning.team import make_team, sensible_workers
from armor.versions import versions

#: Why some folders are refused.
ROUNDED = "factors rounded to few bits cannot be trained"


@dataclass(frozen=True)
class TuneResult:
    """A finished run of tuning.

    Attributes:
        out: the checkpoint folder. curve: of the held-out divergence; its best step is stored.
        resumed: steps that an interrupted run had taken before.
        found: the checkpoint was there already, made by the same call, and nothing was done.
    """

    out: Path
    curve: Curve
    seconds: float
    resumed: int = 0
    found: bool = False


@dataclass(frozen=True)
class TuneProgress:
    """Callbacks of a run, for a display: every one may be left out.

    Attributes:
        planned: before anything is loaded.
        stepped: with steps taken, steps in all, the latest divergence on held-out windows and the
            latest on trained ones.
    """

    planned: Callable[[Plan], None] = lambda plan: None
    stepped: Callable[[int, int, float, float], None] = lambda done, total, held_out, trained: None


def tune(
    folder: str | Path,
    reference: str | Path,
    config: TuneConfig,
    out: str | Path,
    fresh: bool = False,
    device: str = "auto",
    progress: TuneProgress | None = None,
    engine: str = "local",
    workers: int | None = None,
) -> TuneResult:
    """Train A, S, B, biases and norms of a checkpoint on the dense model: on its predictions, or
    block by block on what its blocks put out.

    Masks, form and size stay as they are. Windows that are never trained on judge what would be
    stored; the best of what they saw is written, the checkpoint as it was if no step lowered their
    divergence from the dense model. Interrupted, the same call goes on, to the same bytes; they do
    not depend on `engine` or `workers`.

    Args:
        folder: an armor checkpoint, its path or Hub id. reference: the dense model it was made of.
        config: what to do.
        out: the new folder. Written at the very end, complete or not at all.
        fresh: start over, and replace an `out` that armor itself wrote, once the new one is ready.
        device: "cpu", "cuda", "cuda:N" for one of several, or "auto" for a GPU if there is one.
        progress: callbacks of a display.
        engine: "local", or "ray" for a Ray cluster. workers: processes that share the windows of a
            step; None takes one a GPU, one on the CPU. Of the mode "full" alone.

    Raises:
        ArmorError: an unusable checkpoint, reference, text or output folder, too little memory, an
            interrupted run with other settings, a full disk.
    """
    begin = time.perf_counter()
    placement, out = Placement.parse(engine, workers, device, None), Path(out).absolute()
    if config.mode == BLOCK and (engine != "local" or (workers or 1) > 1):
        raise ArmorError("one process tunes block by block: leave --engine and --workers out")
    asked = asked_for(config)
    there = check_place(out, folder, fresh)
    check_place(out, reference, fresh)
    work = _Work.open(folder, reference, config, unfinished_folder(out), placement.device)
    manifest = work.manifest(placement.device)
    if there and not fresh:
        return TuneResult(
            out, work.finished(out, manifest, asked), time.perf_counter() - begin, found=True
        )
    state = State(out, manifest, fresh)
    try:
        changed, curve = work.run(state, placement, progress or TuneProgress())
        seconds = time.perf_counter() - begin
        record = work.record(manifest, asked, curve, state.resumed, seconds)
        state.check_lock()
        write_changed(work.checkpoint, out, changed, record, there)
        state.remove()
    finally:
        state.close()
    return TuneResult(out, curve, seconds, state.resumed)


@dataclass(frozen=True)
class _Work:
    """What a run works on.

    Attributes:
        pruned, dense: the folders. checkpoint: of the pruned one.
        config: the settings, with the number of windows. windows: token ids, (samples, seq).
    """

    pruned: ModelFolder
    dense: ModelFolder
    checkpoint: Checkpoint
    config: TuneConfig
    windows: Tensor

    @classmethod
    def open(
        cls,
        folder: str | Path,
        reference: str | Path,
        config: TuneConfig,
        unfinished: Path,
        device: str,
    ) -> _Work:
        """Read all that is needed but the weights. Raises `ArmorError`.

        Args:
            unfinished: where the run keeps what it has done. device: where a model writes text.
        """
        pruned, dense = ModelFolder.open(folder), ModelFolder.open(reference)
        checkpoint = Checkpoint.of(pruned.files)
        if any(spec.core is not None for spec in checkpoint.layers.values()):
            raise ArmorError(f"{folder}: {ROUNDED}: tune what was pruned without --core")
        dense.files.check_dense()
        tokenizer = load_tokenizer(pruned)
        if load_tokenizer(dense).get_vocab() != tokenizer.get_vocab():
            raise ArmorError(
                f"{reference} has another vocabulary than {folder}: give the model that it was"
                " made of as --reference"
            )
        _check_same_model(pruned, dense)
        config = _settled(config, checkpoint.run, context_length(pruned.config))
        config = replace(config, bos=resolve_bos(config.bos or "auto", tokenizer))
        assert config.seq_len is not None
        assert config.bos is not None
        windows = draw_windows(
            config.calibration,
            dense,
            config.most_samples(config.seq_len),
            config.seq_len,
            config.seed,
            config.bos,
            fewer=config.samples is None,
            keep=unfinished,
            device=device,
        )
        if len(windows) < 2:
            raise ArmorError("two windows at least: one to train on and one to judge by")
        return cls(pruned, dense, checkpoint, replace(config, samples=len(windows)), windows)

    @property
    def held_out(self) -> int:
        """How many windows judge: the last ones of the draw, which the pruning did not see if it
        drew fewer of the same text."""
        return max(1, min(HELD_OUT, len(self.windows) // HELD_OUT_SHARE))

    def manifest(self, device: str) -> dict[str, Any]:
        """What determines the result."""
        settings = self.config.to_dict()
        del settings["calibration"], settings["bos"]  # the tokens count
        return {
            "settings": settings,
            "calibration": hash_tensors({"windows": self.windows}),
            "weights": digest_weights(self.pruned.tensors),
            "reference": digest_weights(self.dense.tensors),
            "device": kind_of_device(device),
            "versions": versions("armor", "torch", "transformers", "python")
            | {"armor's code": code_digest("tuning")},
        }

    def run(
        self, state: State, placement: Placement, progress: TuneProgress
    ) -> tuple[dict[str, Tensor], Curve]:
        """What is to be changed in the checkpoint, and the curve.

        Raises:
            ArmorError: there is too little memory, or the loss is not finite.
        """
        cut, seq_len = len(self.windows) - self.held_out, self.windows.shape[1]
        work, device = (cut, seq_len, self.config.step_count), placement.device
        if self.config.mode == BLOCK:
            return self._run_blocks(state, device, progress, work)
        workers, is_here = placement.workers, placement.engine == "local"
        if is_here:
            together = parts(self.windows[: self.config.windows_of_step(seq_len)])
            workers = sensible_workers(workers, device, len(together))
        spec = Spec(
            self.pruned,
            self.dense,
            work,
            max(TOKENS, seq_len),
            workers if is_here and workers and device == "cpu" else 1,
            code_digest("tuning"),
        )
        if is_here:
            progress.planned(spec.plan(device))
        team = make_team(spec, placement.engine, workers, device, state.scratch)
        try:
            text = Text(self.windows[:cut], self.windows[cut:])
            return FullTuning(team, text, self.config, state, progress.stepped).run()
        finally:
            team.close()

    def _run_blocks(
        self, state: State, device: str, progress: TuneProgress, work: tuple[int, int, int]
    ) -> tuple[dict[str, Tensor], Curve]:
        """`run` block by block.

        Args:
            work: windows to train on, tokens of each, steps of a block.
        """
        cut, seq_len, steps = work
        tokens = max(BATCH_TOKENS, seq_len)
        model = self._streamed()
        steps *= len(parts_of(len(model.structure.blocks)))
        plan = make_block_plan(
            self.checkpoint, self.pruned.config, (cut, seq_len, steps), self.held_out, tokens
        )
        progress.planned(plan)
        names = LayerNames(model, self.checkpoint.layers)
        text = Text(self.windows[:cut], self.windows[cut:])
        if device == "cpu":
            keep_freed_memory()
        try:
            return BlockTuning(
                model, self.checkpoint, names, text, self.config, device, state, progress.stepped
            ).run()
        finally:
            give_freed_memory()

    def _streamed(self) -> StreamedModel:
        """The dense model with the linears that the checkpoint has, read as the pruning run did.

        Raises:
            ArmorError: the record of that run is missing or does not fit.
        """
        found, fields = self.checkpoint.run.get("config"), PruneConfig.__dataclass_fields__
        then = found if isinstance(found, dict) else {}
        known = {name: value for name, value in then.items() if name in fields}
        model = open_model(self.dense, PruneConfig.from_dict({**known, "calibration": ()}))
        modules = dict(model.model.named_modules())
        for name in self.checkpoint.layers:
            if not isinstance(modules.get(model.layout.path(name)), nn.Linear):
                raise ArmorError(
                    f"{self.pruned.path}: {name} is no linear of {self.dense.path} as its"
                    " armor_run.json says how to read it; take --mode full"
                )
        return model

    def record(
        self,
        manifest: dict[str, Any],
        asked: dict[str, Any],
        curve: Curve,
        resumed: int,
        seconds: float,
    ) -> dict[str, Any]:
        """The contents of armor_run.json: of the run that pruned, and of this one."""
        tuning = {
            "kind": self.config.mode,
            "config": asked_for(self.config),
            ASKED: asked,
            "run": digest(manifest),
            "before": curve.before,
            "after": curve.after,
            "best_step": curve.best,
            "curve": curve.to_dict(),
            "windows": {"trained": len(self.windows) - self.held_out, "held_out": self.held_out},
            "seconds": round(seconds, 3),
            "resumed_steps": resumed,
            "peak_memory_bytes": peak_memory(),
            "versions": versions("armor", "python", "torch", "transformers"),
        }
        return self.checkpoint.run | {TUNING: tuning}

    def finished(self, out: Path, manifest: dict[str, Any], asked: dict[str, Any]) -> Curve:
        """The curve of the finished checkpoint `out`. Raises `ArmorError`: it is of another run."""
        run = Checkpoint.open(out).run
        check_tuning(out, run, asked)
        if run[TUNING].get("run") != digest(manifest):
            raise ArmorError(
                f"{out} exists already and is of another run: a model, the text or armor itself"
                " changed; --fresh starts over, or choose another --out"
            )
        return curve_of(out)


def asked_for(config: TuneConfig) -> dict[str, Any]:
    """`config` as a JSON-ready dict, texts that were given as strings by number and SHA-256."""
    given = config.calibration
    return config.to_dict() | {"calibration": parse_source(given).record() if given else None}


def _check_same_model(pruned: ModelFolder, dense: ModelFolder) -> None:
    """Raise `ArmorError` where the two differ in kind or size."""
    for name in ("model_type", "hidden_size", "num_hidden_layers", "vocab_size"):
        own, other = (getattr(one.config.get_text_config(), name, None) for one in (pruned, dense))
        if own != other:
            raise ArmorError(
                f"{dense.path} is not the model that {pruned.path} was made of: {name} is {other},"
                f" not {own}"
            )


def _settled(config: TuneConfig, run: dict[str, Any], context: int | None) -> TuneConfig:
    """`config` with the text and its windows as the pruning run had them, where it says nothing.

    Raises:
        ArmorError: the text of the run is not known, or windows are longer than the context.
    """
    found = run.get("config")
    then: dict[str, Any] = found if isinstance(found, dict) else {}
    if not config.calibration:
        text = then.get("calibration")
        if not isinstance(text, str) or not text:
            raise ArmorError("no text to tune on: give --calibration FILE or hf:NAME")
        config = replace(config, calibration=text)
    if config.seq_len is None:
        length = then.get("seq_len")
        length = length if isinstance(length, int) else default_window(context, MOST_TOKENS)
        config = replace(config, seq_len=length)
    assert config.seq_len is not None
    check_window(config.seq_len, context)
    bos = bos_choice(then.get("bos"))
    return replace(config, bos=config.bos or (bos if bos in BOS_CHOICES else "auto"))


def curve_of(out: Path) -> Curve:
    """The curve of a tuned checkpoint. Raises `ArmorError`: its record is damaged."""
    record = TuningRecord.read(Checkpoint.open(out).run.get(TUNING))
    if record is None:
        raise ArmorError(f"{out}: the record of its tuning is damaged; --fresh starts over")
    return record.curve
