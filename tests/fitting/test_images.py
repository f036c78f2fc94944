"""Image files of every kind to pixels, against levels known by hand; broken ones all at once."""

import numpy as np
import pytest
import torch
from PIL import Image
from torch import Tensor

from nablaflow.errors import UserError
from nablaflow.features import FeatureExtractor
from nablaflow.fitting.images import check_images, image_features, read_image


def assert_pixel(path, row, column, rgb):
    found = read_image(path)
    assert found.dtype == torch.float32
    torch.testing.assert_close(
        found[0, :, row, column], torch.tensor(rgb).float(), atol=0.5 / 255, rtol=0
    )


@pytest.mark.parametrize("suffix", ["png", "tif"])
def test_sixteen_bits_are_scaled(tmp_path, suffix):
    levels = np.array([[0, 300, 32768], [40000, 65000, 65535]], dtype=np.uint16)
    path = tmp_path / f"deep.{suffix}"
    Image.fromarray(levels).save(path)
    found = read_image(path)
    assert found.shape == (1, 3, 2, 3)
    expected = torch.from_numpy(levels.astype(np.float32) / 65535).expand(1, 3, 2, 3)
    torch.testing.assert_close(found, expected)


def test_sixteen_bits_of_a_pnm_are_scaled(tmp_path):
    path = tmp_path / "deep.pgm"
    levels = np.array([[0, 32768, 65535]], dtype=">u2")
    path.write_bytes(b"P5 3 1 65535\n" + levels.tobytes())
    assert_pixel(path, 0, 1, (0.5, 0.5, 0.5))
    assert_pixel(path, 0, 2, (1.0, 1.0, 1.0))


def test_a_transparent_level_of_sixteen_bits_is_white(tmp_path):
    path = tmp_path / "deep.png"
    levels = np.array([[4000, 32768]], dtype=np.uint16)
    Image.fromarray(levels).save(path, transparency=4000)
    assert_pixel(path, 0, 0, (1.0, 1.0, 1.0))
    assert_pixel(path, 0, 1, (0.5, 0.5, 0.5))


def test_what_is_transparent_lies_on_white(tmp_path):
    path = tmp_path / "alpha.png"
    picture = Image.new("RGBA", (3, 1), (0, 0, 0, 0))
    picture.putpixel((1, 0), (255, 0, 0, 255))
    picture.putpixel((2, 0), (0, 0, 255, 51))
    picture.save(path)
    assert_pixel(path, 0, 0, (1.0, 1.0, 1.0))
    assert_pixel(path, 0, 1, (1.0, 0.0, 0.0))
    assert_pixel(path, 0, 2, (0.8, 0.8, 1.0))


def test_grey_with_alpha_lies_on_white(tmp_path):
    path = tmp_path / "grey.png"
    picture = Image.new("LA", (2, 1), (102, 255))
    picture.putpixel((1, 0), (0, 0))
    picture.save(path)
    assert_pixel(path, 0, 0, (0.4, 0.4, 0.4))
    assert_pixel(path, 0, 1, (1.0, 1.0, 1.0))


@pytest.mark.parametrize("transparency", [None, 1])
def test_palettes_with_and_without_a_transparent_colour(tmp_path, transparency):
    path = tmp_path / "palette.png"
    picture = Image.new("P", (2, 1))
    picture.putpalette([255, 0, 0, 0, 51, 0])
    picture.putdata([0, 1])
    picture.save(path, **({} if transparency is None else {"transparency": transparency}))
    assert_pixel(path, 0, 0, (1.0, 0.0, 0.0))
    assert_pixel(path, 0, 1, (0.0, 0.2, 0.0) if transparency is None else (1.0, 1.0, 1.0))


@pytest.mark.parametrize("mode", ["1", "L", "CMYK", "YCbCr"])
def test_other_modes_are_white_where_they_are_white(tmp_path, mode):
    white = {"1": 1, "L": 255, "CMYK": (0,) * 4, "YCbCr": (255, 128, 128)}
    path = tmp_path / "white.tif"
    Image.new(mode, (2, 2), white[mode]).save(path)
    assert_pixel(path, 0, 0, (1.0, 1.0, 1.0))


@pytest.mark.parametrize("mode", ["F", "I"])
def test_numbers_without_a_range_are_refused(tmp_path, mode):
    path = tmp_path / "numbers.tif"
    Image.new(mode, (2, 2), 3).save(path)
    with pytest.raises(UserError, match=r"numbers\.tif: its pixels have no known range; save it"):
        read_image(path)


@pytest.fixture
def twenty(tmp_path):
    paths = [tmp_path / f"{n:02d}.png" for n in range(20)]
    for path in paths:
        Image.new("RGB", (4, 4)).save(path)
    return paths


def test_all_broken_images_are_in_one_message(twenty):
    for path in twenty[3::4]:
        path.write_bytes(path.read_bytes()[:30])
    ticks = []
    with pytest.raises(UserError) as error:
        check_images(twenty, ticks.append)
    told = str(error.value)
    assert told.startswith("5 images cannot be used: ")
    assert [n for n in range(20) if f"{n:02d}.png: not an image" in told] == [3, 7, 11]
    assert told.endswith("; and 2 more")
    assert "\n" not in told
    assert sum(ticks) == 20


def test_one_broken_image_is_named_alone(twenty):
    twenty[19].write_bytes(b"")
    with pytest.raises(UserError, match=r"^\S+19\.png: not an image that can be decoded"):
        check_images(twenty, lambda done: None)


class Elsewhere(FeatureExtractor):
    """Takes images of one device alone, as weights there would."""

    def __call__(self, images: Tensor) -> Tensor:
        assert images.device.type == "meta"
        return torch.zeros(len(images), 2)


def test_images_go_to_the_device_of_the_features(twenty):
    extractor = Elsewhere("any", 2, torch.flatten)
    found = image_features(twenty, extractor, lambda done: None, torch.device("meta"))
    assert found.shape == (20, 2)
