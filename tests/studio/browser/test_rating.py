"""Rating in a real browser: keys alone, two people at once, a full disk."""

from __future__ import annotations

import re
from contextlib import suppress
from pathlib import Path
from typing import Any

from nablaflow.studio.folders import address
from nablaflow.studio.pairs import PairRow
from nablaflow.studio.site import Site
from nablaflow.studio.stars import StarRow
from nablaflow.studio.table import JudgementTable
from tests.faults.test_full_disk import disk
from tests.studio.browser.conftest import PHONE, Opened
from tests.studio.conftest import write_images


def pairs_of(folder: Path) -> list[PairRow]:
    return list(JudgementTable[PairRow](folder / "pairs.csv", PairRow).rows())


def press(page: Any, key: str) -> None:
    """Once the question is there to be seen."""
    page.wait_for_selector("#rating:not([aria-busy])")
    page.keyboard.press(key)


def fill(place: Path) -> Path:
    """A file that takes all that is left of a disk."""
    filler = place / "filler"
    with suppress(OSError), filler.open("wb", buffering=0) as file:
        while True:
            file.write(b"x" * 1024)
    return filler


def told(page: Any, text: str) -> None:
    page.locator("#progress", has_text=text).wait_for()


def test_pairs_with_keys_alone(opened: Opened, images: Path):
    page = opened()
    assert "token" not in page.url
    page.get_by_role("link", name=re.compile("^rate pairs")).focus()
    page.keyboard.press("Enter")
    page.wait_for_url("**/pairs")
    for count, key in enumerate(["ArrowLeft", "ArrowRight", "ArrowLeft"], start=1):
        press(page, key)
        told(page, f"{count} in all")
    press(page, " ")
    press(page, "u")  # of the skip
    press(page, "u")
    told(page, "2 in all")
    assert len(pairs_of(images)) == 2


def test_what_is_seen_is_what_is_judged(opened: Opened, images: Path):
    page = opened(f"/rate/{address(images)}/pairs")
    page.wait_for_selector("#rating:not([aria-busy])")
    left = page.locator("#image-0").evaluate("image => image.src")
    seen = page.request.get(left).body()
    press(page, "ArrowLeft")
    told(page, "1 in all")
    assert (images / pairs_of(images)[0].preferred).read_bytes() == seen


def test_stars_by_touch_on_a_phone(opened: Opened, images: Path):
    page = opened(f"/rate/{address(images)}/stars", viewport=PHONE, has_touch=True)
    page.wait_for_selector("#rating:not([aria-busy])")
    page.get_by_role("button", name="4 of 5 stars").tap()
    told(page, "1 in all")
    press(page, "2")
    told(page, "2 in all")
    rows = JudgementTable[StarRow](images / "ratings.csv", StarRow).rows()
    assert [row.score for row in rows] == ["4", "2"]


def test_a_name_that_comes_while_a_question_is_asked(opened: Opened, images: Path):
    page, held = opened(), []
    page.route("**/pairs/ask", lambda asked: held.append(asked))
    page.goto(page.url.split("/?")[0].rstrip("/") + f"/rate/{address(images)}/pairs")
    page.fill("#rater", "ann")
    page.keyboard.press("Tab")
    page.wait_for_function("document.activeElement.id !== 'rater'")
    assert [asked.request.post_data_json["rater"] for asked in held] == ["me"]
    held[0].continue_()
    page.unroute("**/pairs/ask")
    told(page, "0 by ann")
    press(page, "ArrowLeft")
    told(page, "1 by ann")
    assert [row.rater for row in pairs_of(images)] == ["ann"]


def test_two_people_at_once(opened: Opened, images: Path):
    pages = [opened(f"/rate/{address(images)}/pairs") for _ in range(2)]
    for name, page in zip(("ann", "ben"), pages, strict=True):
        page.fill("#rater", name)
        page.keyboard.press("Tab")
        told(page, f"0 by {name}")
    for count in range(1, 9):
        for page in pages:
            press(page, "ArrowLeft")
        for name, page in zip(("ann", "ben"), pages, strict=True):
            told(page, f"{count} by {name}")
    raters = [row.rater for row in pairs_of(images)]
    assert (raters.count("ann"), raters.count("ben")) == (8, 8)


def test_a_full_disk_is_said_and_the_answer_can_be_given_again(
    opened: Opened, site: Site, tmp_path: Path
):
    with disk(tmp_path / "disk", 2**17) as place:
        folder = write_images(place / "images")
        site.root = place
        page = opened(f"/rate/{address(folder)}/pairs", allowed=(507,))
        press(page, "ArrowLeft")
        told(page, "1 in all")
        filler = fill(place)
        for _ in range(200):  # what is left of the table's own page
            if page.inner_text("#said"):
                break
            press(page, "ArrowLeft")
            page.wait_for_selector("#rating:not([aria-busy])")
        assert "No space left on device" in page.inner_text("#said")
        before = len(pairs_of(folder))
        filler.unlink()
        press(page, "ArrowRight")
        told(page, f"{before + 1} in all")
        assert len(pairs_of(folder)) == before + 1
        site.root = tmp_path / "root"
