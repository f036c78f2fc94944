"""A run's policy exported from the page: the command it runs, and what can be taken along."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from starlette.testclient import TestClient

from nablaflow.models.formats import FORMATS as SERVED
from nablaflow.studio import jobs
from nablaflow.studio.exports import FORMATS, exported, place_of, single_file
from nablaflow.studio.folders import address
from nablaflow.studio.site import Site
from tests.studio.runs import make_finished


@pytest.fixture
def run(site: Site) -> Path:
    return make_finished(site.root, "first")


def make_export(root: Path, run: Path, form: str, *files: str) -> Path:
    place = place_of(root, run, form)
    for name in files:
        (place / name).parent.mkdir(parents=True, exist_ok=True)
        (place / name).write_bytes(f"{form} {name}".encode())
    (place / "export.json").write_text(json.dumps({"files": dict.fromkeys(files, "0")}))
    return place


def test_the_formats_are_those_of_the_command():
    assert list(FORMATS) == list(SERVED)


@pytest.mark.parametrize("form", FORMATS)
def test_the_page_runs_the_command(
    client: TestClient, site: Site, run: Path, monkeypatch: pytest.MonkeyPatch, form: str
):
    monkeypatch.setattr(jobs, "PROGRAM", ["-c", "pass"])
    command = client.post(f"/run/{address(run)}/export/{form}", json={}).json()["command"]
    out = place_of(site.root, run, form)
    assert command == f"nablaflow export {run} --format {form} --out {out} --overwrite"


def test_there_is_no_other_format(client: TestClient, run: Path):
    assert client.post(f"/run/{address(run)}/export/pickle", json={}).status_code == 404
    assert client.get(f"/run/{address(run)}/export/..%2Flora").status_code == 404


def test_what_is_one_file_can_be_downloaded(client: TestClient, site: Site, run: Path):
    page = f"/run/{address(run)}"
    assert client.get(f"{page}/export/kohya").status_code == 404
    make_export(site.root, run, "kohya", "kohya_lora.safetensors", "README.md")
    make_export(site.root, run, "merged", "unet/a.safetensors", "vae/b.safetensors")
    shown = client.get(page).text
    assert "download kohya" in shown
    assert "download merged" not in shown
    assert f"exports/{place_of(site.root, run, 'merged').name}" in shown
    answer = client.get(f"{page}/export/kohya")
    assert answer.content == b"kohya kohya_lora.safetensors"
    assert "kohya_lora.safetensors" in answer.headers["content-disposition"]
    assert client.get(f"{page}/export/merged").status_code == 404


@pytest.mark.parametrize("files", [[], "a", {"../a.safetensors": "0"}, {"a.safetensors": "0"}])
def test_a_manifest_leads_nowhere_else(site: Site, run: Path, tmp_path: Path, files: object):
    place = make_export(site.root, run, "kohya", "b.safetensors")
    (tmp_path / "secret").write_text("secret")
    (place / "a.safetensors").symlink_to(tmp_path / "secret")
    (place / "export.json").write_text(json.dumps({"files": files}))
    assert list(exported(site.root, run)) == ["kohya"]
    assert single_file(place) is None
