"""The page in a real browser: nothing logged, nothing fetched, everything visible, at any width."""

from __future__ import annotations

import os
import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from armor.report import collect, write_report

PHONE, DESKTOP = 390, 1100
#: Boxes of all matching elements: what they are, width, height, right edge.
BOXES = """selector => [...document.querySelectorAll(selector)].map(element => {
    const box = element.getBoundingClientRect();
    const name = element.getAttribute('aria-label') || element.textContent.trim().slice(0, 40);
    return [name, box.width, box.height, box.right + scrollX];
})"""


def executable() -> str:
    """An installed Chromium, or a skip that says why."""
    names = ("chromium", "chromium-browser", "google-chrome", "google-chrome-stable")
    given = os.environ.get("ARMOR_CHROMIUM")
    found = next(filter(None, [given, *map(shutil.which, names)]), None)
    if found is None:
        pytest.skip("no Chromium on this machine (ARMOR_CHROMIUM may name one)")
    return found


@pytest.fixture(scope="module")
def browser() -> Iterator[Any]:
    playwright = pytest.importorskip("playwright.sync_api", reason="no playwright")
    path = executable()
    with playwright.sync_playwright() as driver:
        launched = driver.chromium.launch(executable_path=path, args=["--no-sandbox"])
        yield launched
        launched.close()


@pytest.fixture(scope="module", params=["comparison", "checkpoint"])
def file(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Path:
    page = tmp_path_factory.mktemp("page") / "report.html"
    write_report(collect(request.getfixturevalue(request.param)), page)
    return page


class Visit:
    """A page opened with every fold open; what it logged and asked for besides itself."""

    def __init__(self, browser: Any, file: Path, width: int, scheme: str) -> None:
        self.context = browser.new_context(
            viewport={"width": width, "height": 800}, color_scheme=scheme
        )
        self.page = self.context.new_page()
        self.logged: list[str] = []
        self.requests: list[str] = []
        self.page.on("console", lambda message: self.logged.append(message.text))
        self.page.on("pageerror", lambda error: self.logged.append(str(error)))
        self.page.on("request", lambda request: self.requests.append(request.url))
        self.page.goto(file.as_uri())
        self.page.evaluate("document.querySelectorAll('details').forEach(d => { d.open = true })")

    def colour(self, selector: str, name: str) -> list[int]:
        """Red, green, blue of a computed style."""
        script = "([selector, name]) => getComputedStyle(document.querySelector(selector))[name]"
        text = self.page.evaluate(script, [selector, name])
        return [int(part) for part in text[text.index("(") + 1 : -1].split(",")[:3]]


@pytest.fixture(params=[(DESKTOP, "light"), (DESKTOP, "dark"), (PHONE, "light")], ids=str)
def visit(request: pytest.FixtureRequest, browser: Any, file: Path) -> Iterator[Visit]:
    found = Visit(browser, file, *request.param)
    yield found
    found.context.close()


def test_everything_is_visible_and_nothing_sticks_out(visit: Visit, file: Path) -> None:
    tables, charts = (visit.page.evaluate(BOXES, kind) for kind in ("table", "svg"))
    assert len(tables) >= 3
    assert len(charts) >= 9
    for name, width, height, _ in tables + charts:
        assert width > 100, name
        assert height > 40, name
    page_width = visit.page.viewport_size["width"]
    assert visit.page.evaluate("document.documentElement.scrollWidth") == page_width
    for name, _, _, right in charts + visit.page.evaluate(BOXES, ".scroll, h1, h2, h3, p, dl"):
        assert right <= page_width, name
    assert visit.logged == []
    assert visit.requests == [file.as_uri()]


def test_colours_follow_the_reader(browser: Any, file: Path) -> None:
    brightness = {}
    for scheme in ("light", "dark"):
        visit = Visit(browser, file, DESKTOP, scheme)
        for what, place in (("page", ("body", "backgroundColor")), ("text", ("body", "color"))):
            brightness[scheme, what] = sum(visit.colour(*place))
        brightness[scheme, "label"] = sum(visit.colour("svg text", "fill"))
        visit.context.close()
    assert brightness["light", "page"] > 600 > 150 > brightness["dark", "page"]
    for what in ("text", "label"):
        assert brightness["light", what] < 350 < 400 < brightness["dark", what]


def test_labels_stay_inside_their_pictures(visit: Visit) -> None:
    outside = visit.page.evaluate(
        """() => [...document.querySelectorAll('svg text')].filter(text => {
            const box = text.getBoundingClientRect();
            const frame = text.closest('figure').getBoundingClientRect();
            return box.left < frame.left || box.right > frame.right || box.width === 0;
        }).map(text => text.closest('svg').getAttribute('aria-label') + ': ' + text.textContent)"""
    )
    assert outside == []


def test_a_screenshot_has_ink(visit: Visit, tmp_path: Path) -> None:
    file = tmp_path / "shot.png"
    visit.page.screenshot(path=file, full_page=True)
    assert file.stat().st_size > 30_000
