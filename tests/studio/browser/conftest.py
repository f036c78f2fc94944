"""A served page, and Chromium to open it in; skipped where there is no Chromium."""

from __future__ import annotations

import itertools
import shutil
import threading
from collections.abc import Callable, Iterator
from typing import Any

import pytest

from nablaflow.studio.serve import serve
from nablaflow.studio.site import Site

CHROMIUM = shutil.which("chromium") or shutil.which("chromium-browser")
FLAGS = ["--no-sandbox", "--disable-gpu", "--no-first-run", "--disable-background-networking"]
DESKTOP, PHONE = {"width": 1100, "height": 800}, {"width": 390, "height": 844}
SCHEMES = ("light", "dark")
PATIENCE = 60_000  # milliseconds, on a busy machine
Opened = Callable[..., Any]


def looks(page: Any) -> Iterator[tuple[str, int]]:
    """Show what is open in each scheme on each screen, and say which."""
    for scheme, viewport in itertools.product(SCHEMES, (PHONE, DESKTOP)):
        page.emulate_media(color_scheme=scheme)
        page.set_viewport_size(viewport)
        yield scheme, viewport["width"]


@pytest.fixture(scope="session")
def chromium() -> Iterator[Any]:
    playwright = pytest.importorskip("playwright.sync_api", reason="pip install '.[test-browser]'")
    if CHROMIUM is None:
        pytest.skip("needs Chromium: apt install chromium")
    playwright.expect.set_options(timeout=PATIENCE)
    with playwright.sync_playwright() as started:
        found = started.chromium.launch(executable_path=CHROMIUM, args=FLAGS)
        yield found
        found.close()


@pytest.fixture
def served(site: Site) -> str:
    """The address of a page that is served until the tests end, token and all."""
    found: list[str] = []
    ready = threading.Event()

    def told(where: str) -> None:
        found.append(where)
        ready.set()

    threading.Thread(target=serve, args=(site, 0, told), daemon=True).start()
    assert ready.wait(60)
    return found[0]


@pytest.fixture
def opened(chromium: Any, served: str) -> Iterator[Opened]:
    """Opens a path in a browser of its own; whatever went wrong there fails the test."""
    contexts, wrong = [], []

    def open_(path: str = "/", allowed: tuple[int, ...] = (), **given: Any) -> Any:
        context = chromium.new_context(viewport=given.pop("viewport", DESKTOP), **given)
        contexts.append(context)
        page = context.new_page()
        page.set_default_timeout(PATIENCE)
        page.on("pageerror", lambda error: wrong.append(str(error)))
        page.on("dialog", lambda dialog: wrong.append(f"dialog: {dialog.message}"))

        def heard(message: Any) -> None:
            known = any(f"status of {status}" in message.text for status in allowed)
            if message.type == "error" and not known:
                wrong.append(message.text)

        page.on("console", heard)
        page.goto(served)
        page.goto(served.split("/?")[0] + path)
        return page

    yield open_
    for context in contexts:
        context.close()
    assert wrong == []
