"""Pictures: sizes, order and labels."""

import numpy as np
import pytest
import torch

from nablaflow.report.pictures import (
    _font,
    before_after,
    by_prompt,
    grid,
    natural_scale,
    shorten,
    to_picture,
)


def _flat(*levels: float, side: int = 8) -> torch.Tensor:
    """One grey image for each level."""
    return torch.tensor(levels)[:, None, None, None].expand(-1, 3, side, side)


def test_to_picture_clips_and_survives_what_is_no_number():
    image = torch.tensor([-1.0, 0.5, 2.0, torch.nan]).expand(3, 1, 4)
    assert np.asarray(to_picture(image))[0, :, 0].tolist() == [0, 128, 255, 0]


@pytest.mark.parametrize(("side", "scale"), [(8, 16), (64, 2), (100, 1), (512, 1)])
def test_tiny_images_are_enlarged_by_a_whole_factor(side: int, scale: int):
    assert natural_scale(side) == scale


@pytest.mark.parametrize(
    ("count", "columns", "size"),
    [
        (6, 3, (3 * 16 + 2 * 4, 2 * 16 + 4)),
        (4, 3, (3 * 16 + 2 * 4, 2 * 16 + 4)),
        (2, 5, (2 * 16 + 4, 16)),
        (1, 1, (16, 16)),
    ],
)
def test_grid_is_as_large_as_it_needs(count: int, columns: int, size: tuple[int, int]):
    assert grid(_flat(*[0.5] * count), columns, scale=2).size == size


def test_grid_goes_row_by_row_with_square_pixels():
    sheet = np.asarray(grid(_flat(0.0, 0.2, 0.4), columns=2, scale=3, gap=1))[:, :, 0]
    assert (sheet[:24, :24] == 0).all()
    assert (sheet[:24, 25:] == 51).all()
    assert (sheet[25:, :24] == 102).all()
    assert (sheet[25:, 25:] == 255).all()  # no fourth image: paper
    checker = torch.eye(2).expand(1, 3, 2, 2)
    assert set(np.unique(np.asarray(grid(checker, 1, scale=5)))) == {0, 255}


def test_prompts_keep_their_order():
    assert by_prompt(["b", "a", "b"]) == {"b": [0, 2], "a": [1]}


def test_before_is_on_the_left_and_after_on_the_right():
    before, after = _flat(0.2, 0.2, side=64), _flat(0.6, 0.6, side=64)
    sheet = np.asarray(before_after(before, after, ["one", "two"]))
    half = sheet.shape[1] // 2
    flat = np.array([51] * 3), np.array([153] * 3)
    left, right = sheet[:, :half], sheet[:, half:]
    two_images = 2 * (64 * 2) ** 2  # scale 2
    assert (left == flat[0]).all(-1).sum() >= two_images
    assert (right == flat[1]).all(-1).sum() >= two_images
    assert not (left == flat[1]).all(-1).sum() > two_images // 100
    assert not (right == flat[0]).all(-1).sum() > two_images // 100


def test_labels_are_drawn():
    images = _flat(1.0, 1.0, side=64)  # white on white: all that is dark is text
    short = np.asarray(before_after(images, images, ["one", "two"]))
    long = np.asarray(before_after(images, images, ["one " * 3, "two"]))
    assert short.shape == long.shape
    assert 0 < (short < 128).sum() < (long < 128).sum()


def test_prompts_are_shortened_to_the_width():
    font = _font(15)
    assert shorten("a\n  b", font, 1000) == "a b"
    text = shorten("a very long prompt " * 20, font, 200)
    assert text.endswith("…")
    assert 150 < font.getlength(text) <= 200
    assert shorten("wide", font, 0) == "…"
    assert shorten("a very long prompt " * 50_000, font, 200) == text


def test_another_number_of_prompts_is_refused():
    with pytest.raises(ValueError, match="2 before, 2 after, 1 prompts"):
        before_after(_flat(0.0, 0.0), _flat(0.0, 0.0), ["one"])
