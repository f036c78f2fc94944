"""Folders of small images, and a page over them."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from PIL import Image

pytest.importorskip("starlette")
from starlette.testclient import TestClient

from nablaflow.studio.access import COOKIE, HEADER
from nablaflow.studio.app import make_app
from nablaflow.studio.folders import address
from nablaflow.studio.site import Site

TOKEN = "a token of the test"
URL = "http://127.0.0.1:8000"
Open = Callable[..., TestClient]


@pytest.fixture
def images(tmp_path: Path) -> Path:
    """Twelve images of two prompts, named as `nablaflow sample` names them."""
    folder = tmp_path / "root" / "images"
    folder.mkdir(parents=True)
    for number in range(12):
        picture = Image.new("RGB", (8, 8), (20 * number, 100, 255 - 20 * number))
        prompt = "a-circle" if number % 2 else "a-star"
        picture.save(folder / f"{number:04d}-{prompt}.png")
    return folder


@pytest.fixture
def site(images: Path) -> Iterator[Site]:
    site = Site(images.parent, write=True, features="pixels")
    yield site
    site.jobs.close()


@pytest.fixture
def client(site: Site) -> TestClient:
    """A browser that was given the token."""
    client = TestClient(make_app(site, TOKEN), base_url=URL, cookies={COOKIE: TOKEN})
    client.headers.update({"origin": URL, HEADER: TOKEN})
    return client


@pytest.fixture
def rate(images: Path) -> str:
    return f"/rate/{address(images)}"
