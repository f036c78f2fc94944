"""Several runs in one picture, with the tilt's curve where it was measured."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from starlette.testclient import TestClient

from nablaflow.report.runs_plot import RunsAndTilt, runs_figure
from nablaflow.studio import jobs
from nablaflow.studio.compared import groups
from nablaflow.studio.folders import address
from nablaflow.studio.site import Site
from tests.studio.runs import column, make_finished


@pytest.fixture
def runs(site: Site) -> list[Path]:
    names = (("a", "warmth", 4.0), ("b", "warmth", 4.0), ("c", "warmth", 8.0))
    return [make_finished(site.root, name, reward, beta) for name, reward, beta in names]


def measured(root: Path, beta: float) -> None:
    place = root / "comparisons" / "comparison-1"
    place.mkdir(parents=True)
    curve = [column(0.1), column(0.8), "no column"]
    content = {"reward": "warmth", "beta": beta, "tilt_curve": curve}
    (place / "warmth.json").write_text(json.dumps(content))


def test_runs_of_one_reward_and_beta_are_one_group(site: Site, runs: list[Path]):
    measured(site.root, 4.0)
    first, second = groups(site.found().runs, site.root)
    assert (first.task, second.task) == (("warmth", "4"), ("warmth", "8"))
    assert {run.name for run in first.runs.values()} == {"a", "b"}
    assert (len(first.curve), len(second.curve)) == (2, 0)


def test_the_page_and_its_pictures(
    client: TestClient, site: Site, runs: list[Path], monkeypatch: pytest.MonkeyPatch
):
    page = client.get("/compare").text
    out = site.root / "comparisons" / "comparison-1"
    assert f"nablaflow compare {runs[0]} {runs[1]} --out {out}" in page
    for theme in ("light", "dark"):
        chosen = f"{address(runs[0])},{address(runs[1])}"
        picture = client.get(f"/compare/0/picture/{theme}?runs={chosen}")
        assert picture.content.startswith(b"\x89PNG")
    assert client.get("/compare/0/picture/light").status_code == 200
    assert client.get("/compare/9/picture/light").status_code == 404
    monkeypatch.setattr(jobs, "PROGRAM", ["-c", "pass"])
    started = client.post("/compare/start", json={"group": 0, "runs": [address(runs[1])]})
    assert started.json()["command"] == f"nablaflow compare {runs[1]} --out {out}"
    assert client.post("/compare/start", json={"group": 0, "runs": []}).status_code == 409
    assert client.post("/compare/start", json={"group": 7, "runs": []}).status_code == 400


def test_points_and_curve_are_where_the_figures_are():
    curve = [{"reward_mean": 0.0, "diversity": 3.0}, {"reward_mean": 1.0, "diversity": 2.0}]
    data = RunsAndTilt({"_a$": {"reward_mean": 0.5, "diversity": 2.2}}, None, curve[1], curve)
    panel = runs_figure(data).axes[0]
    lines = {line.get_label(): line for line in panel.lines}
    assert list(lines["exact tilt over beta"].get_xdata()) == [0.0, 1.0]
    assert list(lines["exact tilt over beta"].get_ydata()) == [3.0, 2.0]
    places = {(float(line.get_xdata()[0]), float(line.get_ydata()[0])) for line in panel.lines}
    assert {(0.5, 2.2), (1.0, 2.0)} <= places
    assert panel.get_legend_handles_labels()[1] == ["exact tilt over beta", r"a\$", "exact tilt"]
