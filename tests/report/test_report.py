"""The page: what it shows of a comparison and of a checkpoint, and that it needs nothing else."""

from __future__ import annotations

import json
import re
from collections.abc import Callable
from html.parser import HTMLParser
from pathlib import Path
from xml.etree import ElementTree

import pytest

from armor.compare.row import Row
from armor.report import collect, write_report


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


def written(folder: Path, tmp_path: Path) -> str:
    write_report(collect(folder), tmp_path / "report.html")
    return (tmp_path / "report.html").read_text(encoding="utf-8")


def pictures(page: str) -> dict[str, ElementTree.Element]:
    found = [ElementTree.fromstring(svg) for svg in re.findall(r"<svg.*?</svg>", page, re.S)]
    return {str(picture.findtext("title")): picture for picture in found}


@pytest.fixture
def page(comparison: Path, tmp_path: Path) -> str:
    return written(comparison, tmp_path)


@pytest.fixture
def single(checkpoint: Path, tmp_path: Path) -> str:
    return written(checkpoint, tmp_path)


def test_the_table(page: str) -> None:
    rows = {row[0]: row for row in Reader(page).rows[:6]}
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


def test_nothing_is_fetched_and_nothing_runs(page: str, single: str) -> None:
    for text in (page, single):
        reader = Reader(text)
        outside = [value for _, key, value in reader.attributes if key in ("src", "href", "action")]
        assert outside == ["data:,"]
        assert not re.search(r"<script|@import|url\(|https?://|javascript:|\son\w+=", text)


def test_pictures_have_alt_text_and_stay_inside(page: str, single: str) -> None:
    for text, count in ((page, 3 + 2 * (2 + 2 + 2 + 1)), (single, 2 + 7)):
        found = re.findall(r"<svg.*?</svg>", text, re.S)
        assert len(found) == count
        for picture in map(ElementTree.fromstring, found):
            title, description = picture.findtext("title"), picture.findtext("desc")
            assert title
            assert description
            assert picture.get("role") == "img"
            assert picture.get("aria-label") == f"{title}. {description}"
            _, _, width, height = map(float, str(picture.get("viewBox")).split())
            for element in picture.iter():
                for name, limit in (("x", width), ("cx", width), ("x1", width), ("y", height + 4)):
                    if name in element.attrib:
                        assert 0 <= float(element.attrib[name]) <= limit, title


def test_dots_are_where_the_perplexities_are(page: str) -> None:
    methods = pictures(page)["Perplexity by method on stories"]
    assert methods.findtext("desc") == (
        "Lower is better: dense 2.175; wanda 25.400; sparsegpt 3.860; armor-paper 2.700; "
        "armor 2.308."
    )
    x = [float(str(dot.get("cx"))) for dot in methods.iter("circle")]
    assert x[1] > x[2] > x[3] > x[4] > x[0]
    assert "perplexity (log scale)" in "".join(methods.itertext())


def test_bars_are_as_high_as_the_losses(single: str) -> None:
    bars = list(pictures(single)["q_proj: proxy loss over NoWag-P's"].iter("rect"))
    heights = [float(str(bar.get("height"))) for bar in bars]
    assert heights == pytest.approx([h * heights[0] for h in (1, 2, 3)], abs=0.02)
    assert bars[1].findtext("title") == (
        "model.layers.1.self_attn.q_proj: proxy loss 0.400 of NoWag-P's, 0.800 of SparseGPT's"
    )
    # 32 x 64 in blocks of 8: wrappers 12 x 64 of 2048 values; the others are 2048 + 512 bytes.
    row = ["model.layers.2.mlp.down_proj", "32 × 64", "8", "37.5 %", "7.42 kB"]
    row += ["0.06", "0.600", "1.200", "25.0 %", "yes"]
    assert row in Reader(single).rows


def test_curves_go_down_over_time(single: str) -> None:
    curves = list(pictures(single)["q_proj: loss against seconds"].iter("polyline"))
    assert len(curves) == 3
    points = [tuple(map(float, pair.split(","))) for pair in str(curves[0].get("points")).split()]
    assert points[0][0] < points[1][0] < points[2][0]
    assert points[1][0] - points[0][0] == pytest.approx((points[2][0] - points[0][0]) / 3, abs=0.1)
    assert points[0][1] < points[1][1] < points[2][1]  # y grows downwards


def test_without_times_the_curves_are_over_iterations(
    make: Callable[..., Path], tmp_path: Path
) -> None:
    file = make(tmp_path / "cmp") / "armor" / "armor_run.json"
    run = json.loads(file.read_text())
    for record in run["layers"].values():
        del record["times"], record["output_error"]
    file.write_text(json.dumps(run))
    found = pictures(written(file.parent, tmp_path))
    assert "q_proj: loss against iterations" in found
    assert "Share of the output error by kind and depth" not in found


def test_shares_of_the_error(single: str) -> None:
    worst = pictures(single)["The 6 layers with the most output error"]
    shares = dict(part.rsplit(" ", 2)[:2] for part in str(worst.findtext("desc"))[:-1].split("; "))
    assert shares["2.q_proj"] == shares["2.down_proj"] == "25.0"
    assert shares["0.q_proj"] == "8.3"
    cells = pictures(single)["Share of the output error by kind and depth"]
    assert cells.findtext("desc") == "Summed over depth: q_proj 50.0 %; down_proj 50.0 %."


def test_errors_fitted_and_held_out(one: Callable[..., Path], tmp_path: Path) -> None:
    folder = one(tmp_path / "pruned")
    file = folder / "armor_run.json"
    run = json.loads(file.read_text())
    for name, record in run["layers"].items():
        depth = int(name.split(".")[2])
        record |= {"fitted_error": 0.1, "held_out_error": 0.1 * (depth + 1)}
    run["layers"]["model.layers.1.mlp.down_proj"] |= {"fitted_error": None, "belief": "x"}
    file.write_text(json.dumps(run))
    page = written(folder, tmp_path)
    found = pictures(page)
    queries = found["q_proj: error, fitted and held-out"]
    assert queries.findtext("desc") == (
        "q_proj: errors of 3 blocks by depth; held-out 1.82 times fitted (geometric mean)."
    )
    dots = list(queries.iter("circle"))
    assert len(dots) == 6
    heights = [float(str(dot.get("cy"))) for dot in dots]
    assert heights[0] == heights[1] == heights[2] == heights[3] > heights[4] > heights[5]
    assert dots[5].findtext("title") == (
        "model.layers.2.self_attn.q_proj: fitted 10.0 %, held-out 30.0 %"
    )
    assert len(list(queries.iter("polyline"))) == 2
    assert len(list(found["down_proj: error, fitted and held-out"].iter("circle"))) == 4
    rows = {row[0]: row for row in Reader(page).rows}
    assert rows["layer"][8:10] == ["fitted error", "held-out error"]
    assert rows["model.layers.2.self_attn.q_proj"][8:10] == ["10.0 %", "30.0 %"]
    assert rows["model.layers.1.mlp.down_proj"][8:10] == ["–", "20.0 %"]
    assert '<dd class="number">1.78×</dd>' in page  # of 1, 1, 2, 3 and 3
    assert "more calibration text would help" in page


def test_without_held_out_windows_no_errors_are_drawn(single: str) -> None:
    text = single.partition("</style>")[2]
    assert not re.search("held-out|fitted|calibration text would help", text)


def test_size_speed_and_evaluation(single: str) -> None:
    rows = Reader(single).rows
    size = pictures(single)["Where the bytes are"].findtext("desc")
    assert "everything else 4.00 kB" in str(size)
    assert ["ARMOR", "900", "60.0", "2.00 MB"] in rows
    assert ["q_proj", "1", "1.000", "0.800", "0.500", "2.00×"] in rows
    assert "2 rows" not in str(pictures(single)["Speed against dense by rows of input"])
    assert ["stories.txt", "2.346", "0.150", "0.6100", "256 no BOS", "12,345"] in rows
    assert ["piqa", "0", "acc", "0.7500", "0.0100", "400"] in rows


def test_headlines(page: str, single: str) -> None:
    def tiles(text: str) -> dict[str, str]:
        found = re.findall(r'<dt>(.*?)</dt>\n<dd class="number">(.*?)</dd>', text)
        return {name.replace("&#39;", "'"): value for name, value in found}

    assert tiles(page)["perplexity, stories"] == "2.308"
    assert tiles(page)["of the gap left"] == "7.9 %"
    assert tiles(single)["perplexity, stories"] == "2.346"
    assert tiles(single)["decoding speed, of dense"] == "1.50×"
    assert tiles(single)["layers certified"] == "6 / 6"
    assert tiles(single)["proxy loss"] == "0.363×"  # the geometric mean of 0.2, 0.4 and 0.6
    assert tiles(single)["to prune"] == "12.5 s"


def test_the_best_run_is_open_and_the_others_folded(page: str) -> None:
    found = re.findall(r'<details class="run"( open)?>\s*<summary>Layer by layer: (\S+)', page)
    assert found == [(" open", "armor"), ("", "armor-paper")]
    assert "Left dense: model.layers.9.odd (excluded)." in page


def test_mixed_patterns(one: Callable[..., Path], tmp_path: Path) -> None:
    recipe = {"*.2.mlp.*": {"pattern": "4:8", "method": "wanda"}, "*.q_proj": {"block": 8}}
    folder = one(tmp_path / "mixed", last="4:8", config={"overrides": recipe, "model": {}})
    page = written(folder, tmp_path)
    text = " ".join(page.split())
    assert "pruned to mixed patterns (5 layers 2:4, 1 layer 4:8) by armor" in text
    assert "all are certified" in text  # the baseline's layer, without wrappers, is not asked
    rows = {row[0]: row for row in Reader(page).rows}
    assert rows["layer"][2] == "pattern"
    last = rows["model.layers.2.mlp.down_proj"]
    assert last[1:5] + last[-1:] == ["32 × 64", "4:8", "–", "–", "–"]
    rules = "*.2.mlp.*: pattern 4:8, method wanda; *.q_proj: block 8"
    assert f"<dt>overrides</dt><dd>{rules}</dd>" in text
    assert "<dt>model</dt><dd></dd>" not in text


def test_blocks_chosen_for_a_size(one: Callable[..., Path], tmp_path: Path) -> None:
    harms = {
        f"model.layers.{depth}.{kind}": {"8": 1.0 + depth, "16": 0.5}
        for depth in range(4)
        for kind in ("self_attn.q_proj", "mlp.down_proj")
    }
    del harms["model.layers.1.mlp.down_proj"]  # its block was given
    budget = {"size": 0.75, "reached": 0.74804, "harms": harms}
    config = {"size": 0.75}
    page = written(one(tmp_path / "sized", config=config, budget=budget), tmp_path)
    text = " ".join(page.split())
    assert "take 0.7480 of their dense bytes; 0.75 was asked for" in text
    rows = [row for row in Reader(page).rows if len(row) == 4]
    assert rows[0] == ["layers", "block 8", "dense", "of the harm"]
    assert rows[1:4] == [
        ["q_proj", "3", "1", "60.0 %"],
        ["down_proj", "2", "1", "40.0 %"],
        ["all", "5", "2", "100 %"],
    ]
    assert "The dashed line is the budget" not in text
    assert "<dt>size</dt><dd>0.75</dd>" in text
    assert "<dt>overhead budget</dt>" not in text


def test_infinite_perplexity_is_told_and_not_drawn(
    make: Callable[..., Path], tmp_path: Path
) -> None:
    rows = [
        Row("dense", "dense", {"t": 2.0}, 10, 10, 0.0),
        Row("wanda", "wanda", {"t": float("inf")}, 6, 10, 1.0),
        Row("armor", "armor", {"t": 3.0}, 6, 10, 130.0),
    ]
    page = written(make(tmp_path / "cmp", rows), tmp_path)
    assert ["wanda", "∞", "–", "0.600", "0.01 kB", "1.0 s"] in Reader(page).rows
    assert ["armor", "3.000", "–", "0.600", "0.01 kB", "2.2 min"] in Reader(page).rows
    assert "finite perplexity: wanda." in " ".join(page.split())
    assert len(list(pictures(page)["Perplexity by method on t"].iter("circle"))) == 2


def test_dense_alone_and_two_texts(make: Callable[..., Path], tmp_path: Path) -> None:
    rows = [Row("dense", "dense", {"a": 5.0, "b": 7.0}, 10, 10, 0.0)]
    page = written(make(tmp_path / "cmp", rows), tmp_path)
    assert len(pictures(page)) == 4
    assert Reader(page).rows[0][:3] == ["method", "perplexitya", "perplexityb"]
