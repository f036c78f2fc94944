"""What the pages show of runs and images, hostile ones included."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from PIL import Image
from starlette.testclient import TestClient

from nablaflow.storage.lock import held
from nablaflow.studio.folders import address
from nablaflow.studio.site import Site

EVIL = "<script>alert(1)</script>"


def make_run(root: Path, name: str, **files: str) -> Path:
    run = root / name
    run.mkdir(parents=True)
    with held(run):
        pass
    for file, content in files.items():
        (run / file.replace("_", ".")).write_text(content)
    return run


def column(value: float) -> dict[str, float]:
    figures = ("reward_mean", "diversity", "distance_to_reference", "distance_to_tilt")
    return {"n": 8, **{k: v for key in figures for k, v in ((key, value), (f"{key}_se", 0.1))}}


@pytest.fixture
def run(site: Site) -> Path:
    records = [{"update": n, "reward_mean": 0.1 * n, "loss": 1.0 / n} for n in (1, 2, 3)]
    summary = {"reference": column(0.1), "policy": column(0.7), "exact_tilt": column(0.8)}
    run = make_run(
        site.root,
        "first",
        metrics_jsonl="".join(json.dumps(record) + "\n" for record in records),
        summary_json=json.dumps({**summary, "closing": 0.86, "closing_se": 0.02}),
        config_yaml="seed: 7\n",
    )
    (run / "samples").mkdir()
    for update in (1, 3):
        Image.new("RGB", (4, 4)).save(run / "samples" / f"step-{update:06d}.png")
    return run


def test_all_runs_and_images_are_listed(client: TestClient, run: Path, images: Path):
    page = client.get("/").text
    for text in ("first", "finished", "86 %", "0.7", "12 images", f"/rate/{address(images)}"):
        assert text in page


def test_a_run_has_its_table_curves_samples_and_settings(client: TestClient, run: Path):
    place = f"/run/{address(run)}"
    page = client.get(place).text
    for text in ("86%", "seed: 7", "step-000003", "exact tilt", "reward over updates"):
        assert text in page
    for curve in ("reward", "loss"):
        for theme in ("light", "dark"):
            found = client.get(f"{place}/curve/{curve}/{theme}")
            assert found.content.startswith(b"\x89PNG")
    assert client.get(f"{place}/curve/kl/light").status_code == 404
    assert client.get(f"{place}/sheet/1").content.startswith(b"\x89PNG")
    assert client.get(f"{place}/sheet/2").status_code == 404


def test_a_run_is_seen_while_it_trains(client: TestClient, run: Path):
    live = f"/run/{address(run)}/live"
    before = client.get(live).json()["stamp"]
    assert client.get(live).json()["stamp"] == before
    with held(run):
        assert client.get(live).json()["stamp"] != before
        assert "training" in client.get(f"/run/{address(run)}").text
    assert client.get(live).json()["stamp"] == before
    with (run / "metrics.jsonl").open("a") as file:
        file.write('{"update": 4, "reward_mean": 0.5}\n')
    assert client.get(live).json()["stamp"] != before


@pytest.mark.parametrize(
    "files",
    [
        {},
        {"summary_json": "[1, 2]", "metrics_jsonl": "no\n[]\n", "config_yaml": EVIL},
        {"summary_json": "[" * 100_000},
        {"summary_json": json.dumps({"reference": {"n": EVIL}, "policy": {"n": EVIL}})},
        {"summary_json": json.dumps({"reference": column(1e308), "policy": {}, "closing": EVIL})},
        {"summary_json": json.dumps({"guard": {"budgets": {"kl": EVIL}}, "policy": [EVIL]})},
        {"metrics_jsonl": '{"update": 1, "reward_mean": null, "guard_kl": null}\n'},
    ],
)
def test_whatever_a_run_folder_holds_is_shown_as_text(
    client: TestClient, site: Site, files: dict[str, str]
):
    run = make_run(site.root, f"odd {EVIL.replace('/', '')}", **files)
    for path in ("/", f"/run/{address(run)}"):
        answer = client.get(path)
        assert answer.status_code == 200
        assert "<script>alert" not in answer.text


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
    assert client.get(f"/images/{address(images)}/12").status_code == 404


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
    assert first.count("<img") == 500
    assert 'loading="lazy"' in first
    assert "page 1 of 20" in first
    last = client.get(f"/images/{address(many)}?page=19").text
    assert "09999.png" in last
    assert client.get(f"/images/{address(many)}?page=999999").text.count("<img") == 0


def test_small_copies(client: TestClient, images: Path):
    place = f"/images/{address(images)}"
    (images / "0000-a-star.png").write_bytes(b"no picture")
    assert client.get(f"{place}/0?small").content.startswith(b"\x89PNG")
    Image.new("RGB", (400, 200)).save(images / "0001-a-circle.png")
    assert len(client.get(f"{place}/1?small").content) < 1000
