"""Pages for people who use no mouse, or no eyes: axe where it is installed, and what matters most.

axe-core comes with `axe-playwright-python`, which the extra `test-browser` names.
"""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import pytest

from nablaflow.studio import app
from nablaflow.studio.folders import address
from nablaflow.studio.site import Site
from tests.studio.browser.conftest import Opened, looks
from tests.studio.browser.test_looking import paths_of
from tests.studio.runs import make_finished
from tests.studio.test_galleries import make_gallery

SERIOUS = ("serious", "critical")
TEXT = ("ink", "muted", "aligned", "tilt", "wrong")
GROUND = ("paper", "card", "wash")


@pytest.fixture
def run(site: Site) -> Path:
    run = make_finished(site.root, "first")
    make_gallery(site.root, run)
    return run


def test_axe_finds_nothing_serious(opened: Opened, images: Path, run: Path):
    axe = pytest.importorskip("axe_playwright_python.sync_playwright").Axe()
    page = opened()
    base = page.url.rstrip("/")
    found = []
    for path in paths_of(images, run):
        page.goto(base + path)
        page.wait_for_load_state("networkidle")
        for look in looks(page):
            for violation in axe.run(page).response["violations"]:
                if violation["impact"] in SERIOUS:
                    where = [node["html"][:120] for node in violation["nodes"][:3]]
                    found.append((path, *look, violation["id"], where))
    assert found == []


def test_everything_that_can_be_used_has_a_name_and_a_place_in_the_order(
    opened: Opened, images: Path, run: Path
):
    page = opened()
    base = page.url.rstrip("/")
    for path in paths_of(images, run):
        page.goto(base + path)
        page.wait_for_load_state("networkidle")
        assert page.locator("h1").count() == 1, path
        assert page.locator("main").count() == 1, path
        nameless = page.evaluate(NAMELESS)
        assert nameless == [], path
        assert page.locator("[tabindex]:not([tabindex='0'])").count() == 0, path


NAMELESS = """() => [...document.querySelectorAll('a[href], button, input, select, textarea')]
  .filter((one) => one.checkVisibility())
  .filter((one) => !(one.getAttribute('aria-label') || one.innerText?.trim() || one.labels?.length
                     || one.querySelector?.('img[alt]:not([alt=""])')))
  .map((one) => one.outerHTML)"""


def test_tab_goes_through_the_rating_in_the_order_that_is_seen(opened: Opened, images: Path):
    page = opened(f"/rate/{address(images)}/pairs")
    page.wait_for_selector("#rating:not([aria-busy])")
    page.focus("#rater")
    order = []
    for _ in range(4):
        page.keyboard.press("Tab")
        name = (
            "document.activeElement.getAttribute('aria-label') || document.activeElement.innerText"
        )
        order.append(page.evaluate(name).split()[0:2])
    assert order == [["the", "left"], ["the", "right"], ["skip", "space"], ["undo", "u"]]
    outline = page.evaluate("getComputedStyle(document.activeElement).outlineStyle")
    assert outline == "solid"


@pytest.mark.parametrize("scheme", ["light", "dark"])
def test_text_stands_out_from_its_ground(scheme: str):
    """4.5 to 1, WCAG 2.2, success criterion 1.4.3; borders of controls 3 to 1, criterion 1.4.11."""
    colours = tokens(scheme)
    for ground in GROUND:
        for text in TEXT:
            if ground != "wash" or text == "aligned":
                assert contrast(colours[text], colours[ground]) >= 4.5, (text, ground)
    assert contrast(colours["on"], colours["aligned"]) >= 4.5
    assert contrast(colours["edge"], colours["paper"]) >= 3.0


def tokens(scheme: str) -> dict[str, str]:
    """The palette of the style sheet; the second one is the dark one's."""
    css = (app.HERE / "static" / "studio.css").read_text()
    light, dark = re.findall(r":root \{(.*?)\}", css, re.DOTALL)[:2]
    return dict(re.findall(r"--(\w+): (#\w{6})", dark if scheme == "dark" else light))


def contrast(first: str, second: str) -> float:
    """The ratio of two colours by WCAG's definition of relative luminance."""
    lighter, darker = sorted((luminance(first), luminance(second)), reverse=True)
    return (lighter + 0.05) / (darker + 0.05)


def luminance(colour: str) -> float:
    parts = [int(colour[at : at + 2], 16) / 255 for at in (1, 3, 5)]
    linear = [p / 12.92 if p <= 0.03928 else ((p + 0.055) / 1.055) ** 2.4 for p in parts]
    return sum(weight * part for weight, part in zip((0.2126, 0.7152, 0.0722), linear, strict=True))


def test_contrast_is_that_of_the_standard():
    assert contrast("#ffffff", "#000000") == pytest.approx(21.0)
    assert contrast("#777777", "#ffffff") == pytest.approx(4.48, abs=0.005)  # WebAIM's checker


def test_a_finding_would_be_found(opened: Opened, images: Path):
    """The checks above on a page that is spoiled on purpose."""
    page: Any = opened()
    page.evaluate("document.querySelector('main').append(document.createElement('button'))")
    assert page.evaluate(NAMELESS) == ["<button></button>"]
