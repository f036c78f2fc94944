"""What a request says is checked: whatever JSON can hold is done, or refused in one line."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

pytest.importorskip("starlette")
from starlette.testclient import TestClient

from nablaflow.studio.folders import address
from nablaflow.studio.site import Site

ODD = [None, [], ["a"], {}, "", "a\0b", "\ud800", True, 1.5, -1, 10**400, float("nan"), "--help"]
"""What no page of ours sends."""

ASKED: dict[str, dict[str, Any]] = {
    "/sample": {"source": "", "prompts": "a circle", "n": 2, "seed": 1},
    "/compare/start": {"group": 0, "runs": []},
    "/fit/IMAGES/start": {"kind": "pairs"},
    "/fit/IMAGES/align": {"beta": 1.0, "updates": 2},
    "/rate/IMAGES/pairs/ask": {"rater": "A"},
    "/rate/IMAGES/pairs/answer": {"rater": "A", "number": 1, "answer": "left"},
    "/rate/IMAGES/stars/answer": {"rater": "A", "number": 1, "answer": "3"},
    "/rate/IMAGES/pairs/undo": {"rater": "A"},
}
FIELDS = [(path, field) for path, given in ASKED.items() for field in given]


@pytest.fixture(autouse=True)
def starts_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    """In place of each command one that ends at once."""
    monkeypatch.setattr("nablaflow.studio.jobs.PROGRAM", ["-c", ""])


@pytest.mark.parametrize(("path", "field"), FIELDS)
def test_a_value_that_no_page_sends_fails_nothing(
    client: TestClient, site: Site, images: Path, path: str, field: str
):
    place = path.replace("IMAGES", address(images))
    for value in ODD:
        said = json.dumps({**ASKED[path], field: value})
        assert client.post(place, content=said).status_code in (200, 400, 409), value
        if site.jobs.running is not None:
            site.jobs.running.wait()


@pytest.mark.parametrize(("character", "fault"), [("\0", "NUL"), ("\ud800", "half a character")])
def test_a_character_that_is_no_text_is_named_by_its_field(
    client: TestClient, character: str, fault: str
):
    given = {**ASKED["/sample"], "prompts": f"a circle\na {character} star"}
    answer = client.post("/sample", content=json.dumps(given))
    assert answer.status_code == 409
    assert answer.json()["error"].startswith("prompts: holds ")
    assert fault in answer.json()["error"]
