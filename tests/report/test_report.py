"""report.html: what it shows, that it needs nothing from outside, and that a browser accepts it."""

from __future__ import annotations

import re
import shutil
import subprocess
from html.parser import HTMLParser
from pathlib import Path
from xml.etree import ElementTree

import pytest

from armor.checkpoint.format import RUN_FILE
from armor.checkpoint.jsonfile import write_json
from armor.config import PRESETS, PruneConfig
from armor.evaluate.compare import Row, with_gaps
from armor.report import layer_records, write_report
from armor.report.layers import bars_by_kind, highest
from armor.report.settings import settings_tables

PERPLEXITY = {"dense": 2.175, "wanda": 25.4, "sparsegpt": 3.86, "armor-paper": 2.7, "armor": 2.308}
DENSE_BYTES = 2_000_000
SETTINGS = {
    "wanda": PruneConfig(method="wanda", calibration="c.txt"),
    "sparsegpt": PruneConfig(method="sparsegpt", calibration="c.txt"),
    "armor-paper": PruneConfig.preset("paper", calibration="c.txt"),
    "armor": PruneConfig.preset("default", calibration="c.txt"),
}


def make_rows(**perplexity: float) -> list[Row]:
    rows = [
        Row(
            label,
            label.split("-")[0],
            {"stories": perplexity.get(label, value)},
            DENSE_BYTES if label == "dense" else 1_250_000,
            DENSE_BYTES,
            0.0 if label == "dense" else 12.5,
        )
        for label, value in PERPLEXITY.items()
    ]
    return with_gaps(rows)


def make_layers(depths: int = 3) -> dict[str, dict[str, object]]:
    return {
        f"model.layers.{depth}.{kind}": {
            "shape": [64, 128],
            "block": 16,
            "loss": 0.02 * (depth + 1),
            "nowag_loss": 0.1,
            "sparsegpt_loss": 0.05,
        }
        for depth in range(depths)
        for kind in ("self_attn.q_proj", "mlp.down_proj")
    }


@pytest.fixture
def page(tmp_path: Path) -> str:
    file = tmp_path / "report.html"
    notes = {"evaluation window": "256 tokens"}
    write_report(make_rows(), file, "A <b>title</b>", SETTINGS, {"armor": make_layers()}, notes)
    return file.read_text(encoding="utf-8")


class Reader(HTMLParser):
    """Checks that every element is closed in order; collects text, attributes and table rows."""

    VOID = frozenset({"meta", "link", "br"})

    def __init__(self, page: str) -> None:
        super().__init__()
        self.open: list[str] = []
        self.attributes: list[tuple[str, str, str]] = []
        self.rows: list[list[str]] = []
        self.feed(page)
        self.close()
        assert self.open == []

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.attributes += [(tag, name, value or "") for name, value in attrs]
        if tag not in self.VOID:
            self.open.append(tag)
        if tag == "tr":
            self.rows.append([])
        if tag in ("td", "th"):
            self.rows[-1].append("")

    def handle_endtag(self, tag: str) -> None:
        assert self.open.pop() == tag

    def handle_data(self, data: str) -> None:
        if self.open and self.open[-1] in ("td", "th"):
            self.rows[-1][-1] += data


def pictures(page: str) -> list[ElementTree.Element]:
    return [ElementTree.fromstring(svg) for svg in re.findall(r"<svg.*?</svg>", page, re.S)]


def test_the_table(page: str) -> None:
    rows = {row[0]: row for row in Reader(page).rows if len(row) == 6}
    assert rows["method"][1:] == ["perplexity", "gap left", "of dense", "linears", "time"]
    assert rows["dense"][1:] == ["2.175", "–", "1.000", "2.00 MB", "–"]
    assert rows["armor"][1:] == ["2.308", "7.9 %", "0.625", "1.25 MB", "12.5 s"]
    assert '<tr class="best">\n<th scope="row">armor</th>' in page


def test_the_sentence(page: str) -> None:
    assert (
        "armor reaches perplexity 2.308 on stories (dense 2.175) with the pruned layers at 0.62 of "
        "their dense bytes; the best method without wrappers, sparsegpt, has 3.860 at 0.62."
    ) in page


def test_text_is_escaped(page: str) -> None:
    assert "<b>title" not in page
    assert "A &lt;b&gt;title&lt;/b&gt;" in page


def test_nothing_is_fetched_and_nothing_runs(page: str) -> None:
    reader = Reader(page)
    outside = [value for _, name, value in reader.attributes if name in ("src", "href", "action")]
    assert outside == ["data:,"]
    assert not re.search(r"<script|@import|url\(|https?://|javascript:|\son\w+=", page)


def test_both_colour_schemes_and_phones(page: str) -> None:
    assert ("meta", "content", "width=device-width, initial-scale=1") in Reader(page).attributes
    variables = [set(re.findall(r"--[\w-]+(?=:)", part)) for part in page.split("@media (prefers")]
    assert len(variables) == 2
    assert variables[0] == variables[1] != set()


def test_pictures_have_alt_text_and_stay_inside(page: str) -> None:
    found = pictures(page)
    assert len(found) == 2 + 2
    for picture in found:
        title, description = picture.find("title"), picture.find("desc")
        assert title is not None
        assert description is not None
        assert picture.get("role") == "img"
        assert picture.get("aria-label") == f"{title.text}. {description.text}"
        _, _, width, height = map(float, str(picture.get("viewBox")).split())
        for element in picture.iter():
            for name, limit in (("x", width), ("cx", width), ("x1", width), ("y", height + 4)):
                if name in element.attrib:
                    assert 0 <= float(element.attrib[name]) <= limit
    assert found[0].findtext("desc") == (
        "Lower is better: dense 2.175; wanda 25.400; sparsegpt 3.860; armor-paper 2.700; "
        "armor 2.308."
    )


def test_dots_are_where_the_perplexities_are(page: str) -> None:
    methods = pictures(page)[0]
    x = [float(str(dot.get("cx"))) for dot in methods.iter("circle")]
    order = sorted(range(5), key=list(PERPLEXITY.values()).__getitem__)
    assert sorted(range(5), key=x.__getitem__) == order
    assert "perplexity (log scale)" in "".join(methods.itertext())


def test_layers(page: str) -> None:
    bars = [bar for picture in pictures(page)[2:] for bar in picture.iter("rect")]
    heights = [float(str(bar.get("height"))) for bar in bars]
    assert heights[:3] == pytest.approx([h * heights[0] for h in (1, 2, 3)], abs=0.02)
    assert bars[1].findtext("title") == (
        "model.layers.1.self_attn.q_proj: relative proxy loss 0.04, 0.400 of NoWag-P's"
    )
    row = ["model.layers.2.mlp.down_proj", "64 × 128", "16", "0.06", "0.600", "1.200"]
    assert row in Reader(page).rows
    assert "mean 0.400" in page


def test_layers_without_a_loss_are_left_out() -> None:
    layers = make_layers(1)
    layers["model.layers.0.mlp.down_proj"]["nowag_loss"] = 0.0
    layers["model.layers.0.self_attn.q_proj"]["sparsegpt_loss"] = None
    kinds = bars_by_kind(layers)
    assert list(kinds) == ["q_proj"]
    assert highest(kinds) == 1.0


def test_infinite_perplexity_is_told_and_not_drawn(tmp_path: Path) -> None:
    write_report(make_rows(wanda=float("inf")), tmp_path / "r.html", "title", SETTINGS)
    page = (tmp_path / "r.html").read_text(encoding="utf-8")
    assert ["wanda", "∞", "–", "0.625", "1.25 MB", "12.5 s"] in Reader(page).rows
    assert "finite perplexity: wanda." in " ".join(page.split())
    assert len(list(pictures(page)[0].iter("circle"))) == 4


def test_dense_alone_and_two_texts(tmp_path: Path) -> None:
    rows = [Row("dense", "dense", {"a": 5.0, "b": 7.0}, 10, 10, 0.0)]
    write_report(rows, tmp_path / "r.html", "title", {})
    page = (tmp_path / "r.html").read_text(encoding="utf-8")
    assert len(pictures(page)) == 4
    assert Reader(page).rows[0][:3] == ["method", "perplexitya", "perplexityb"]


def test_settings_are_split() -> None:
    shared, differing = settings_tables(SETTINGS)
    assert shared["calibration"] == "c.txt"
    assert shared["solver (armor)"] == "exact"
    assert shared["block size (armor)"] == "auto"
    assert differing["objective"] == {"armor-paper": "diag", "armor": "full"}
    assert differing["method"]["wanda"] == "wanda"
    assert "include" not in shared
    assert set(differing) == {"method", *(k for k in PRESETS["paper"] if k != "solver")}


def test_layer_records_are_read_from_checkpoints(tmp_path: Path) -> None:
    for label in ("armor", "wanda"):
        (tmp_path / label).mkdir()
    write_json(tmp_path / "armor" / RUN_FILE, {"layers": make_layers(1)})
    write_json(tmp_path / "wanda" / RUN_FILE, {"layers": {}})
    assert layer_records(tmp_path, ["armor", "wanda", "gone"]) == {"armor": make_layers(1)}


@pytest.mark.slow
def test_a_browser_has_nothing_to_complain_about(page: str, tmp_path: Path) -> None:
    browser = shutil.which("chromium") or shutil.which("google-chrome")
    if browser is None:
        pytest.skip("no Chromium")
    shot = tmp_path / "shot.png"
    flags = ["--headless", "--no-sandbox", "--disable-gpu", "--disable-quic", "--no-first-run"]
    flags += ["--disable-background-networking", "--disable-component-update", "--disable-sync"]
    flags += [f"--user-data-dir={tmp_path / 'profile'}", "--enable-logging=stderr"]
    run = subprocess.run(
        [browser, *flags, f"--screenshot={shot}", f"file://{tmp_path / 'report.html'}"],
        capture_output=True,
        text=True,
        timeout=120,
        check=True,
    )
    assert "CONSOLE" not in run.stderr
    assert shot.stat().st_size > 10_000
