"""Methods by name, with settings on top."""

from __future__ import annotations

import pytest

from armor.compare.labels import default_labels, parse_methods
from armor.config import PruneConfig
from armor.errors import ArmorError


def test_names_and_settings() -> None:
    found = parse_methods(
        "wanda, armor, armor:block_size=8:damping=0.5, armor:block_size=auto,armor:target=dense",
        samples=4,
        block_size=16,
    )
    assert list(found) == [
        "wanda",
        "armor",
        "armor-block_size=8-damping=0.5",
        "armor-block_size=auto",
        "armor-target=dense",
    ]
    assert found["wanda"] == PruneConfig(method="wanda", samples=4, block_size=16)
    small = found["armor-block_size=8-damping=0.5"]
    assert (small.block_size, small.damping, small.samples) == (8, 0.5, 4)
    assert found["armor-block_size=auto"].block_size is None
    assert found["armor-target=dense"].target == "dense"
    sized = parse_methods("armor:size=0.65,armor:size=auto")
    assert [config.size for config in sized.values()] == [0.65, None]
    eight = parse_methods("nowag:pattern=4:8:seed=1,armor:pattern=50%")
    assert list(eight) == ["nowag-pattern=4of8-seed=1", "armor-pattern=50%"]
    assert (eight["nowag-pattern=4of8-seed=1"].pattern, eight["armor-pattern=50%"].pattern) == (
        "4:8",
        "50%",
    )
    assert list(parse_methods(",".join(default_labels()))) == list(default_labels())
    assert parse_methods("armor-adam")["armor-adam"].solver == "adam"


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("hope", "unknown method 'hope'; valid: magnitude, "),
        (" ,", "no method given"),
        ("wanda,wanda", "wanda is given twice"),
        ("armor:mood=good", "'mood=good' is no setting; write NAME=VALUE with method, "),
        ("armor:calibration=x", "is no setting"),
        ("armor:overrides=x", "is no setting"),
        ("armor:samples", "'samples': '' is not a number"),
        ("armor:damping=much", "'much' is not a number"),
        ("armor:block_size=6", "not a positive multiple of 4"),
        ("armor:pattern=5:4", "unknown pattern '5:4'"),
        ("armor-adam:pattern=4:8", "for 2:4 only; take solver exact"),
        ("armor:seed=auto", "'auto' is not a number"),
    ],
)
def test_bad_methods(text: str, message: str) -> None:
    with pytest.raises(ArmorError, match=message):
        parse_methods(text)
