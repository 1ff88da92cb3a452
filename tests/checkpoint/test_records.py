"""Records: written and read back, whatever a file may hold; the mean loss against NoWag-P's."""

from __future__ import annotations

import json
from dataclasses import replace
from typing import Any

import pytest

from armor.checkpoint.loss_ratio import loss_ratio, mean_loss_ratio
from armor.checkpoint.records import LayerRecord, RunRecord

RECORD = LayerRecord(
    shape=(4, 8),
    block=4,
    loss=0.02,
    nowag_loss=0.1,
    sparsegpt_loss=None,
    certificate=True,
    losses=[0.1, 0.02],
    seconds=1.5,
    note="a note",
    times=[0.5, 1.25],
    output_energy=3.0,
    output_error=0.25,
    target_damping=0.3,
    belief=0.5,
    fitted_error=0.01,
    held_out_error=0.02,
)


def test_a_layer_is_read_back() -> None:
    assert LayerRecord.read(json.loads(json.dumps(RECORD.to_dict()))) == RECORD


@pytest.mark.parametrize("data", [None, 3, [], {}, dict.fromkeys(RECORD.to_dict(), "x")])
def test_a_layer_that_says_nothing(data: Any) -> None:
    found = LayerRecord.read(data)
    note = "x" if isinstance(data, dict) and data else ""
    assert found == LayerRecord(None, None, None, None, None, None, [], None, note)


def test_times_that_do_not_fit_the_losses_are_dropped() -> None:
    assert LayerRecord.read(RECORD.to_dict() | {"times": [0.5]}).times == []


def test_a_run() -> None:
    data = {
        "model": "m",
        "config": {"method": "armor", "seed": 0},
        "versions": {"torch": "2"},
        "machine": {"threads": 2},
        "layers": {"a": RECORD.to_dict(), "gone": {}},
        "dense_layers": {"d": "excluded", "e": 3},
        "budget": {"size": 0.6, "reached": 0.59, "harms": {"a": {"4": 2.0}, "d": {"4": 1.0}}},
        "seconds": 3,
        "peak_memory_bytes": 10,
    }
    found = RunRecord.read(data, {"a": 4, "b": None})
    assert (found.model, found.method, found.seconds, found.peak_memory) == ("m", "armor", 3.0, 10)
    assert (found.versions, found.machine) == ({"torch": "2"}, {"threads": "2"})
    assert list(found.layers) == ["a", "b"]
    assert found.layers["a"] == RECORD
    assert found.layers["b"].loss is None
    assert found.dense_layers == {"d": "excluded"}
    assert found.size is not None
    assert found.size.harms == {"a": 2.0}
    assert found.size.counts == {4: 1, None: 1}
    assert RunRecord.read({"config": 3, "layers": [1]}, {}) == RunRecord()


def test_the_mean_ratio_is_geometric() -> None:
    layers = [replace(RECORD, loss=loss) for loss in (0.01, 0.04, 0.0, None)]
    layers.append(replace(RECORD, nowag_loss=0.0))
    assert [loss_ratio(layer) for layer in layers] == pytest.approx([0.1, 0.4, 0.0, None, None])
    assert mean_loss_ratio(layers) == pytest.approx(0.2)
    assert mean_loss_ratio(layers[3:]) is None
