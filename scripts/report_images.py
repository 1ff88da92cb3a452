"""Take the pictures of the documentation from the report of a comparison.

    python scripts/report_images.py build/real_model/report.html docs/images

Needs playwright and an installed Chromium.
"""

from __future__ import annotations

import argparse
import shutil
from pathlib import Path

from playwright.sync_api import sync_playwright

WIDTH = 1100


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("page", type=Path)
    parser.add_argument("out", type=Path)
    parser.add_argument("--name", default="smollm2-report", help="of the pictures")
    arguments = parser.parse_args()
    with sync_playwright() as driver:
        browser = driver.chromium.launch(
            executable_path=shutil.which("chromium") or shutil.which("google-chrome"),
            args=["--no-sandbox"],
        )
        for name, first, last in (
            (arguments.name, "header", "section:has(h2:text('Perplexity on'))"),
            (
                f"{arguments.name}-layers",
                "details.run",
                "section:has(h3:text('Which layers hurt'))",
            ),
        ):
            page = browser.new_page(viewport={"width": WIDTH, "height": 900})
            page.goto(arguments.page.resolve().as_uri())
            boxes = [page.locator(selector).first.bounding_box() for selector in (first, last)]
            assert boxes[0] is not None
            assert boxes[1] is not None
            top = max(0, boxes[0]["y"] - 24)
            height = boxes[1]["y"] + boxes[1]["height"] + 24 - top
            file = arguments.out / f"{name}.png"
            area = {"x": 0, "y": top, "width": WIDTH, "height": height}
            page.screenshot(path=file, full_page=True, clip=area)
            print(f"wrote {file}")
        browser.close()


if __name__ == "__main__":
    main()
