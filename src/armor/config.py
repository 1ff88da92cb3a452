"""PruneConfig: every choice of a pruning run in one frozen, validated dataclass."""

from __future__ import annotations

import dataclasses
from dataclasses import dataclass
from typing import Any

from armor.errors import ArmorError
from armor.methods import METHODS, packed_methods
from armor.recipe import check_description, check_overrides
from armor.sparse.levels import CORES, WRAPPERS
from armor.sparse.pattern import TWO_OF_FOUR, Pattern
from armor.text.bos import BOS_CHOICES, bos_choice

OBJECTIVES = ("full", "diag")
TARGETS = ("compensated", "dense")
SOLVERS = ("exact", "adam")
_DEFAULT = {"objective": "full", "target": "compensated", "solver": "exact"}
PRESETS: dict[str, dict[str, Any]] = {
    "default": _DEFAULT,
    # For a first look: an eighth of the work.
    "fast": {**_DEFAULT, "iterations": 12, "samples": 24},
    "paper": {"objective": "diag", "target": "dense", "solver": "exact"},
}
AUTO_BLOCKS = (128, 64, 32, 16, 8)


@dataclass(frozen=True)
class PruneConfig:
    """What to prune and how. Invalid values raise `ArmorError` on construction.

    Attributes:
        calibration: text file, .jsonl file, ``hf:NAME[:CONFIG]`` or a tuple of strings.
        method: "armor", a baseline ("nowag", "wanda", "sparsegpt", "magnitude"), or one only to
            compare with ("sparsegpt-lowrank", "int8", "int4", "int3": weights are
            stored dense).
        objective: "full" (second moment of the inputs) or "diag" (their mean squares; the paper's).
        target: "compensated" (undo the error of the layers before) or "dense" (the paper's).
        solver: "exact" (closed-form steps) or "adam" (the paper's loop).
        iterations: ceiling on solver iterations; None takes the solver's own default.
        pattern: sparsity of the core: "N:M" with M 2, 4 or 8, or a share of zeros such as "50%"
            (unstructured). "adam" knows 2:4 only.
        core: what the kept values are rounded to, inside the solver: "int8", "int4" or "fp8" (2:4
            only); None keeps the model's dtype.
        wrappers: what A and B of a rounded core are rounded to: "int8", or None.
        block_size: wrapper block, a multiple of 4; None chooses per layer from `overhead_budget`.
        overhead_budget: share of the dense parameters that the wrappers may add.
        size: bytes of the pruned layers over those of the dense ones, all together; then the block
            of each layer (of a method with wrappers), and which stay dense, are chosen by what they
            are worth. See docs/budget.md.
        samples: number of calibration windows.
        seq_len: tokens per calibration window; None takes min(512, the model's context).
        bos: whether each window begins with the tokenizer's BOS token, one of its `seq_len` tokens:
            "always", "never", or "auto": where the tokenizer itself puts it before a text.
        shrinkage: alpha in ``X = (1-alpha) X + alpha diag(X)`` ("full" only).
        damping: lambda in ``X + lambda mean(diag X) I`` ("full" only).
        target_damping: lambda' of the compensated target; None chooses it for each layer, and how
            much of the target to believe, on windows that are held out.
        include, exclude: globs over linear names; a layer must match some include and no exclude.
        overrides: glob -> settings of the layers it matches: "skip", "method", "pattern", "block";
            a later one wins. See docs/recipe.md.
        model: where an unusual model keeps its decoder: "blocks", "linears", "stages".
        lm_head: prune the output head, too, where it is not tied to the embeddings.
        seed: seed of every random choice.
    """

    calibration: str | tuple[str, ...] = ()
    method: str = "armor"
    objective: str = "full"
    target: str = "compensated"
    solver: str = "exact"
    iterations: int | None = None
    pattern: str = "2:4"
    core: str | None = None
    wrappers: str | None = None
    block_size: int | None = None
    overhead_budget: float = 0.10
    size: float | None = None
    samples: int = 128
    seq_len: int | None = None
    bos: str = "auto"
    shrinkage: float = 0.5
    damping: float = 0.1
    target_damping: float | None = None
    include: tuple[str, ...] = ()
    exclude: tuple[str, ...] = ()
    overrides: dict[str, dict[str, Any]] = dataclasses.field(default_factory=dict)
    model: dict[str, Any] = dataclasses.field(default_factory=dict)
    lm_head: bool = False
    seed: int = 0

    def __post_init__(self) -> None:
        for name in ("calibration", "include", "exclude"):
            value = getattr(self, name)
            if not isinstance(value, str):
                object.__setattr__(self, name, tuple(value))
        object.__setattr__(self, "bos", bos_choice(self.bos))
        _one_of("method", self.method, tuple(METHODS))
        _one_of("objective", self.objective, OBJECTIVES)
        _one_of("target", self.target, TARGETS)
        _one_of("solver", self.solver, SOLVERS)
        _one_of("bos", self.bos, BOS_CHOICES)
        patterns = {
            Pattern.parse(self.pattern),
            *check_overrides(self.overrides, tuple(packed_methods())),
        }
        if self.solver == "adam" and patterns != {TWO_OF_FOUR}:
            raise ArmorError("solver adam is the paper's loop, for 2:4 only; take solver exact")
        self._check_plain()
        self._check_storage(patterns)
        check_description(self.model)
        if type(self.lm_head) is not bool:
            raise ArmorError(f"lm_head must be true or false, not {self.lm_head!r}")
        if self.block_size is not None and (self.block_size < 4 or self.block_size % 4):
            raise ArmorError(f"block size {self.block_size} is not a positive multiple of 4")
        for name in ("samples", "iterations", "seq_len"):
            value = getattr(self, name)
            if value is not None and value < 1:
                raise ArmorError(f"{name} must be at least 1, not {value}")
        if not 0.0 <= self.shrinkage <= 1.0:
            raise ArmorError(f"shrinkage must lie in [0, 1], not {self.shrinkage}")
        for name in ("overhead_budget", "damping", "target_damping"):
            value = getattr(self, name)
            if value is not None and not value > 0.0:
                raise ArmorError(f"{name} must be positive, not {value}")
        if self.size is not None:
            self._check_size(self.size)

    def _check_plain(self) -> None:
        if not METHODS[self.method].is_plain:
            return
        if self.size is not None:
            raise ArmorError(f"{self.method} has nothing to choose by size: leave out the size")
        if any("method" in rules for rules in self.overrides.values()):
            raise ArmorError(f"{self.method} is for all layers: leave out the recipe's method")

    def _check_storage(self, patterns: set[Pattern]) -> None:
        cores = [self.core, *(rules.get("core") for rules in self.overrides.values())]
        if self.core is not None:
            _one_of("core", self.core, tuple(CORES))
        if self.wrappers is not None:
            _one_of("wrappers", self.wrappers, tuple(WRAPPERS))
            if not any(cores):
                known = " or ".join(CORES)
                raise ArmorError(f"rounded wrappers need a rounded core: add --core {known}")
        if any(cores) and patterns != {TWO_OF_FOUR}:
            raise ArmorError(
                "a rounded core has the pattern 2:4: leave out the core or the pattern"
            )
        if any(cores) and METHODS[self.method].is_plain:
            raise ArmorError(f"{self.method} is stored dense: leave out the core")

    def _check_size(self, size: float) -> None:
        if isinstance(size, bool) or not isinstance(size, (int, float)) or not 0.0 < size < 1.0:
            raise ArmorError(f"size must lie between 0 and 1, such as 0.62, not {size!r}")
        if METHODS[self.method].wrappers and (
            self.block_size is not None or self.overhead_budget != type(self).overhead_budget
        ):
            raise ArmorError(
                "size chooses the blocks: leave out the block size and overhead budget"
            )

    @classmethod
    def preset(cls, name: str, **changes: Any) -> PruneConfig:
        """The preset `name` ("default", "fast" or "paper") with `changes` on top."""
        _one_of("preset", name, tuple(PRESETS))
        return cls(**{**PRESETS[name], **changes})

    def to_dict(self) -> dict[str, Any]:
        """A plain JSON-ready dict."""
        return dataclasses.asdict(self)

    @classmethod
    def from_dict(cls, data: dict[str, Any]) -> PruneConfig:
        """The inverse of `to_dict`; an unknown key raises `ArmorError`."""
        known = {field.name for field in dataclasses.fields(cls)}
        if unknown := sorted(set(data) - known):
            raise ArmorError(f"unknown setting {unknown[0]!r}; valid: {', '.join(sorted(known))}")
        return cls(**data)


def _one_of(what: str, value: str, valid: tuple[str, ...]) -> None:
    if value not in valid:
        raise ArmorError(f"unknown {what} {value!r}; valid: {', '.join(valid)}")
