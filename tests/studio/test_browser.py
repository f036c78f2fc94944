"""The pages in a real browser: with keys alone, on a phone, in the dark."""

from __future__ import annotations

import re
import shutil
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from nablaflow.studio.folders import address
from nablaflow.studio.pairs import read_rows
from nablaflow.studio.serve import serve
from nablaflow.studio.site import Site

playwright = pytest.importorskip("playwright.sync_api", reason="pip install '.[test-browser]'")
CHROMIUM = shutil.which("chromium") or shutil.which("chromium-browser")
pytestmark = pytest.mark.skipif(CHROMIUM is None, reason="needs Chromium")
FLAGS = ["--no-sandbox", "--disable-gpu", "--no-first-run", "--disable-background-networking"]


@pytest.fixture
def served(site: Site) -> str:
    """The address of a page that is served until the tests end."""
    found: list[str] = []
    ready = threading.Event()

    def told(where: str) -> None:
        found.append(where)
        ready.set()

    threading.Thread(target=serve, args=(site, 0, told), daemon=True).start()
    assert ready.wait(60)
    return found[0]


@pytest.fixture
def browser() -> Iterator[Any]:
    with playwright.sync_playwright() as started:
        found = started.chromium.launch(executable_path=CHROMIUM, args=FLAGS)
        yield found
        found.close()


def test_rating_with_keys_alone(served: str, browser: Any, images: Path):
    page = browser.new_page()
    wrong: list[str] = []
    page.on("console", lambda message: wrong.append(message.text) if message.type == "error" else 0)
    page.on("pageerror", lambda error: wrong.append(str(error)))
    page.goto(served)
    assert "token" not in page.url
    page.get_by_role("link", name="rate").click()
    progress = page.locator("#progress")
    for count, key in enumerate(["ArrowLeft", "ArrowRight", "ArrowLeft"], start=1):
        playwright.expect(page.locator("#left-image")).to_have_attribute("src", re.compile("/"))
        page.keyboard.press(key)
        playwright.expect(progress).to_contain_text(f"{count} in all")
    page.keyboard.press("u")
    playwright.expect(progress).to_contain_text("2 in all")
    assert len(read_rows(images / "pairs.csv")) == 2
    assert wrong == []


@pytest.mark.parametrize("scheme", ["light", "dark"])
def test_nothing_is_wider_than_a_phone(served: str, browser: Any, images: Path, scheme: str):
    page = browser.new_page(viewport={"width": 390, "height": 844}, color_scheme=scheme)
    page.goto(served)
    for path in (
        "/",
        f"/images/{address(images)}",
        f"/rate/{address(images)}",
        f"/fit/{address(images)}",
    ):
        page.goto(served.split("/?")[0] + path)
        assert page.evaluate("document.documentElement.scrollWidth") <= 390, path
    ink, paper = (
        page.evaluate(f"getComputedStyle(document.body).{name}")
        for name in ("color", "backgroundColor")
    )
    assert (_brightness(ink) > _brightness(paper)) == (scheme == "dark")


def _brightness(colour: str) -> int:
    return sum(int(part) for part in colour.removeprefix("rgb(").rstrip(")").split(","))
