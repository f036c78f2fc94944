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


@dataclass(frozen=True)
class Preprocess:
    """Shortest side to ``size``, centre crop, normalise: the preprocessing of CLIP and BLIP.

    The resize is bicubic with antialiasing, Pillow's filter (a = -0.5), along rows and then along
    columns, and its overshoot is cut off at 0 and 1 after each of the two, as Pillow does. Pillow
    rounds to 8 bits there besides, which has no gradient and is left out: a pixel may differ by
    about an 8-bit level, 1 / 255 / std after normalising.

    Attributes:
        size: of the square that the network sees, pixels.
        odd_crop: which side gets the odd pixel of a crop: transformers' processors round its start
            down, torchvision's to the even number.
    """

    size: int
    mean: tuple[float, float, float] = CLIP_MEAN
    std: tuple[float, float, float] = CLIP_STD
    odd_crop: Literal["down", "even"] = "down"

    def __call__(self, images: Images) -> Float[Tensor, "batch 3 size size"]:
        """Images in [0, 1], of any size, normalised for the network."""
        images = self._crop(self._resize(images))
        mean, std = (images.new_tensor(values)[:, None, None] for values in (self.mean, self.std))
        return (images - mean) / std

    def _resize(self, images: Tensor) -> Tensor:
        height, width = images.shape[-2:]
        short = min(height, width)
        if short == self.size:
            return images
        high, wide = (int(self.size * side / short) for side in (height, width))
        for sides in ((height, wide), (high, wide)):
            images = functional.interpolate(
                images, sides, mode="bicubic", align_corners=False, antialias=True
            ).clamp(0.0, 1.0)
        return images

    def _crop(self, images: Tensor) -> Tensor:
        top, left = (self._start(side) for side in images.shape[-2:])
        return images[..., top : top + self.size, left : left + self.size]

    def _start(self, side: int) -> int:
        spare = side - self.size
        return spare // 2 if self.odd_crop == "down" else round(spare / 2)


def unit(features: Tensor) -> Tensor:
    """Rows scaled to length 1 in float32, whatever the precision of the network before."""
    return functional.normalize(features.float(), dim=-1)
