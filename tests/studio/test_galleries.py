"""A run's gallery as data, and what the page makes of it."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from starlette.testclient import TestClient

from nablaflow.studio.folders import address, image_address
from nablaflow.studio.galleries import place_of, read_gallery
from nablaflow.studio.site import Site
from tests.studio.conftest import write_images
from tests.studio.runs import make_finished


def make_gallery(root: Path, run: Path, count: int = 4) -> Path:
    """The reference, a checkpoint and a strength, with rewards that fall and distances that rise."""
    place = place_of(root, run)
    rows = []
    for number, name in enumerate(("reference", "step-000003", "strength-0.5")):
        write_images(place / name, count)
        rewards = [number - 0.1 * at for at in range(count)]
        distances = [float(number * at) for at in range(count)]
        row = {"folder": name, "checkpoint": name, "strength": number / 2, "rewards": rewards}
        rows.append({**row, "distances": distances})
    prompts = ["a star", "<b>"] * (count // 2)
    (place / "gallery.json").write_text(json.dumps({"prompts": prompts, "positions": rows}))
    return place


@pytest.fixture
def run(site: Site) -> Path:
    return make_finished(site.root, "first")


def test_positions_and_their_images(client: TestClient, site: Site, run: Path):
    assert client.get(f"/run/{address(run)}/gallery").json() == {}
    place = make_gallery(site.root, run)
    site.found(now=True)
    found = client.get(f"/run/{address(run)}/gallery").json()
    assert [at["name"] for at in found["positions"]] == ["reference", "step-000003", "strength-0.5"]
    assert found["prompts"][1] == "<b>"
    first = found["positions"][0]
    path = place / "reference" / "0000-a-star.png"
    assert first["images"][0] == image_address(path)
    shown = client.get(f"/images/{first['address']}/{first['images'][0]}")
    assert shown.content == path.read_bytes()
    assert "galleries" not in client.get("/").text.split("Images")[1]


@pytest.mark.parametrize(
    "content",
    [
        "[]",
        "{",
        '{"prompts": "a", "positions": []}',
        '{"prompts": ["a"], "positions": [3, {"folder": 3}, {"folder": "../images"}]}',
        '{"prompts": ["a"], "positions": [{"folder": "reference"}]}',
    ],
)
def test_a_table_that_is_none(tmp_path: Path, content: str):
    write_images(tmp_path / "reference")
    (tmp_path / "gallery.json").write_text(content)
    assert read_gallery(tmp_path) is None


def test_figures_that_are_none(tmp_path: Path):
    write_images(tmp_path / "reference", 2)
    row = {"folder": "reference", "strength": "much", "rewards": ["x", 1e999], "distances": [1]}
    content = {"prompts": ["a", "b"], "positions": [row]}
    (tmp_path / "gallery.json").write_text(json.dumps(content))
    found = read_gallery(tmp_path)
    assert found is not None
    (position,) = found["positions"]
    assert position["strength"] is None
    assert position["rewards"] == position["distances"] == [None, None]
