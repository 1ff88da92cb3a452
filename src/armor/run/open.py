"""What a run needs to know of its model: opened as the settings ask, and what stays dense."""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import replace
from fnmatch import fnmatchcase
from functools import partial
from typing import Any

from armor.checkpoint.format import LayerSpec
from armor.checkpoint.tensorfile import StoredTensor
from armor.config import PruneConfig
from armor.errors import ArmorError
from armor.methods import METHODS
from armor.models.experts import fused_experts
from armor.models.folder import ModelFolder
from armor.models.load import check_ignored
from armor.models.streamed import StreamedModel
from armor.run.plan import LayerPlan, make_plan, splits
from armor.run.reads import unusual_uses
from armor.sparse.pattern import Pattern
from armor.text.windows import check_window, default_window, model_context

#: Tokens of a calibration window that nobody asked for another length of.
CALIBRATION_WINDOW = 512


def open_planned(
    folder: ModelFolder, config: PruneConfig
) -> tuple[StreamedModel, list[LayerPlan], int]:
    """The model in `folder`, empty; the plan of every linear; the bytes of a weight.

    Raises:
        ArmorError: see `open_model`, `linear_shapes`, `make_plan` and `settle`.
    """
    model = open_model(folder, config)
    shapes = linear_shapes(model, config.lm_head)
    itemsize = model.dtype(f"{model.layout.path(next(iter(shapes)))}.weight").itemsize
    return model, settle(make_plan(shapes, config, itemsize), model, config), itemsize


def open_model(folder: ModelFolder, config: PruneConfig) -> StreamedModel:
    """The model in `folder`, empty, with its fused projections split where `config` says so.

    Raises:
        ArmorError: see `StreamedModel`, and experts in an unknown layout that are not excluded.
    """
    model = StreamedModel(folder, partial(splits, config=config), config.model)
    check_ignored(folder, model.model, ignored(model))
    skipped = [glob for glob, rules in config.overrides.items() if rules.get("skip")]
    found = [
        f"{name}.{key} ({'x'.join(map(str, weight.shape))})"
        for name, module in fused_experts(model.model)
        if name.startswith(f"{model.structure.prefix}.")
        for key, weight in module.named_parameters(recurse=False)
        if not any(fnmatchcase(f"{name}.{key}", glob) for glob in (*config.exclude, *skipped))
    ]
    if found:
        inside = [re.sub(rf"^{re.escape(model.structure.prefix)}\.\d+", "*", n) for n in found]
        globs = dict.fromkeys(glob.partition(" ")[0] for glob in inside)
        if all("experts" in glob for glob in globs):
            globs = {"*experts*": None}
        raise ArmorError(
            f"{type(model.model).__name__} keeps its experts in a layout that is not known:"
            f" {', '.join(found[:2])}; to prune the rest add"
            + "".join(f" --exclude '{glob}'" for glob in globs)
        )
    return model


def ignored(model: StreamedModel) -> list[str]:
    """The stored tensors that the model does not have, by name in the checkpoint."""
    used: set[StoredTensor] = set()
    for stored in model.stored.values():
        parts = [stored] if isinstance(stored, StoredTensor) else [p for *_, p in stored.parts]
        used.update(parts)
    held = model.model.state_dict()
    return [
        name
        for name, stored in model.layout.tensors.items()
        if name not in held and stored not in used
    ]


def linear_shapes(model: StreamedModel, lm_head: bool) -> dict[str, tuple[int, int]]:
    """(out, in) of every linear that could be pruned, by name in the checkpoint.

    Raises:
        ArmorError: `lm_head`, and the head shares its weight with the embeddings.
    """
    linears = {
        model.layout.name(path): linear
        for index in range(len(model.structure.blocks))
        for path, linear in model.structure.linears(index).items()
    }
    if lm_head:
        if model.head is None or model.tied:
            raise ArmorError(
                "the output head shares its weight with the embeddings, which are not pruned:"
                " leave out --lm-head"
            )
        linears[model.layout.name(model.head)] = model.model.get_output_embeddings()
    return {name: (linear.out_features, linear.in_features) for name, linear in linears.items()}


def settle(
    plans: Sequence[LayerPlan], model: StreamedModel, config: PruneConfig
) -> list[LayerPlan]:
    """`plans`, where layers stay dense that the model uses otherwise than by calling them.

    Raises:
        ArmorError: nothing is left to prune, or transformers could not load the result.
    """
    from armor.hf.reload import check_reload

    unusual = unusual_uses(model)
    settled = [
        replace(plan, dense=True, note=unusual[plan.name])
        if plan.name in unusual and not plan.dense
        else plan
        for plan in plans
    ]
    todo = [plan for plan in settled if not plan.dense]
    if not todo:
        raise ArmorError("nothing to prune: the model does not call any of what is chosen")
    if METHODS[config.method].is_plain:
        return settled  # the result is an ordinary model
    layers = {}
    for plan in todo:
        pattern = Pattern.parse(plan.settings(config).pattern)
        count = pattern.count(plan.shape) if pattern.is_unstructured else None
        block = plan.block or min(plan.blocks, default=0) or None
        layers[plan.name] = LayerSpec(
            plan.shape, block, pattern, count, plan.name in model.layout.transposed
        )
    check_reload(model.folder, layers, model.layout.joined_with(layers))
    return settled


def window_length(config: PruneConfig, network: Any) -> int:
    """Tokens of a calibration window: as asked for, else the context of `network`, at most 512.

    Short ones: as many tokens cost less, and come from more places of the text.

    Raises:
        ArmorError: more than the context is asked for.
    """
    if config.seq_len is None:
        return default_window(model_context(network), CALIBRATION_WINDOW)
    check_window(config.seq_len, model_context(network))
    return config.seq_len
