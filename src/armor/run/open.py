"""open_model: the model of a run, laid out as the run's settings ask."""

from __future__ import annotations

import re
from fnmatch import fnmatchcase
from functools import partial
from typing import Any

from armor.config import PruneConfig
from armor.errors import ArmorError
from armor.models.experts import fused_experts
from armor.models.folder import ModelFolder
from armor.models.streamed import StreamedModel
from armor.run.plan import splits
from armor.text.windows import context_length, default_window


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


def window_length(config: PruneConfig, network: Any) -> int:
    """Tokens of a calibration window: as asked for, else the context of `network`, at most 2048.

    Raises:
        ArmorError: more than the context is asked for.
    """
    if config.seq_len is None:
        return default_window(network.config)
    context = context_length(network.config)
    if config.seq_len > context:
        raise ArmorError(f"--seq-len {config.seq_len} is longer than the model's context {context}")
    return config.seq_len
