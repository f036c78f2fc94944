"""Curves from records that may lack keys."""

import io
import math
import sys

import numpy as np
import pytest
from matplotlib.figure import Figure
from matplotlib.lines import Line2D
from PIL import Image

from nablaflow.report.curves import DARK, loss_curves, png, reward_curve, running_mean, series

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


def test_loss_terms_share_a_log_axis():
    figure = loss_curves(RECORDS)
    assert figure is not None
    assert figure.axes[0].get_yscale() == "log"
    assert _labels(figure) == ["loss", "loss_reverse"]


@pytest.mark.parametrize("records", [[], [{"update": 1}], [{"update": 1, "loss": -1.0}]])
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
