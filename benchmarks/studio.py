"""How quick the studio's pages are, in headless Chromium: start, galleries, an answer.

    python benchmarks/studio.py [--out runs/studio_speed.json] [--answers 200]

``page up``: from the command to the first page drawn. ``gallery``: from the click to the images
that are in view, and to all 500 of them, of 64 pixels as the embedded model has them and of 512.
``answer``: from the key to the next pair on the screen; ``request``: of that, what the server
takes, the disk included, on a table that holds 10,000 answers already. Of many, the median and the
95th percentile. Other work on the machine makes all of them slower; ``load`` says how much
there was.
"""

from __future__ import annotations

import argparse
import json
import os
import shutil
import statistics
import subprocess
import sys
import tempfile
import time
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

CHROMIUM = shutil.which("chromium") or shutil.which("chromium-browser")
FLAGS = ["--no-sandbox", "--disable-gpu", "--no-first-run", "--disable-background-networking"]
DESKTOP = {"width": 1100, "height": 800}
PAGE, MANY, BEFORE = 500, 10_000, 10_000
PATIENCE = 120_000  # milliseconds

COME = "(image) => image.complete && image.naturalWidth > 0"
IN_VIEW = f"""() => document.readyState === 'complete'
  && document.querySelectorAll('.gallery img').length === {PAGE}
  && [...document.querySelectorAll('.gallery img')]
    .filter((image) => image.getBoundingClientRect().top < innerHeight).every({COME})"""
ALL = f"() => [...document.querySelectorAll('.gallery img')].every({COME})"
LONGEST_STALL = """() => new Promise((done) => {
  let longest = 0, last = performance.now(), at = 0;
  const step = (now) => {
    longest = Math.max(longest, now - last); last = now;
    at += 400; scrollTo(0, at);
    if (at < document.body.scrollHeight) requestAnimationFrame(step); else done(longest);
  };
  requestAnimationFrame(step);
})"""


def write_images(folder: Path, count: int, side: int) -> None:
    """Twenty smooth pictures, copied."""
    folder.mkdir(parents=True)
    draw, few = np.random.default_rng(0), 20
    for number in range(few):
        pixels = draw.integers(0, 256, (8, 8, 3), dtype=np.uint8)
        picture = Image.fromarray(pixels).resize((side, side), Image.Resampling.BICUBIC)
        picture.save(folder / f"{number:05d}-a-star.png")
    for number in range(few, count):
        shutil.copy(folder / f"{number % few:05d}-a-star.png", folder / f"{number:05d}-a-star.png")


def write_answers(folder: Path) -> None:
    rows = [
        f"{n % 400:05d}-a-star.png,{n % 399 + 1:05d}-a-star.png,a star,ann,random\n"
        for n in range(BEFORE)
    ]
    (folder / "pairs.csv").write_text("preferred,rejected,prompt,rater,pick\n" + "".join(rows))


@contextmanager
def served(folder: Path):
    command = [sys.executable, "-m", "nablaflow", "studio", str(folder), "--write"]
    process = subprocess.Popen(command, stdout=subprocess.PIPE, text=True)
    try:
        assert process.stdout is not None
        yield process.stdout.readline().strip()
    finally:
        process.terminate()
        process.wait()


def page_up(browser: Any, folder: Path) -> float:
    began = time.perf_counter()
    with served(folder) as address:
        page = browser.new_page(viewport=DESKTOP)
        page.goto(address)
        page.wait_for_selector(".folders")
        found = time.perf_counter() - began
        page.close()
    return found


def gallery(page: Any, base: str, name: str) -> dict[str, float]:
    page.goto(base)
    link = page.locator(".folders .name a", has_text=name)
    began = time.perf_counter()
    link.click()
    page.wait_for_function(IN_VIEW, timeout=PATIENCE)
    found = {"in view": time.perf_counter() - began}
    page.evaluate(
        "document.querySelectorAll('.gallery img').forEach((one) => one.loading = 'eager')"
    )
    page.wait_for_function(ALL, timeout=PATIENCE)
    return {**found, "all": time.perf_counter() - began}


def answers(page: Any, base: str, name: str, count: int) -> dict[str, list[float]]:
    page.goto(base)
    page.locator("li", has_text=name).get_by_text("rate pairs").click()
    page.wait_for_selector("#rating:not([aria-busy])")
    page.evaluate(WATCHED)
    shown = []
    for _ in range(count):
        page.evaluate("() => { window.told = new Promise((done) => { window.tell = done; }); }")
        page.keyboard.press("ArrowLeft")
        shown.append(page.evaluate("window.told"))
    entries = "performance.getEntriesByType('resource')"
    of_server = f"{entries}.filter((e) => e.name.endsWith('/answer')).map((e) => e.duration)"
    return {"request": page.evaluate(of_server), "answer": shown}


WATCHED = """() => {
  performance.setResourceTimingBufferSize(10000);
  let began = 0;
  addEventListener('keydown', () => { began = performance.now(); }, true);
  new MutationObserver(() => {
    const busy = document.getElementById('rating').hasAttribute('aria-busy');
    if (!busy) window.tell(performance.now() - began);
  }).observe(document.getElementById('rating'), { attributeFilter: ['aria-busy'] });
}"""


def summary(values: list[float]) -> dict[str, float]:
    return {"median": statistics.median(values), "95 %": float(np.quantile(values, 0.95))}


def measure(folder: Path, count: int) -> dict[str, Any]:
    from playwright.sync_api import sync_playwright

    write_images(folder / "small", PAGE, 64)
    write_images(folder / "large", PAGE, 512)
    write_images(folder / "many", MANY, 64)
    write_answers(folder / "many")
    with sync_playwright() as started:
        browser = started.chromium.launch(executable_path=CHROMIUM, args=FLAGS)
        found: dict[str, Any] = {"page up, s": [page_up(browser, folder) for _ in range(3)]}
        print(found, file=sys.stderr, flush=True)
        with served(folder) as address:
            base = address.split("/?")[0]
            page = browser.new_page(viewport=DESKTOP)
            page.set_default_timeout(PATIENCE)
            page.goto(address)
            for name in ("small", "large", "many"):
                found[f"gallery {name}, s"] = gallery(page, base, name)
                print(name, found[f"gallery {name}, s"], file=sys.stderr, flush=True)
            found["longest frame while scrolling, ms"] = page.evaluate(LONGEST_STALL)
            for what, values in answers(page, base, "many", count).items():
                found[f"{what}, ms"] = summary(values)
        browser.close()
    return found


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--answers", type=int, default=200)
    parser.add_argument("--out", type=Path)
    given = parser.parse_args()
    before = os.getloadavg()[0]
    with tempfile.TemporaryDirectory() as folder:
        found = measure(Path(folder), given.answers)
    found |= {"load": [before, os.getloadavg()[0]], "cores": os.cpu_count()}
    if given.out is not None:
        given.out.write_text(json.dumps(found, indent=1) + "\n")
    print(json.dumps(found, indent=1))


if __name__ == "__main__":
    main()
