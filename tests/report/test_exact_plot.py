"""Pictures of a study: what is drawn where, read back from the figures and the files."""

from __future__ import annotations

import itertools
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from matplotlib.colors import to_hex
from matplotlib.figure import Figure
from PIL import Image
from torch import Tensor

from nablaflow.exact import Problem, named_problem
from nablaflow.exact.study import LabCell
from nablaflow.report.exact_costs import pareto_figure
from nablaflow.report.exact_look import method_colours
from nablaflow.report.exact_plot import write_plots
from nablaflow.report.exact_samples import POINTS, samples_figure, viewing_plane

TIMES = "\N{MULTIPLICATION SIGN}"


def row(problem: str, method: str, seed: int = 0, times: float | None = 4.0) -> dict[str, Any]:
    distance = None if times is None else 0.01 * times
    passes = 1_000_000 * (1 + len(method))
    return {
        "problem": problem,
        "method": method,
        "seed": seed,
        "energy_distance": distance,
        "floor": 0.01,
        "network_evaluations": passes,
    }


def samples(cell: LabCell) -> Tensor:
    """Different for each seed, and more than are shown."""
    dim = named_problem(cell.problem).prior.dim
    generator = torch.Generator().manual_seed(cell.seed)
    return torch.randn(POINTS + 500, dim, generator=generator)


def drawn(problem: Problem, *rows: dict[str, Any]) -> Figure:
    methods: dict[str, list[dict[str, Any]]] = {}
    for one in rows:
        methods.setdefault(one["method"], []).append(one)
    return samples_figure(problem, methods, samples, method_colours(rows))


def points(figure: Figure, panel: int) -> np.ndarray:
    (line,) = figure.axes[panel].lines
    return np.asarray(line.get_xydata())


def texts(figure: Figure, panel: int) -> list[str]:
    axes = figure.axes[panel]
    return [axes.get_title(), *(text.get_text() for text in axes.texts)]


# --- where the samples lie ------------------------------------------------------------------------


def test_panels_are_prior_tilt_and_methods_in_one_frame() -> None:
    figure = drawn(named_problem("unequal"), row("unequal", "a", times=2.0), row("unequal", "b"))
    assert [texts(figure, panel) for panel in range(4)] == [
        ["prior", "where it starts"],
        ["exact tilt", "where it should end"],
        ["a", f"2.00 {TIMES} floor"],
        ["b", f"4.00 {TIMES} floor"],
    ]
    frames = {(axes.get_xlim(), axes.get_ylim(), axes.get_aspect()) for axes in figure.axes}
    ((x, y, aspect),) = frames
    assert aspect == 1.0
    assert x[1] - x[0] == pytest.approx(y[1] - y[0])


def test_points_are_of_the_distribution_named_above_them() -> None:
    """Means of the prior and of its tilt, in closed form."""
    problem = named_problem("unequal")
    figure = drawn(problem, row("unequal", "a"))
    for panel, exact in ((0, problem.prior), (1, problem.target)):
        found = points(figure, panel)
        error = 4 * exact.covariance.diagonal().max().sqrt().item() / POINTS**0.5
        np.testing.assert_allclose(found.mean(0), exact.mean.numpy(), atol=error)
    expected = samples(LabCell("unequal", "a", 0))[:POINTS].numpy()
    np.testing.assert_allclose(points(figure, 2), expected, rtol=1e-6)


@pytest.mark.parametrize(("times", "shown"), [((9.0, 1.0, 5.0), 2), ((9.0, 1.0), 1)])
def test_of_several_seeds_the_median_one_is_shown(times: tuple[float, ...], shown: int) -> None:
    rows = [row("unequal", "a", seed, value) for seed, value in enumerate(times)]
    figure = drawn(named_problem("unequal"), *rows)
    assert texts(figure, 2)[1] == f"{times[shown]:.2f} {TIMES} floor, seed {shown}"
    expected = samples(LabCell("unequal", "a", shown))[:POINTS].numpy()
    np.testing.assert_allclose(points(figure, 2), expected, rtol=1e-6)


def test_what_lies_outside_or_is_not_finite_is_said() -> None:
    problem = named_problem("unequal")
    one = row("unequal", "a", times=None)
    far = torch.cat(
        [torch.full((500, 2), 1e6), torch.full((250, 2), torch.nan), torch.zeros(250, 2)]
    )
    figure = samples_figure(problem, {"a": [one]}, lambda cell: far, {"a": "#0b7a5c"})
    assert texts(figure, 2) == ["a", "not finite", "75.0% outside"]


def test_half_and_nearly_all_of_the_tilt_are_shaded() -> None:
    """The share of exact samples in the drawn regions, counted."""
    problem = named_problem("bumps")
    figure = drawn(problem, row("bumps", "a"))
    exact = problem.target.sample(4000, torch.Generator().manual_seed(5)).numpy()
    filled = figure.axes[1].collections[0]
    inside = [inside_share(path, exact) for path in filled.get_paths()]
    assert sum(inside) == pytest.approx(0.95, abs=0.02)
    assert inside[-1] == pytest.approx(0.5, abs=0.04)


def inside_share(path: Any, x: np.ndarray) -> float:
    """Of a region with holes: by an odd number of crossings, over all its rings."""
    odd = np.zeros(len(x), dtype=bool)
    for ring in path.to_polygons():
        odd ^= type(path)(ring).contains_points(x)
    return float(odd.mean())


def test_more_than_two_dimensions_are_seen_along_the_widest() -> None:
    problem = named_problem("32-dimensional")
    plane = viewing_plane(problem)
    torch.testing.assert_close(plane.axes.T @ plane.axes, torch.eye(2, dtype=torch.float64))
    exact = problem.target.sample(20_000, torch.Generator().manual_seed(3))
    singular = np.linalg.svd((exact - exact.mean(0)).numpy(), compute_uv=False)
    expected = singular[:2] ** 2 / len(exact)
    np.testing.assert_allclose(plane.project(exact).var(0), expected, rtol=0.02)
    assert "32 dimensions" in plane.caption
    figure = drawn(problem, row("32-dimensional", "a"))
    assert any("principal axes" in text.get_text() for text in figure.texts)
    assert points(figure, 2).shape == (POINTS, 2)


def test_a_plane_is_seen_as_it_is() -> None:
    plane = viewing_plane(named_problem("ring"))
    x = torch.randn(5, 2, generator=torch.Generator().manual_seed(0))
    np.testing.assert_allclose(plane.project(x), x.numpy())
    assert plane.caption == ""


# --- what they cost -------------------------------------------------------------------------------


def test_a_mark_for_each_method_in_a_panel_for_each_problem() -> None:
    rows = [
        row(problem, method, seed, times)
        for problem in ("ring", "grid")
        for method in ("aa", "b")
        for seed, times in enumerate((2.0, 8.0, 5.0))
    ]
    figure = pareto_figure(rows)
    assert [axes.get_title(loc="left") for axes in figure.axes] == ["ring", "grid"]
    for axes in figure.axes:
        assert (axes.get_xscale(), axes.get_yscale()) == ("log", "log")
        marks = [container[0].get_xydata() for container in axes.containers]
        np.testing.assert_allclose(np.concatenate(marks), [[3e6, 5.0], [2e6, 5.0]])
        for container in axes.containers:
            (bar,) = container[2]
            np.testing.assert_allclose(bar.get_segments()[0][:, 1], [2.0, 8.0])
        (level,) = [line for line in axes.lines if line.get_linestyle() == "--"]
        assert set(level.get_ydata()) == {3.0}


def test_nothing_that_has_no_place_on_a_log_axis_is_drawn() -> None:
    rows = [row("ring", "a", times=None), {**row("ring", "b"), "network_evaluations": 0}]
    figure = pareto_figure(rows)
    assert len(figure.axes[0].containers) == 0
    figure.canvas.draw()


def test_marks_are_in_view_with_the_floor_itself() -> None:
    figure = pareto_figure([row("ring", "a", times=700.0), row("ring", "bbb", times=0.4)])
    (axes,) = figure.axes
    (left, right), (low, high) = axes.get_xlim(), axes.get_ylim()
    assert left < 2e6 < 4e6 < right
    assert low < 0.4 < 1.0 < 700.0 < high


# --- files ----------------------------------------------------------------------------------------


def test_a_file_for_each_problem_and_one_for_the_cost(tmp_path: Path) -> None:
    rows = [row("unequal", "a"), row("unequal", "b"), row("quadratic", "a"), row("quadratic", "b")]
    paths = write_plots(tmp_path, rows, samples)
    assert [path.name for path in paths] == ["unequal.png", "quadratic.png", "pareto.png"]
    for path in paths:
        with Image.open(path) as picture:
            corner = picture.convert("RGB").getpixel((0, 0))
            assert (picture.format, corner) == ("PNG", (255, 255, 255))


def test_a_method_has_one_colour_and_no_two_the_same() -> None:
    rows = [row(p, m) for p, m in itertools.product(("ring", "grid"), "abcdefg")]
    colours = method_colours(rows)
    assert list(colours) == list("abcdefg")
    assert len({to_hex(colour) for colour in colours.values()}) == 7
