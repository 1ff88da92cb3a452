"""What is measured about one model: kept in a record; the model loads if something is missing."""

from __future__ import annotations

from collections.abc import Callable
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch

from armor.checkpoint.folder import unfinished_folder
from armor.errors import ArmorError
from armor.evaluation.perplexity import evaluate
from armor.evaluation.record import Record, key_of, model_id
from armor.models.folder import ModelFolder
from armor.models.load import load_model, load_tokenizer
from armor.text.bos import bos_choice, resolve_bos
from armor.text.source import TextLike
from armor.text.sources import parse_source

if TYPE_CHECKING:
    from armor.evaluation.harness import TaskList
    from armor.evaluation.tasks import TaskSpec


class Measurement:
    """The measurements of one model, dense or pruned.

    Attributes:
        reused: how many rows came out of the record.
    """

    def __init__(
        self,
        model: str,
        device: str = "cpu",
        record: Path | None = None,
        fresh: bool = False,
        reference: str | None = None,
        bos: str = "auto",
    ) -> None:
        """Find the model; its weights are read when they are first needed.

        Args:
            model: folder or Hub id.
            device: "cpu" (in float32) or "cuda" (in the dtype of the checkpoint).
            record: JSON file that keeps the results; see `Record`.
            fresh: measure again what `record` holds.
            reference: folder or Hub id of a model to compare predictions with; on the same device.
            bos: "auto", "always" or "never": whether windows begin with BOS; see `evaluate`.

        Raises:
            ArmorError: no such model, or one whose pruning is not finished.
        """
        self.folder = _open_finished(model)
        self.reference = reference
        self._bos = bos
        self._reference_folder = None if reference is None else _open_finished(reference)
        self.device = device
        self.reused = 0
        about = {"model": model, "model_id": model_id(self.folder.path)}
        dtype = "float32" if device == "cpu" else None
        self.record = Record(record, {**about, "dtype": dtype, "device": device}, fresh)

    @property
    def dtype(self) -> str | None:
        """The dtype of the weights in use, such as "bfloat16"."""
        return self.record.about["dtype"]

    @cached_property
    def network(self) -> Any:
        """The model, loaded."""
        network = self._load(self.folder)
        self.record.about["dtype"] = str(network.dtype).removeprefix("torch.")
        return network

    @cached_property
    def reference_network(self) -> Any:
        """The reference, loaded; None without one. Raises `ArmorError` for another vocabulary."""
        folder = self._reference_folder
        if folder is None:
            return None
        if load_tokenizer(folder).get_vocab() != self.tokenizer.get_vocab():
            raise ArmorError(
                f"{self.reference} has another vocabulary than {self.folder.path}; predictions"
                " compare over one vocabulary only: give the model it was made from as --reference"
            )
        return self._load(folder)

    @cached_property
    def tokenizer(self) -> Any:
        """Its tokenizer, loaded."""
        return load_tokenizer(self.folder)

    @cached_property
    def bos(self) -> str:
        """Whether windows begin with BOS: "always" or "never". Raises `ArmorError`: no BOS."""
        # "never" needs no tokenizer: what is known already loads nothing.
        never = bos_choice(self._bos) == "never"
        return "never" if never else resolve_bos(self._bos, self.tokenizer)

    def perplexity(
        self,
        text: TextLike,
        seq_len: int | None = None,
        max_chars: int | None = None,
        progress: Callable[[int, int], None] = lambda done, total: None,
    ) -> dict[str, Any]:
        """The row of a text: `PerplexityResult.to_dict` and ``max_chars``; see `evaluate`.

        With a reference, ``reference`` is its name.
        """

        def measure() -> dict[str, Any]:
            reference = self.reference_network  # refused before the model is read
            result = evaluate(
                self.network,
                self.tokenizer,
                text,
                seq_len=seq_len,
                max_chars=max_chars,
                reference=reference,
                bos=self.bos,
                progress=progress,
            )
            named = {} if reference is None else {"reference": self.reference}
            return {**result.to_dict(), "max_chars": max_chars, **named}

        return self._row("perplexity", self._key(text, seq_len, max_chars), measure)

    def knows_perplexity(
        self, text: TextLike, seq_len: int | None = None, max_chars: int | None = None
    ) -> bool:
        """Whether `perplexity` has the row in its record."""
        return self.record.known(self._key(text, seq_len, max_chars)) is not None

    def task(self, tasks: TaskList, spec: TaskSpec, batch_size: int = 8) -> dict[str, Any]:
        """The row of a task: `TaskResult.to_dict`; see `run_task`."""
        from armor.evaluation.harness import run_task

        return self._row(
            "tasks",
            self._task_key(tasks, spec),
            lambda: run_task(tasks, spec, self.network, self.tokenizer, batch_size).to_dict(),
        )

    def knows_task(self, tasks: TaskList, spec: TaskSpec) -> bool:
        """Whether `task` has the row in its record."""
        return self.record.known(self._task_key(tasks, spec)) is not None

    def _task_key(self, tasks: TaskList, spec: TaskSpec) -> str:
        return key_of("task", spec.name, spec.shots, spec.limit, tasks.files_id, self.device)

    def _key(self, text: TextLike, seq_len: int | None, max_chars: int | None) -> str:
        folder = self._reference_folder
        other = [] if folder is None else [model_id(folder.path)]
        if self.bos == "always":
            other.append("bos")
        return key_of(
            "perplexity", parse_source(text).identity(), seq_len, max_chars, self.device, *other
        )

    def _load(self, folder: ModelFolder) -> Any:
        dtype = torch.float32 if self.device == "cpu" else None
        return load_model(folder, dtype, self.device)

    def _row(self, kind: str, key: str, measure: Callable[[], dict[str, Any]]) -> dict[str, Any]:
        row = self.record.known(key)
        if row is None:
            row = measure()
        else:
            self.reused += 1
        self.record.add(kind, key, row)
        return row


def _open_finished(model: str) -> ModelFolder:
    """Open `model`. Raises `ArmorError`: no such model, or its pruning is not finished."""
    if not Path(model).exists() and unfinished_folder(Path(model)).is_dir():
        raise ArmorError(
            f"{model} is not finished: give the same armor prune command again to finish it"
        )
    return ModelFolder.open(model)
