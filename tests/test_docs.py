"""The pages: every link leads somewhere, every page has its place in the site."""

from __future__ import annotations

import re
from collections.abc import Iterator
from pathlib import Path
from types import ModuleType

import pytest

from armor.demo.text import model_dir

ROOT = Path(__file__).parents[1]
PAGES = [*sorted(ROOT.glob("*.md")), *sorted((ROOT / "docs").glob("*.md"))]
_LINK = re.compile(r"\]\(([^)\s]+)\)")
_FENCE = re.compile(r"^```.*?^```$", re.MULTILINE | re.DOTALL)
_HEADING = re.compile(r"^#+ +(.+)$", re.MULTILINE)


def prose(page: Path) -> str:
    """A page without its blocks of code."""
    text = _FENCE.sub("", page.read_text(encoding="utf-8"))
    return "\n".join(line for line in text.split("\n") if not line.startswith("    "))


def anchors(page: Path) -> set[str]:
    """The anchors that GitHub, and the site, give to the headings of a page."""
    headings = (re.sub(r"[^\w\- ]", "", title.lower()) for title in _HEADING.findall(prose(page)))
    return {heading.strip().replace(" ", "-") for heading in headings}


def broken(page: Path, text: str) -> Iterator[str]:
    """The links in `text` that lead nowhere from where `page` lies."""
    for target in _LINK.findall(text):
        if re.match(r"https?://", target):
            continue
        path, _, anchor = target.partition("#")
        found = (page.parent / path).resolve() if path else page
        is_there = found.exists() and ROOT in found.parents
        if not is_there or (anchor and anchor not in anchors(found)):
            yield target


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_every_link_leads_somewhere(page: Path) -> None:
    assert list(broken(page, prose(page))) == []


def test_broken_links_are_found() -> None:
    page = ROOT / "docs" / "index.md"
    text = (
        "[a](runtime.md) [b](absent.md) [c](runtime.md#memory) [d](runtime.md#absent) [e](#map-of)"
    )
    text += " [f](../../outside.md) [g](https://example.org/absent) ![h](images/absent.png)"
    wrong = ["absent.md", "runtime.md#absent", "#map-of", "../../outside.md", "images/absent.png"]
    assert list(broken(page, text)) == wrong


@pytest.mark.parametrize("name", ["index", "algorithm", "glossary"])
def test_the_places_that_a_page_names_exist(name: str) -> None:
    text = (ROOT / "docs" / f"{name}.md").read_text(encoding="utf-8")
    places = set(re.findall(r"`([\w/]+(?:\.py|/))`", text))
    assert len(places) > 5
    bases = (ROOT, ROOT / "src" / "armor")
    missing = [place for place in places if not any((base / place).exists() for base in bases)]
    assert sorted(missing) == []


def test_the_names_that_the_map_gives_are_in_their_files() -> None:
    text = (ROOT / "docs" / "index.md").read_text(encoding="utf-8")
    named = re.findall(r"`(\w+)`,? (?:in )?`([\w/]+\.py)`", text)
    assert len(named) >= 7
    package = ROOT / "src" / "armor"
    missing = [
        f"{name} in {place}"
        for name, place in named
        if not re.search(rf"^(class )?{name}\b", (package / place).read_text(), re.MULTILINE)
    ]
    assert missing == []


def test_the_site_has_every_page_once() -> None:
    settings = (ROOT / "mkdocs.yml").read_text(encoding="utf-8")
    navigation = settings.partition("\nnav:")[2].partition("\n\n")[0]
    listed = re.findall(r": (\S+\.md)$", navigation, re.MULTILINE)
    assert sorted(listed) == sorted(page.name for page in (ROOT / "docs").glob("*.md"))


@pytest.fixture
def links(monkeypatch: pytest.MonkeyPatch) -> ModuleType:
    monkeypatch.syspath_prepend(str(ROOT / "scripts"))
    import docs_links

    return docs_links


def test_links_out_of_docs_lead_to_copies_in_the_site(links: ModuleType) -> None:
    text = (
        "[a](../README.md) ![b](../benchmarks/results/solver.png) [c](runtime.md#memory) [d](../x)"
    )
    assert links.rewritten(text, ROOT) == (
        "[a](repository/README.md.txt) ![b](repository/benchmarks/results/solver.png)"
        " [c](runtime.md#memory) [d](../x)"
    )
    assert list(links.outside(text, ROOT)) == ["README.md", "benchmarks/results/solver.png"]


def test_the_readme_is_short_and_starts_with_what_to_try() -> None:
    lines = (ROOT / "README.md").read_text(encoding="utf-8").split("\n")
    assert len(lines) <= 150
    assert {"make demo", "make test"} <= {line.strip().partition("  ")[0] for line in lines[:12]}


def test_the_python_code_of_the_readme_runs(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    (source,) = re.findall(r"```python\n(.*?)```", (ROOT / "README.md").read_text(), re.DOTALL)
    quick = 'calibration="text.txt", samples=2, seq_len=32, iterations=1, block_size=16'
    source = source.replace('calibration="text.txt"', quick)
    source = source.replace('"Qwen/Qwen2.5-0.5B"', repr(str(model_dir())))
    monkeypatch.chdir(tmp_path)
    Path("text.txt").write_text("The square of one is one. " * 50)
    scope: dict[str, object] = {}
    exec(compile(source, "README.md", "exec"), scope)
    assert type(scope["model"]).__name__ == "LlamaForCausalLM"
