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


def write_images(folder: Path, count: int = 12) -> Path:
    """Images of two prompts, named as `nablaflow sample` names them; later ones are redder."""
    folder.mkdir(parents=True)
    for number in range(count):
        red = 240 * number // count
        prompt = "a-circle" if number % 2 else "a-star"
        picture = Image.new("RGB", (8, 8), (red, 100, 255 - red))
        picture.save(folder / f"{number:04d}-{prompt}.png")
    return folder


@pytest.fixture
def images(tmp_path: Path) -> Path:
    return write_images(tmp_path / "root" / "images")


@pytest.fixture
def site(images: Path) -> Iterator[Site]:
    site = Site(images.parent, write=True, features="pixels")
    yield site
    site.close()


@pytest.fixture
def client(site: Site) -> TestClient:
    """A browser that was given the token."""
    client = TestClient(make_app(site, TOKEN), base_url=URL, cookies={COOKIE: TOKEN})
    client.headers.update({"origin": URL, HEADER: TOKEN})
    return client


@pytest.fixture
def rate(images: Path) -> str:
    return f"/rate/{address(images)}/pairs"
