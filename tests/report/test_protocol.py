"""The protocol's table and curves."""

import io
from typing import Any

import numpy as np
import pytest
from matplotlib.collections import LineCollection
from rich.console import Console

from nablaflow.report.protocol import protocol_curves, protocol_table, with_interval


def _figure(value: float) -> dict[str, float]:
    return {"value": value, "low": value - 0.1, "high": value + 0.2, "n": 64}


@pytest.fixture
def protocol() -> dict[str, Any]:
    names = (("reference", 0), ("step-000005", 5), ("policy", 10))
    rows = [
        {"name": name, "update": update, "reward": _figure(update / 10), "vendi": _figure(3.0)}
        for name, update in names
    ]
    return {
        "features": "pixels",
        "metrics": ["reward", "vendi"],
        "refused": {"frechet": "frechet: 64 images are too few, 193 are needed; use --n 193"},
        "prompts": 4,
        "n": 64,
        "seed": 1,
        "rows": rows,
    }


@pytest.mark.parametrize(
    ("value", "low", "high", "text"),
    [
        (0.81234, 0.8034, 0.8211, "0.8123 [0.8034, 0.8211]"),
        (12.0, 8.0, 21.0, "12.0 [8.0, 21.0]"),
        (0.5, 0.5, 0.5, "0.5"),
        (1.0, 1.0, 1.0 + 2.3e-16, "1"),
        (2e-9, -1e-9, 6e-9, "2.0e-09 [-1.0e-09, 6.0e-09]"),
    ],
)
def test_a_figure_is_shown_to_its_intervals_second_digit(value, low, high, text):
    assert with_interval({"value": value, "low": low, "high": high, "n": 8}) == text


def test_the_table_has_a_line_for_each_model_and_says_what_it_is_of(protocol):
    console = Console(width=140, record=True, file=io.StringIO())
    console.print(protocol_table(protocol))
    text = " ".join(console.export_text().split())
    for word in ("reference", "step-000005", "aligned", "mean reward", "1.00 [0.90, 1.20]"):
        assert word in text
    assert "64 images of 4 prompts" in text
    assert "Left out: frechet: 64 images are too few" in text


def test_each_metric_is_a_panel_with_its_intervals_over_updates(protocol):
    figure = protocol_curves(protocol)
    assert [axes.get_title(loc="left") for axes in figure.axes] == ["mean reward", "Vendi score"]
    reward = figure.axes[0]
    curve = next(line for line in reward.lines if line.get_marker() == "o")
    assert curve.get_xydata().tolist() == [[0, 0], [5, 0.5], [10, 1]]
    bars = next(c for c in reward.collections if isinstance(c, LineCollection)).get_segments()
    ends = np.array([[bar[0][1], bar[1][1]] for bar in bars])
    np.testing.assert_allclose(ends, [[-0.1, 0.2], [0.4, 0.7], [0.9, 1.2]])


def test_the_guards_best_has_a_ring_of_its_own(protocol):
    assert protocol_curves(protocol).axes[0].get_legend() is None
    best = {"name": "guard-best", "update": 5, "reward": _figure(0.5), "vendi": _figure(3.0)}
    protocol["rows"].insert(2, best)
    reward = protocol_curves(protocol).axes[0]
    ring = next(line for line in reward.lines if line.get_label() == "guard-best")
    assert ring.get_xydata().tolist() == [[5, 0.5]]
    assert [text.get_text() for text in reward.get_legend().get_texts()] == ["guard-best"]
