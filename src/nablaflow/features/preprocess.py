"""What image processors do to an 8-bit picture, on float images and with a gradient."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

from jaxtyping import Float
from torch import Tensor
from torch.nn import functional

from nablaflow.typing import Images

CLIP_MEAN = (0.48145466, 0.4578275, 0.40821073)
CLIP_STD = (0.26862954, 0.26130258, 0.27577711)


def resize(
    images: Images, height: int, width: int
) -> Float[Tensor, "batch 3 new_height new_width"]:
    """Bicubic with antialiasing, Pillow's filter (a = -0.5), along rows and then along columns.

    The overshoot is cut off at 0 and 1 after each of the two, as Pillow does. Pillow rounds to 8
    bits there besides, which has no gradient and is left out: a pixel may differ by about an 8-bit
    level.
    """
    for sides in ((images.shape[-2], width), (height, width)):
        if images.shape[-2:] != sides:
            images = functional.interpolate(
                images, sides, mode="bicubic", align_corners=False, antialias=True
            ).clamp(0.0, 1.0)
    return images


@dataclass(frozen=True)
class Preprocess:
    """Images in [0, 1] of any size to a square of ``size`` pixels, normalised for a network.

    Attributes:
        size: of the square that the network sees, pixels.
        mean: subtracted from each channel.
        std: that each channel is then divided by.
        fit: ``crop`` scales the shortest side and keeps the middle, as the processors of CLIP, BLIP
            and DINOv2 do; ``pad`` scales the longest side and puts black around the middle.
        shorter: pixels of the shortest side before a crop; None is ``size``.
        odd_crop: which side gets the odd pixel of a crop: transformers' processors round its start
            down, torchvision's to the even number.
    """

    size: int
    mean: tuple[float, float, float] = CLIP_MEAN
    std: tuple[float, float, float] = CLIP_STD
    fit: Literal["crop", "pad"] = "crop"
    shorter: int | None = None
    odd_crop: Literal["down", "even"] = "down"

    def __call__(self, images: Images) -> Float[Tensor, "batch 3 size size"]:
        """Images in [0, 1], of any size, normalised for the network."""
        images = self._cropped(images) if self.fit == "crop" else self._padded(images)
        mean, std = (images.new_tensor(values)[:, None, None] for values in (self.mean, self.std))
        return (images - mean) / std

    def _cropped(self, images: Tensor) -> Tensor:
        sides = images.shape[-2:]
        target, short = self.shorter or self.size, min(sides)
        images = resize(images, *(int(target * side / short) for side in sides))
        top, left = (self._start(side) for side in images.shape[-2:])
        return images[..., top : top + self.size, left : left + self.size]

    def _start(self, side: int) -> int:
        spare = side - self.size
        return spare // 2 if self.odd_crop == "down" else round(spare / 2)

    def _padded(self, images: Tensor) -> Tensor:
        sides = images.shape[-2:]
        scale = self.size / max(sides)
        images = resize(images, *(max(1, round(side * scale)) for side in sides))
        high, wide = (self.size - side for side in images.shape[-2:])
        return functional.pad(images, (wide // 2, wide - wide // 2, high // 2, high - high // 2))


def unit(features: Tensor) -> Tensor:
    """Rows scaled to length 1 in float32, whatever the precision of the network before."""
    return functional.normalize(features.float(), dim=-1)
