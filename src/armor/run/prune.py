"""prune: a model in, a checkpoint folder out."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from armor.checkpoint.assemble import assemble
from armor.checkpoint.folder import unfinished_folder
from armor.checkpoint.plain import PLAIN, assemble_plain
from armor.checkpoint.records import LayerRecord
from armor.checkpoint.tensorfile import StoredTensor
from armor.config import PruneConfig
from armor.device import kind_of_device
from armor.engines.engine import Scheduler
from armor.errors import ArmorError
from armor.methods import METHODS
from armor.models.digest import digest_weights
from armor.models.folder import ModelFolder
from armor.models.load import load_tokenizer
from armor.models.streamed import StreamedModel
from armor.run.finished import check_place, finished_records
from armor.run.jobs import solve
from armor.run.manifest import digest, make_manifest
from armor.run.open import open_planned, window_length
from armor.run.own_forward import check_own_forward
from armor.run.own_text import draw_windows
from armor.run.pipeline import Pipeline
from armor.run.placement import Placement, warn_of_slow_patterns
from armor.run.plan import LayerPlan
from armor.run.record import run_record
from armor.run.shared import DenseMoments, Shared
from armor.run.size.choose import check_size, choose
from armor.run.size.measure import Measurement
from armor.run.store import TRIALS, Store
from armor.run.streams import open_streams, start, stream_kinds
from armor.run.worker import Spec
from armor.sparse.layer import WEIGHT
from armor.sparse.pattern import Pattern
from armor.text.bos import resolve_bos


@dataclass(frozen=True)
class PruneResult:
    """A finished run: the checkpoint folder, the plan, and a record for every pruned layer.

    Attributes:
        resumed: the number of layers that an interrupted run had finished before.
        found: the checkpoint was there already, made by the same call, and nothing was done; the
            plan then has no blocks chosen by size.
    """

    out: Path
    plans: list[LayerPlan]
    records: dict[str, LayerRecord]
    seconds: float
    resumed: int = 0
    found: bool = False


@dataclass(frozen=True)
class Progress:
    """Callbacks of a run, for a display: every one may be left out.

    Attributes:
        measured: with a layer's name, how many are measured and how many there are, where a size
            is asked for; before `planned`.
        planned: with the plan, before anything is solved.
        resumed: with the finished layers' records and the names of damaged ones, if an interrupted
            run left any.
        started, finished: with a layer's name, when its solve begins and when it is on the disk.
    """

    measured: Callable[[str, int, int], None] = lambda name, done, total: None
    planned: Callable[[list[LayerPlan]], None] = lambda plans: None
    started: Callable[[str], None] = lambda name: None
    finished: Callable[[str, LayerRecord], None] = lambda name, record: None
    resumed: Callable[[dict[str, LayerRecord], list[str]], None] = lambda records, damaged: None


@contextmanager
def _plain_torch() -> Iterator[None]:
    """Whatever default device and mode the caller has set; a size needs gradients."""
    with torch.inference_mode(False), torch.device("cpu"):
        yield


@_plain_torch()
def prune(
    model: str | Path,
    config: PruneConfig,
    out: str | Path,
    fresh: bool = False,
    device: str = "auto",
    progress: Progress | None = None,
    engine: str = "local",
    workers: int | None = None,
    memory_budget: int | None = None,
    shared: Shared | None = None,
    tuning: Mapping[str, Any] | None = None,
) -> PruneResult:
    """Prune a causal language model and write the checkpoint.

    The model stays on the disk; one decoder block at a time is in memory. Each finished layer is
    kept in ``.OUT.run`` beside `out`, so that the same call goes on where it was interrupted; the
    folder goes when the checkpoint is complete, and the same call then does nothing. The bytes of
    the checkpoint do not depend on `engine`, `workers`, `memory_budget` or interruptions.

    Args:
        model: a folder with safetensors weights, or a Hub id.
        config: what to do; its calibration text is required.
        out: the new folder. Written at the very end, complete or not at all.
        fresh: start over, and replace an `out` that armor itself wrote, once the new one is ready.
        device: "cpu", "cuda", "cuda:N" for one of several, or "auto" for a GPU if there is one.
        progress: callbacks of a display.
        engine: "local", or "ray" for a Ray cluster.
        workers: processes; None takes one a GPU, or on the CPU as many as its size pays for.
        memory_budget: bytes of activations held in memory, the rest goes to files; None takes half
            of the memory that is free.
        shared: what earlier runs on the same model leave for this one.
        tuning: of an `out` that is there already: what it must have been tuned with.

    Raises:
        ArmorError: an unusable model, calibration text or output folder, an interrupted run with
            other settings, a full disk.
    """
    begin = time.perf_counter()
    progress = progress or Progress()
    placement = Placement.parse(engine, workers, device, memory_budget)
    shared = shared or Shared()
    out = Path(out).absolute()
    there = check_place(out, model, fresh)
    if not config.calibration:
        raise ArmorError("no calibration text: give --calibration FILE or hf:NAME")
    run = _Run.open(model, config, shared, unfinished_folder(out), placement.device)
    warn_of_slow_patterns(run.plans, run.config, placement.device)
    if config.size is None and (fresh or not there):
        progress.planned(run.plans)
    digests = shared.once("weights", lambda: digest_weights(run.folder.tensors))
    manifest = run.manifest(digests, kind_of_device(placement.device))

    def found() -> PruneResult:
        records = finished_records(out, manifest, run.config, tuning)
        return PruneResult(out, run.plans, records, time.perf_counter() - begin, found=True)

    if there and not fresh and not unfinished_folder(out).is_dir():
        return found()
    store = Store(out, manifest, fresh)
    try:
        there = check_place(out, model, fresh)  # again: who held the lock may have written it
        if there and not fresh:
            result = found()
            store.remove()
            return result
        resumed = len(store.layers)
        run, about = run.solve(store, manifest, placement, progress, shared)
        seconds = time.perf_counter() - begin
        about = {"seconds": round(seconds, 3), "resumed_layers": resumed, **about}
        records = run.write(store, out, str(model), about, there)
        store.remove()
    finally:
        store.close()
    return PruneResult(out, run.plans, records, seconds, resumed)


@dataclass(frozen=True)
class _Run:
    """What a run works on.

    Attributes:
        folder: the model's. model: its modules, empty. plans: of every linear.
        config: the settings, with the length of the windows. windows: token ids, (samples, seq).
        itemsize: bytes of a weight.
    """

    folder: ModelFolder
    model: StreamedModel
    config: PruneConfig
    plans: list[LayerPlan]
    windows: Tensor
    itemsize: int

    @classmethod
    def open(
        cls,
        model: str | Path,
        config: PruneConfig,
        shared: Shared,
        unfinished: Path,
        device: str,
    ) -> _Run:
        """Read all that is needed but the weights. Raises `ArmorError`.

        Args:
            unfinished: where the run keeps what it has done. device: where a model writes text.
        """
        folder = shared.once("folder", lambda: ModelFolder.open(model))
        folder.files.check_dense()
        streamed, plans, itemsize = open_planned(folder, config)
        if config.size is not None:
            check_size(plans, config, itemsize)
        tokenizer = load_tokenizer(folder)
        config = replace(
            config,
            seq_len=window_length(config, streamed.model),
            bos=resolve_bos(config.bos, tokenizer),
        )
        assert config.seq_len is not None
        drawn = (config.calibration, config.samples, config.seq_len, config.seed, config.bos)
        windows = shared.once(
            ("windows", *drawn, device),
            lambda: draw_windows(
                config.calibration, folder, *drawn[1:], keep=unfinished, device=device
            ),
        )
        return cls(folder, streamed, config, plans, windows, itemsize)

    def manifest(self, digests: Mapping[str, str], device: str) -> dict[str, Any]:
        """See `make_manifest`."""
        model = self.model.model.config.to_dict()
        return make_manifest(self.config, digests, model, self.windows, device)

    @property
    def todo(self) -> dict[str, LayerPlan]:
        """The layers to prune, by name."""
        return {plan.name: plan for plan in self.plans if not plan.dense}

    def check_own_forward(self, store: Store, placement: Placement, shared: Shared) -> None:
        """Before anything is solved: see `armor.run.own_forward`. Raises `ArmorError`."""
        if all(name in store.layers for name in self.todo):
            return
        config = self.config
        drawn = (config.calibration, config.samples, config.seq_len, config.seed, config.bos)
        about = ("own forward", *drawn, str(config.model), placement.device)
        try:
            shared.once(
                about, lambda: check_own_forward(self.model, self.windows, placement.device)
            )
        except ArmorError:
            if not store.layers and not (store.folder / TRIALS).exists():
                store.remove()
            raise

    def solve(
        self,
        store: Store,
        manifest: dict[str, Any],
        placement: Placement,
        progress: Progress,
        shared: Shared,
    ) -> tuple[_Run, dict[str, Any]]:
        """The run with its blocks chosen and all its layers in `store`; more for its record."""
        self.check_own_forward(store, placement, shared)
        run, about = self, {}
        resumed = {name: found.record for name, found in store.layers.items()}
        if self.config.size is not None:
            run, about["budget"] = self.with_blocks(store, manifest, placement, progress)
            progress.planned(run.plans)
        if resumed or store.damaged:
            progress.resumed(resumed, store.damaged)
        kept = None
        if stream_kinds(run.config) == ("dense",):
            kept = shared.moments(digest([manifest["calibration"], placement.device]))
        run.solve_missing(store, placement, progress, kept)
        return run, about

    def with_blocks(
        self, store: Store, manifest: dict[str, Any], placement: Placement, progress: Progress
    ) -> tuple[_Run, dict[str, Any]]:
        """The run with the blocks that its size asks for; for its record what was measured."""
        measurement = Measurement(
            self.model, self.config, self.windows, placement, self.plans, progress.measured
        )
        harms = measurement.harms(store, manifest)
        plans, about = choose(self.plans, self.config, self.itemsize, harms)
        return replace(self, plans=plans), about

    def solve_missing(
        self, store: Store, placement: Placement, progress: Progress, kept: DenseMoments | None
    ) -> None:
        """Solve the layers that `store` lacks."""
        plans = self.todo
        if all(name in store.layers for name in plans):
            return
        opened = open_streams(self.model, self.windows, store.scratch)
        spec = Spec.of(self.model, self.config, opened.calls, self.windows)
        engine = placement.open(spec, self.model, list(plans.values()), store.scratch)
        try:
            engine.on_start = lambda job: (
                progress.started(job.label) if job.function is solve else None
            )
            pipeline = Pipeline(
                self.model,
                plans,
                Scheduler(engine),
                store,
                torch.get_num_threads(),
                self.windows.numel(),
                progress.finished,
                kept,
            )
            if pipeline.run_kept():
                return
            kinds = stream_kinds(self.config)
            streams = start(engine, store, opened, pipeline.missing()[0], kinds)
            del opened
            pipeline.run(streams)
        finally:
            engine.close()

    def write(
        self, store: Store, out: Path, model: str, about: dict[str, Any], replaceable: bool
    ) -> dict[str, LayerRecord]:
        """The checkpoint, with the records of its layers, which it returns."""
        store.check_lock()
        records = {name: store.layers[name].record for name in self.todo}
        record = run_record(model, self.config, self.plans, records, run=store.identity, **about)
        if METHODS[self.config.method].is_plain:
            self._write_plain(store, out, record, replaceable)
            return records
        patterns = {
            name: Pattern.parse(plan.settings(self.config).pattern)
            for name, plan in self.todo.items()
        }
        assemble(
            self.model.files,
            out,
            _Layers(store, list(self.todo)),
            record,
            joined=self.model.layout.joined_with(self.todo),
            replace=replaceable,
            patterns=patterns,
            transposed=self.model.layout.transposed,
        )
        return records

    def _write_plain(
        self, store: Store, out: Path, record: dict[str, Any], replaceable: bool
    ) -> None:
        """The checkpoint of a method whose weights are not packed."""
        dense = sum(plan.shape[0] * plan.shape[1] for plan in self.todo.values()) * self.itemsize
        compact = sum(store.layers[name].record.compact_bytes or 0 for name in self.todo)
        assemble_plain(
            self.model.files,
            out,
            {name: store.stored(name)[WEIGHT] for name in self.todo},
            {**record, PLAIN: {"compact_bytes": compact, "dense_bytes": dense}},
            self.model.layout.joined,
            replaceable,
            self.model.layout.transposed,
        )


class _Layers(Mapping[str, Mapping[str, StoredTensor]]):
    """The finished layers of a store, on the disk, in the order of the plan."""

    def __init__(self, store: Store, names: list[str]) -> None:
        self._store = store
        self._names = names

    def __getitem__(self, name: str) -> Mapping[str, StoredTensor]:
        return self._store.stored(name)

    def __contains__(self, name: object) -> bool:
        return name in self._names

    def __iter__(self) -> Iterator[str]:
        return iter(self._names)

    def __len__(self) -> int:
        return len(self._names)
