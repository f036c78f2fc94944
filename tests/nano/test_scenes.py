"""Scenes: their pixels show what their attributes say, by geometry and the standard library."""

from __future__ import annotations

import colorsys
import math
from dataclasses import replace

import pytest
import torch
from scipy import stats
from torch import Tensor

from nablaflow.nano.scenes import (
    COLORS,
    IMAGE_SIZE,
    MARGIN,
    RADIUS,
    SATURATION,
    SHADE,
    SHAPES,
    VALUE,
    Scenes,
    centres,
    centroid_to_centre,
    coverage,
    hsv_to_rgb,
    render,
    sample_scenes,
)


def mask(scenes: Scenes) -> Tensor:
    """Share of each pixel that the object covers, (n, 64, 64), from the pixels alone."""
    black_on_white = render(replace(scenes, shade=torch.ones_like(scenes.shade)))
    darkest = VALUE * (1 - SATURATION)  # every hue has a channel that goes this low
    return ((1.0 - black_on_white.amin(1)) / (1.0 - darkest)).clamp(0.0, 1.0)


def polygon(shape: str) -> list[tuple[float, float]]:
    """Corners at unit circumradius, first one up, x to the right and y down."""
    tips = {"square": 4, "triangle": 3, "star": 5}[shape]
    turn = math.pi / 4 if shape == "square" else 0.0
    corners = []
    for tip in range(tips):
        angle = turn + 2 * math.pi * tip / tips
        corners.append((math.sin(angle), -math.cos(angle)))
        if shape == "star":
            inner = angle + math.pi / tips
            corners.append((0.45 * math.sin(inner), -0.45 * math.cos(inner)))
    return corners


def shoelace(corners: list[tuple[float, float]]) -> float:
    pairs = zip(corners, corners[1:] + corners[:1], strict=True)
    return abs(sum(a * d - b * c for (a, b), (c, d) in pairs)) / 2


@pytest.mark.parametrize("shape", SHAPES)
def test_the_area_is_that_of_the_disc_of_the_same_radius(scenes: Scenes, shape: str):
    own = scenes.with_shape(shape)
    area = mask(own).sum((1, 2))
    torch.testing.assert_close(area, math.pi * own.radius.square(), rtol=0.02, atol=0.0)


@pytest.mark.parametrize("shape", ["square", "triangle", "star"])
def test_the_outline_is_the_polygon_of_the_same_area(shape: str):
    from matplotlib.path import Path

    corners = polygon(shape)
    scale = math.sqrt(math.pi / shoelace(corners)) * 15.0  # radius 15 pixels
    kind = torch.tensor([SHAPES.index(shape)])
    centre = torch.tensor([[32.0, 32.0]])
    drawn = coverage(kind, centre, torch.tensor([15.0]))[0]
    middle = centre[0] - centroid_to_centre(kind)[0] * 15.0
    outline = Path([(scale * x + middle[0], scale * y + middle[1]) for x, y in corners])
    # Each pixel's share that lies inside, by 8x8 points within it.
    fine = (torch.arange(IMAGE_SIZE * 8) + 0.5) / 8
    points = torch.stack(torch.meshgrid(fine, fine, indexing="xy"), -1).reshape(-1, 2)
    inside = torch.from_numpy(outline.contains_points(points.numpy())).float()
    share = inside.reshape(IMAGE_SIZE, 8, IMAGE_SIZE, 8).mean((1, 3))
    # At a corner two edges cross a pixel, and one line's distance is only near its share.
    assert (drawn - share).abs().max() < 0.35
    assert (drawn - share).abs().sum() < 0.02 * share.sum()


def test_objects_are_inside_the_picture_with_a_margin(scenes: Scenes):
    covered = mask(scenes) > 0.01
    edge = int(MARGIN) - 1  # anti-aliasing reaches half a pixel further
    inner = covered[:, edge:-edge, edge:-edge]
    assert covered.sum() == inner.sum()


@pytest.mark.parametrize("shape", SHAPES)
def test_position_runs_over_all_the_room_that_the_object_has(shape: str):
    ends = torch.tensor([0.0, 1.0])
    scenes = Scenes(
        torch.zeros(2).long(), torch.zeros(2), ends, ends, torch.full((2,), 12.0), torch.ones(2)
    ).with_shape(shape)
    covered = mask(scenes) > 0.2  # tips are thin
    columns, rows = covered.any(1), covered.any(2)
    assert columns[0].nonzero().min() == pytest.approx(MARGIN, abs=1.01)
    assert rows[0].nonzero().min() == pytest.approx(MARGIN, abs=1.01)
    assert columns[1].nonzero().max() == pytest.approx(IMAGE_SIZE - 1 - MARGIN, abs=1.01)
    assert rows[1].nonzero().max() == pytest.approx(IMAGE_SIZE - 1 - MARGIN, abs=1.01)


def test_centres_are_in_the_middle_of_the_bounding_box(scenes: Scenes):
    covered = mask(scenes) > 0.2  # tips are thin
    for index, (x, y) in enumerate(centres(scenes)[:50].tolist()):
        columns, rows = covered[index].any(0).nonzero(), covered[index].any(1).nonzero()
        assert (columns.min() + columns.max() + 1) / 2 == pytest.approx(x, abs=1.01)
        assert (rows.min() + rows.max() + 1) / 2 == pytest.approx(y, abs=1.01)


def test_hues_are_those_of_colorsys():
    hues = torch.linspace(0.0, 1.0, 241)[:-1]
    wanted = [colorsys.hsv_to_rgb(hue, SATURATION, VALUE) for hue in hues.tolist()]
    torch.testing.assert_close(
        hsv_to_rgb(hues, SATURATION, VALUE), torch.tensor(wanted), rtol=0.0, atol=1e-5
    )


def test_colours_are_flat_inside_and_grey_outside(scenes: Scenes):
    pictures, share = render(scenes), mask(scenes)
    colours = hsv_to_rgb(scenes.hue, SATURATION, VALUE)
    for index in range(50):
        inside = pictures[index][:, share[index] > 0.999]
        outside = pictures[index][:, share[index] < 0.001]
        assert (inside - colours[index][:, None]).abs().max() < 2e-3
        assert (outside - scenes.shade[index]).abs().max() < 2e-3


def test_attributes_are_uniform_and_independent():
    scenes = sample_scenes(20_000, torch.Generator().manual_seed(0))
    ranges = {"hue": (0, 1), "x": (0, 1), "y": (0, 1), "radius": RADIUS, "shade": SHADE}
    columns = [scenes.shape.float()]
    for name, (low, high) in ranges.items():
        values = getattr(scenes, name)
        columns.append(values)
        assert stats.kstest((values.numpy() - low) / (high - low), "uniform").pvalue > 1e-3, name
    counts = torch.bincount(scenes.shape, minlength=len(SHAPES))
    assert stats.chisquare(counts.numpy()).pvalue > 1e-3
    correlation = torch.corrcoef(torch.stack(columns)) - torch.eye(len(columns))
    assert correlation.abs().max() < 0.03


def test_named_colours_share_the_circle_without_gap_or_overlap():
    sectors = sorted(COLORS.values())
    ends = [high for _, high in sectors]
    starts = [low for low, _ in sectors[1:]] + [sectors[0][0] + 1.0]
    assert ends == pytest.approx(starts)


def test_scenes_are_indexed_row_by_row(scenes: Scenes):
    rows = torch.tensor([5, 1])
    assert torch.equal(render(scenes[rows]), render(scenes)[rows])
    assert len(scenes[3:7]) == 4
