"""open_model: the model of a run, laid out as the run's settings ask."""

from __future__ import annotations

from fnmatch import fnmatchcase
from functools import partial

from armor.config import PruneConfig
from armor.errors import ArmorError
from armor.models.experts import fused_experts
from armor.models.folder import ModelFolder
from armor.models.streamed import StreamedModel
from armor.run.plan import splits


def open_model(folder: ModelFolder, config: PruneConfig) -> StreamedModel:
    """The model in `folder`, empty, with its fused projections split where `config` says so.

    Raises:
        ArmorError: see `StreamedModel`, and experts in an unknown layout that are not excluded.
    """
    model = StreamedModel(folder, partial(splits, config=config), config.model)
    skipped = [glob for glob, rules in config.overrides.items() if rules.get("skip")]
    found = [
        f"{name}.{key} ({'x'.join(map(str, weight.shape))})"
        for name, module in fused_experts(model.model)
        for key, weight in module.named_parameters(recurse=False)
        if not any(fnmatchcase(f"{name}.{key}", glob) for glob in (*config.exclude, *skipped))
    ]
    if found:
        raise ArmorError(
            f"{type(model.model).__name__} keeps its experts in a layout that is not known:"
            f" {', '.join(found[:2])}; to prune the rest add --exclude '*experts*'"
        )
    return model
