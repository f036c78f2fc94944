"""Curves from records that may lack keys."""

import io
import math
import re
import sys
from pathlib import Path

import numpy as np
import pytest
from matplotlib.figure import Figure
from matplotlib.lines import Line2D
from PIL import Image

from nablaflow.report.curves import (
    DARK,
    guard_curve,
    loss_curves,
    png,
    reward_curve,
    running_mean,
    series,
)
from nablaflow.report.words import loss_name

RECORDS = [
    {"update": 1, "reward_mean": 0.1, "loss": 1.0},
    {"update": 2, "loss": 0.5, "loss_reverse": 0.25, "learning_rate": 1e-3},
    {"update": 3, "reward_mean": math.nan, "loss": 0.25, "loss_reverse": 0.0},
    {"update": 4, "reward_mean": 0.4, "loss": None},
]


def _lines(figure: Figure | None) -> list[Line2D]:
    assert figure is not None
    return list(figure.axes[0].lines)


def _labels(figure: Figure | None) -> list[str]:
    return [str(line.get_label()) for line in _lines(figure)]


def test_series_skips_what_was_not_recorded_or_is_no_number():
    updates, values = series(RECORDS, "reward_mean")
    assert (updates.tolist(), values.tolist()) == ([1, 4], [0.1, 0.4])
    assert [part.shape for part in series(RECORDS, "absent")] == [(0,), (0,)]
    assert series([{"loss": 3.0}, {"loss": 4.0}], "loss")[0].tolist() == [0, 1]


def test_running_mean_keeps_constants_and_averages_inside():
    np.testing.assert_allclose(running_mean(np.full(30, 2.5), 7), 2.5)
    ramp = np.arange(30.0)
    np.testing.assert_allclose(running_mean(ramp, 5)[2:-2], ramp[2:-2])
    np.testing.assert_allclose(running_mean(ramp, 1), ramp)


def test_reward_has_its_levels_where_they_are_known():
    assert _labels(reward_curve(RECORDS)) == ["aligned"]
    figure = reward_curve(RECORDS, reference=0.05, exact_tilt=0.6)
    assert _labels(figure) == ["exact tilt", "reference", "aligned"]
    levels = [np.asarray(line.get_ydata()).tolist() for line in _lines(figure)[:2]]
    assert levels == [[0.6, 0.6], [0.05, 0.05]]


def _losses(*values: float, **terms: float) -> list[dict[str, float]]:
    return [{"update": i, "loss": value, **terms} for i, value in enumerate(values, start=1)]


def test_loss_terms_have_names_and_share_an_axis():
    records = _losses(3.0, 2.0, loss_forward=1.0, loss_reverse=0.5, loss_mine_own=0.5)
    names = ["sum of all terms", "forward residual", "reverse residual", "mine own"]
    assert _labels(loss_curves(records)) == names
    assert _labels(loss_curves(_losses(1.0, 0.9, loss_forward=1.0))) == ["forward residual"]
    assert _labels(loss_curves(_losses(1.0, loss_forward=1.0, loss_reverse=0.0))) == [
        "forward residual"
    ]


def test_every_term_that_a_methods_page_names_has_a_name():
    pages = Path(__file__).parents[2] / "docs" / "methods"
    keys = set(re.findall(r"\bloss_[a-z_]+", "".join(p.read_text() for p in pages.glob("*.md"))))
    assert len(keys) > 8
    unnamed = [key for key in keys if loss_name(key) == loss_name(f"{key}x").removesuffix("x")]
    assert unnamed == []


def test_the_losss_axis_is_logarithmic_over_decades_only():
    def scale(*values: float) -> str:
        figure = loss_curves(_losses(*values))
        assert figure is not None
        return figure.axes[0].get_yscale()

    assert scale(1.0, 0.01) == "log"
    assert scale(1.0, 0.98) == "linear"
    assert scale(1.0, -0.01) == "linear"


def test_a_fall_of_two_per_cent_looks_like_two_per_cent():
    """The height of the fall on the page, as a share of the axis."""
    records = [{"update": 5, "guard_diversity": 0.98, "guard_held_out": 0.49, "guard_kl": 0.1}]
    for metric, start in (("diversity", 1.0), ("held_out", 0.5)):
        figure = guard_curve(records, metric, start=start)
        assert figure is not None
        low, high = figure.axes[0].get_ylim()
        assert low == 0.0
        assert (start - records[0][f"guard_{metric}"]) / (high - low) < 0.03
        assert _labels(figure) == ["reference", "aligned"]
    figure = guard_curve(records, "kl", start=0.0, budget=30.0)
    assert figure is not None
    assert figure.axes[0].get_ylim()[0] == 0.0
    assert figure.axes[0].get_ylim()[1] > 30.0
    assert figure.axes[0].get_ylabel() == "nats"


def test_a_held_out_reward_below_zero_has_zero_above_it():
    figure = guard_curve([{"update": 5, "guard_held_out": -4.0}], "held_out", start=-2.0)
    assert figure is not None
    low, high = figure.axes[0].get_ylim()
    assert low < -4.0
    assert high >= 0.0


@pytest.mark.parametrize("records", [[], [{"update": 1}], [{"update": 1, "loss": 0.0}]])
def test_nothing_to_draw_is_no_figure(records):
    assert reward_curve(records) is None
    assert loss_curves(records) is None


def test_png_is_transparent_and_pyplot_is_left_alone():
    figure = reward_curve([RECORDS[0]], theme=DARK)
    assert figure is not None
    picture = Image.open(io.BytesIO(png(figure)))
    assert picture.format == "PNG"
    assert np.asarray(picture.convert("RGBA"))[0, 0, 3] == 0
    pyplot = sys.modules.get("matplotlib.pyplot")
    assert pyplot is None or not pyplot.get_fignums()
