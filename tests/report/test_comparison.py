"""A comparison's table and pictures: what stands where, read back from them."""

from __future__ import annotations

import io
from typing import Any

import numpy as np
import pytest
from rich.console import Console

from nablaflow.report.comparison_plot import comparison_figure
from nablaflow.report.comparison_table import comparison_markdown, comparison_table

NAMES = ("reward_mean", "diversity", "distance_to_reference", "distance_to_tilt", "held_out")


def column(reward: float, diversity: float, **others: Any) -> dict[str, Any]:
    figures = dict.fromkeys((*NAMES, *(f"{name}_se" for name in NAMES)), 0.1)
    return {**figures, "reward_mean": reward, "diversity": diversity, "n": 8, **others}


def cell(method: str, seed: int, *points: dict[str, Any]) -> dict[str, Any]:
    curve = {"seconds": [0.0, 10.0, 20.0], "reward": [0.0, 0.5, 1.0 + seed]}
    return {"method": method, "seed": seed, "points": list(points), "curve": curve}


@pytest.fixture
def data() -> dict[str, Any]:
    reference, tilt = column(0.0, 4.0, beta=0.0), column(1.0, 3.0, beta=2.0)
    cells = [
        cell("refl", 0, column(0.4, 3.8), column(0.8, 3.6)),
        cell("refl", 1, column(0.6, 3.6), column(1.2, 3.2)),
        cell("ddpo", 0, column(0.1, 3.9)),
        {"method": "gone", "seed": 0, "points": [], "curve": None},
    ]
    curve = [reference, column(0.5, 3.6, beta=1.0), tilt]
    return {"reference": reference, "tilt": tilt, "tilt_curve": curve, "cells": cells}


def test_points_are_means_over_seeds(data: dict[str, Any]):
    left = comparison_figure(data).axes[0]
    pairs = [line for line in left.lines if len(line.get_xdata()) == 2]
    refl = next(line for line in pairs if np.allclose(line.get_xdata(), [0.5, 1.0]))
    assert np.allclose(refl.get_ydata(), [3.7, 3.4])


def test_a_collapsed_run_does_not_take_the_picture_with_it(data: dict[str, Any]):
    data["cells"].append(cell("draft", 0, column(0.5, 3.5), column(0.7, -30.0)))
    left = comparison_figure(data).axes[0]
    low, high = left.get_ylim()
    # The tilt's curve spans 3 to 4, so a panel shows 2 to 5 at the most.
    assert 1.5 < low < 2.1
    assert high < 5.5
    (note,) = left.texts
    assert note.get_text().split() == ["draft:", "0.7,", "-30"]
    assert note.xy[1] == pytest.approx(2.0)


def test_names_of_collapsed_runs_do_not_cover_each_other(data: dict[str, Any]):
    for method in ("draft", "alignprop"):
        data["cells"].append(cell(method, 0, column(0.5, 3.5), column(0.7, -30.0)))
    figure = comparison_figure(data)
    figure.canvas.draw()
    first, second = (note.get_window_extent() for note in figure.axes[0].texts)
    assert not first.overlaps(second)


def test_the_tilt_over_beta_is_drawn(data: dict[str, Any]):
    left = comparison_figure(data).axes[0]
    (curve,) = [line for line in left.lines if len(line.get_xdata()) == 3]
    assert np.allclose(curve.get_ydata(), [4.0, 3.6, 3.0])


def test_reward_over_time_is_a_running_mean_over_seeds(data: dict[str, Any]):
    right = comparison_figure(data).axes[2]
    refl = next(line for line in right.lines if len(line.get_xdata()) > 2)
    # At 20 seconds: (0 + 0.5 + 1) / 3 and (0 + 0.5 + 2) / 3, and between them.
    assert refl.get_ydata()[-1] == pytest.approx((1.5 / 3 + 2.5 / 3) / 2)


def test_a_method_that_has_no_figures_is_not_in_the_picture(data: dict[str, Any]):
    texts = [text.get_text() for text in comparison_figure(data).legends[0].get_texts()]
    assert "refl" in texts
    assert "gone" not in texts


def test_without_a_tilt_there_is_a_picture_all_the_same(data: dict[str, Any]):
    figure = comparison_figure({**data, "tilt": None, "tilt_curve": []})
    assert len(figure.axes) == 3


def test_the_table_shows_errors_dashes_and_what_diverged():
    rows = [
        {"method": "refl", **column(0.5, 3.5), "closing": 0.5, "closing_se": 0.1, "updates": 7},
        {"method": "gone", "reward_mean": None, "diverged": 2},
    ]
    out = io.StringIO()
    Console(file=out, width=80).print(comparison_table("warmth", rows))
    page = comparison_markdown(rows)
    assert "0.500 ± 0.100" in page
    assert "50 ± 10" in page
    assert "gone (2 diverged)" in page
    text = out.getvalue()
    assert {"0.500", "±0.100", "50", "±10", "gone"} <= set(text.split())
    assert max(map(len, text.splitlines())) <= 80


def test_a_reward_in_a_small_unit_keeps_its_digits():
    row = {"method": "refl", "reward_mean": 3.21e-5, "reward_mean_se": 4e-6, "held_out": 0.0}
    assert "| 3.21e-05 ± 4.0e-06 |" in comparison_markdown([row])
    assert "| 0.000 ± 0.002 |" in comparison_markdown([row | {"reward_mean_se": 0.002}])
