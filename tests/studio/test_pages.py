"""What the pages show of runs and images, hostile ones included."""

from __future__ import annotations

import json
import os
from pathlib import Path

import pytest
import torch
from PIL import Image
from starlette.testclient import TestClient

from nablaflow.report.table import plus_minus as as_the_report
from nablaflow.storage import checksums
from nablaflow.storage.checkpoint import Checkpoint, save_checkpoint
from nablaflow.storage.lock import held
from nablaflow.studio.figures import plus_minus
from nablaflow.studio.folders import address, image_address
from nablaflow.studio.site import Site
from tests.studio.runs import column, make_finished, make_run

EVIL = "<script>alert(1)</script>"


@pytest.fixture
def run(site: Site) -> Path:
    return make_finished(site.root, "first")


def test_all_runs_and_images_are_listed(client: TestClient, run: Path, images: Path):
    page = client.get("/").text
    shown = ("first", "finished", "86 ± 2 %", "0.70 ± 0.10", "12 images")
    for text in (*shown, f"/rate/{address(images)}/pairs", f"/rate/{address(images)}/stars"):
        assert text in page


def test_a_run_has_its_table_curves_samples_and_settings(client: TestClient, run: Path):
    place = f"/run/{address(run)}"
    page = client.get(place).text
    for text in ("86 ± 2 %", "seed: 7", "step-000003", "exact tilt", "mean reward over updates"):
        assert text in page
    for curve in ("reward", "loss"):
        for theme in ("light", "dark"):
            found = client.get(f"{place}/curve/{curve}/{theme}")
            assert found.content.startswith(b"\x89PNG")
    assert client.get(f"{place}/curve/kl/light").status_code == 404
    assert client.get(f"{place}/sheet/1").content.startswith(b"\x89PNG")
    assert client.get(f"{place}/sheet/2").status_code == 404


def test_figures_are_written_as_in_the_report():
    usual = ((0.81234, 0.00417), (-12.3, 4.5), (1e6, 3e4), (0.0, 0.1), (2.0, 0.0))
    for value, se in (*usual, (-7e-14, 2e-14)):
        assert plus_minus({"x": value, "x_se": se}, "x") == as_the_report(value, se)
    assert plus_minus({"x": 1.5}, "x") == as_the_report(1.5, None)
    assert plus_minus({}, "x") == as_the_report(None, None)


def test_the_adapter_can_be_taken_along(client: TestClient, run: Path, tmp_path: Path):
    place = f"/run/{address(run)}/lora"
    answer = client.get(place)
    assert answer.content == b"weights"
    assert "attachment" in answer.headers["content-disposition"]
    weights = run / "lora" / "pytorch_lora_weights.safetensors"
    weights.unlink()
    (tmp_path / "secret").write_text("secret")
    weights.symlink_to(tmp_path / "secret")
    assert client.get(place).status_code == 404


def test_a_run_is_seen_while_it_trains(client: TestClient, run: Path):
    live = f"/run/{address(run)}/live"
    before = client.get(live).json()["stamp"]
    assert client.get(live).json()["stamp"] == before
    with held(run):
        assert client.get(live).json()["stamp"] != before
        page = client.get(f"/run/{address(run)}").text
        assert "training" in page
        assert '<progress max="3" value="3"' in page
    assert client.get(live).json()["stamp"] == before
    with (run / "metrics.jsonl").open("a") as file:
        file.write('{"update": 4, "reward_mean": 0.5}\n')
    assert client.get(live).json()["stamp"] != before


def test_one_that_died_has_stopped(client: TestClient, site: Site):
    run = make_run(site.root, "died", metrics_jsonl='{"update": 1, "reward_mean": 0.5}\n')
    assert "begun" in client.get(f"/run/{address(run)}").text
    checkpoint = run / "checkpoints" / "step-000001"
    checkpoint.mkdir(parents=True)
    (checkpoint / "progress.json").write_text("{}")
    page = client.get(f"/run/{address(run)}").text
    assert "stopped" in page
    assert "--resume" in page


@pytest.mark.parametrize(
    "files",
    [
        {},
        {"summary_json": "[1, 2]", "metrics_jsonl": "no\n[]\n", "config_yaml": EVIL},
        {"summary_json": "[" * 100_000, "config_yaml": "[" * 100_000},
        {"config_yaml": "training: {updates: -5}\nreward: [1]\nmethod: 3\n"},
        {"config_yaml": "training: {updates: .nan}\nmethod: {beta: .inf}\n"},
        {"summary_json": json.dumps({"reference": {"n": EVIL}, "policy": {"n": EVIL}})},
        {"summary_json": json.dumps({"reference": column(1e308), "policy": {}, "closing": EVIL})},
        {"summary_json": json.dumps({"reference": {EVIL: 1.0}, "policy": {EVIL: 2.0}})},
        {"summary_json": json.dumps({"guard": {"budgets": {"kl": EVIL}}, "policy": [EVIL]})},
        {"metrics_jsonl": '{"update": 1, "reward_mean": null, "guard_kl": null}\n'},
    ],
)
def test_whatever_a_run_folder_holds_is_shown_as_text(
    client: TestClient, site: Site, files: dict[str, str]
):
    run = make_run(site.root, f"odd {EVIL.replace('/', '')}", **files)
    for path in ("/", f"/run/{address(run)}", "/compare"):
        answer = client.get(path)
        assert answer.status_code == 200
        assert "<script>alert" not in answer.text


def test_names_that_are_no_text(client: TestClient, site: Site):
    odd = os.fsdecode(os.fsencode(site.root) + b"/\xff\xfe \n[2J")
    run = make_run(Path(odd), "run")
    images = Path(odd) / "images"
    images.mkdir()
    Image.new("RGB", (4, 4)).save(images / "0.png")
    page = client.get("/")
    assert page.status_code == 200
    assert "\N{REPLACEMENT CHARACTER}" in page.text
    assert client.get(f"/run/{address(run)}").status_code == 200
    assert client.get(f"/images/{address(images)}").status_code == 200


def test_links_and_other_names_lead_nowhere(
    client: TestClient, run: Path, images: Path, tmp_path: Path
):
    secret = tmp_path / "secret.png"
    Image.new("RGB", (4, 4)).save(secret)
    (run / "samples" / "step-000009.png").symlink_to(secret)
    (images / "9999-a-star.png").symlink_to(secret)
    assert "step-000009" not in client.get(f"/run/{address(run)}").text
    assert "9999" not in client.get(f"/images/{address(images)}").text
    for path in (f"/images/{address(tmp_path)}", "/images/..%2f..", "/run/x/sheet/0"):
        assert client.get(path).status_code == 404
    linked = image_address(images / "9999-a-star.png")
    assert client.get(f"/images/{address(images)}/{linked}").status_code == 404


def test_pictures_of_other_things_are_no_images(client: TestClient, images: Path):
    Image.new("RGB", (4, 4)).save(images / "reward.png")
    (images / "reward.safetensors").write_bytes(b"")
    (images / "sheet").mkdir()
    Image.new("RGB", (4, 4)).save(images / "sheet" / "sheet.png")
    page = client.get("/").text
    assert "12 images" in page
    assert address(images / "sheet") not in page


def test_a_gallery_of_ten_thousand_has_pages(client: TestClient, site: Site):
    many = site.root / "many"
    many.mkdir()
    for number in range(10_000):
        (many / f"{number:05d}.png").touch()
    first = client.get(f"/images/{address(many)}").text
    assert first.count("<figure>") == 500
    assert 'loading="lazy"' in first
    assert "page 1 of 20" in first
    last = client.get(f"/images/{address(many)}?page=19").text
    assert "09999.png" in last
    assert client.get(f"/images/{address(many)}?page=999999").text.count("<figure>") == 0


def test_an_image_keeps_its_address_when_others_come(client: TestClient, images: Path):
    path = images / "0004-a-star.png"
    place = f"/images/{address(images)}/{image_address(path)}"
    Image.new("RGB", (4, 4)).save(images / "0000-a-first.png")
    assert client.get(place).content == path.read_bytes()


def test_small_copies(client: TestClient, images: Path):
    def small(name: str) -> bytes:
        place = f"/images/{address(images)}/{image_address(images / name)}"
        return client.get(f"{place}?small").content

    (images / "0000-a-star.png").write_bytes(b"no picture")
    assert small("0000-a-star.png").startswith(b"\xff\xd8")
    Image.new("RGB", (1000, 500)).save(images / "0001-a-circle.png")
    assert len(small("0001-a-circle.png")) < 3000
    assert small("0002-a-star.png") == (images / "0002-a-star.png").read_bytes()


def test_a_mistake_is_a_page_where_a_page_was_asked_for(client: TestClient, images: Path):
    (images / "pairs.csv").write_text("a,b\n1,2\n")
    place = f"/rate/{address(images)}/pairs"
    page = client.get(place, headers={"accept": "text/html"})
    assert page.status_code == 409
    assert "the first line must name preferred,rejected" in page.text
    assert "<h1>" in page.text


def test_words_are_one_click_away(client: TestClient, run: Path):
    words = client.get("/words").text
    pages = client.get("/").text + client.get(f"/run/{address(run)}").text
    linked = {part.split('"')[0] for part in pages.split('href="/words#')[1:]}
    assert {"diversity", "distance_to_tilt", "closing", "reward"} <= linked
    for word in linked:
        assert f'id="{word}"' in words


def test_what_another_run_wrote_is_not_shown(client: TestClient, site: Site) -> None:
    """Figures of another policy than the checkpoint's, and lines that the run did not write."""
    run = make_finished(site.root, "mixed")
    tensors = {"policy": {"w": torch.zeros(1)}}
    folder = save_checkpoint(run, Checkpoint(3, 1.0, tensors, {}), keep=1)
    own = checksums.of_file(folder / "policy.safetensors")
    summary = json.loads((run / "summary.json").read_text()) | {"updates": 3}
    for mark, figures in ((own, True), ("0" * 64, False)):
        files = {"files": {"policy.safetensors": mark}}
        (run / "summary.json").write_text(json.dumps(summary | files))
        for path in ("/", f"/run/{address(run)}"):
            page = client.get(path).text
            assert ("86 ± 2 %" in page) is figures
            assert ("another run&#39;s policy" in page) is not figures
    lines = (run / "metrics.jsonl").read_text()
    (run / "metrics.jsonl").write_text(lines.replace("0.2", "0.3"))
    told = "lines of 1 updates are missing, 1 that are there are not what this run wrote"
    assert told in client.get(f"/run/{address(run)}").text
