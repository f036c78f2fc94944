"""Pages in a real browser: a training that goes on, ends or dies; sliders; many images; names."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from PIL import Image

from nablaflow.storage.lock import held
from nablaflow.studio import jobs
from nablaflow.studio.folders import address
from nablaflow.studio.site import Site
from tests.studio.browser.conftest import Opened, looks
from tests.studio.runs import make_finished, make_run
from tests.studio.test_galleries import make_gallery

EVIL = "<img src=x onerror=alert(1)>"


def paths_of(images: Path, run: Path) -> list[str]:
    key = address(images)
    own = [f"/images/{key}", f"/rate/{key}/pairs", f"/rate/{key}/stars", f"/fit/{key}"]
    return ["/", "/words", "/compare", f"/run/{address(run)}", *own]


def test_nothing_is_wider_than_the_screen(opened: Opened, site: Site, images: Path):
    run = make_finished(site.root, "a-run-with-a-very-long-name-" + "x" * 120)
    make_gallery(site.root, run)
    page = opened()
    base = page.url.rstrip("/")
    for path in paths_of(images, run):
        page.goto(base + path)
        for scheme, width in looks(page):
            assert page.evaluate("document.documentElement.scrollWidth") <= width, (path, scheme)
            ink, paper = (
                page.evaluate(f"getComputedStyle(document.body).{name}")
                for name in ("color", "backgroundColor")
            )
            assert (_brightness(ink) > _brightness(paper)) == (scheme == "dark")


def _brightness(colour: str) -> int:
    return sum(int(part) for part in colour.removeprefix("rgb(").rstrip(")").split(","))


def test_a_training_that_is_watched_goes_on_and_dies(opened: Opened, site: Site):
    run = make_run(site.root, "live", metrics_jsonl='{"update": 1, "reward_mean": 0.1}\n')
    with held(run):
        page = opened(f"/run/{address(run)}")
        page.locator("#live .state", has_text="training").wait_for()
        assert "2 updates" not in page.inner_text("#live")
        with (run / "metrics.jsonl").open("a") as file:
            file.write('{"update": 2, "reward_mean": 0.3}\n')
        page.locator("#live", has_text="2 updates").wait_for()
    page.locator("#live .state", has_text="begun").wait_for()
    assert "Nobody trains it now" in page.inner_text("#live")
    assert "2 updates" in page.inner_text("#live")


def test_a_training_that_is_watched_ends(opened: Opened, site: Site):
    run = make_finished(site.root, "live")
    summary = (run / "summary.json").read_text()
    (run / "summary.json").unlink()
    with held(run):
        page = opened(f"/run/{address(run)}")
        page.locator("#live .state", has_text="training").wait_for()
        assert "86 ± 2 %" not in page.inner_text("#live")
        (run / "summary.json").write_text(summary)
    page.locator("#live .state", has_text="finished").wait_for()
    assert "86 ± 2 %" in page.inner_text("#live")


def test_a_command_that_dies_is_said_on_the_page(
    opened: Opened, site: Site, monkeypatch: pytest.MonkeyPatch
):
    dies = "import os, signal; signal.pause()"
    monkeypatch.setattr(jobs, "PROGRAM", ["-c", dies])
    page = opened()
    page.click("summary:has-text('Sample fresh images')")
    page.click("#fresh button")
    page.wait_for_selector("#job.running")
    assert site.jobs.last is not None
    site.jobs.last._process.kill()
    page.locator("#job-state", has_text="died: SIGKILL").wait_for()


def test_the_sliders_and_the_order(opened: Opened, site: Site):
    run = make_finished(site.root, "first")
    make_gallery(site.root, run)
    page = opened(f"/run/{address(run)}")
    page.wait_for_selector(".cards .card")
    assert page.inner_text("#checkpoint-name") == "step-000003"
    page.focus("#strength")
    page.keyboard.press("Home")
    assert page.inner_text("#checkpoint-name") == "the reference"
    assert page.inner_text("#strength-name") == "0"
    page.keyboard.press("ArrowRight")
    assert page.inner_text("#strength-name") == "0.5"
    page.select_option("#order", "worst")
    shown = page.locator(".card figure:nth-of-type(2) figcaption").all_inner_texts()
    rewards = [float(text.split()[-1]) for text in shown]
    assert rewards == sorted(rewards)
    page.select_option("#order", "farthest")
    moved = [float(t.split()[-1]) for t in page.locator(".card p").all_inner_texts()]
    assert moved == sorted(moved, reverse=True)
    assert moved[0] > moved[-1]


def test_ten_thousand_images_can_be_gone_through(opened: Opened, site: Site):
    many = site.root / "many"
    many.mkdir()
    Image.new("RGB", (8, 8), (200, 30, 30)).save(many / "00000.png")
    for number in range(1, 10_000):
        (many / f"{number:05d}.png").hardlink_to(many / "00000.png")
    page = opened(f"/images/{address(many)}")
    for _ in range(2):
        last = page.locator(".gallery img").last
        last.scroll_into_view_if_needed()
        page.wait_for_function(
            "() => [...document.querySelectorAll('.gallery img')].at(-1).complete"
        )
        assert last.evaluate("image => image.naturalWidth") == 8
        page.get_by_role("link", name="next").click()
    assert "page 3 of 20" in page.inner_text(".pages")


def test_hostile_names_and_prompts_are_text(opened: Opened, site: Site):
    run = make_run(
        site.root,
        EVIL,
        metrics_jsonl='{"update": 1, "reward_mean": 0.1}\n',
        config_yaml=f"reward: '{EVIL}'\n",
    )
    place = make_gallery(site.root, run)
    table = json.loads((place / "gallery.json").read_text())
    table["prompts"] = [EVIL] * 4
    (place / "gallery.json").write_text(json.dumps(table))
    page = opened()
    page.get_by_role("link", name=EVIL).click()
    page.wait_for_selector(".cards .card")
    assert page.inner_text("h1") == EVIL
    assert EVIL in page.inner_text(".cards")
    assert EVIL in page.text_content("details pre")
    page.get_by_role("link", name="rate these images").click()
    page.wait_for_selector("#rating:not([aria-busy])")
