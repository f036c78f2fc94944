"""The scenes the embedded model is trained on: one flat-coloured object on a grey background.

Because the scenes are drawn, their distribution is known: every attribute is independent and
uniform over its range, and a caption that leaves an attribute out leaves it free.
"""

from __future__ import annotations

import math
from dataclasses import dataclass, fields, replace

import torch
from torch import Tensor

IMAGE_SIZE = 64
SHAPES = ("circle", "square", "triangle", "star")
# A named colour is a sector of the hue circle, in turns, centred on the name's usual hue.
COLORS = {
    "red": (-0.04, 0.04),
    "orange": (0.04, 0.11),
    "yellow": (0.11, 0.21),
    "green": (0.21, 0.43),
    "cyan": (0.43, 0.56),
    "blue": (0.56, 0.71),
    "purple": (0.71, 0.83),
    "pink": (0.83, 0.96),
}
SATURATION, VALUE = 0.85, 0.92
RADIUS = (9.0, 17.0)  # pixels: radius of the disc of the same area
SHADE = (0.08, 0.92)
MARGIN = 2.0  # pixels between the object and the border


@dataclass(frozen=True)
class Scenes:
    """A batch of scenes; every field has shape (n,).

    Attributes:
        shape: index into ``SHAPES``.
        hue: in turns, [0, 1).
        x: position in the room the object has, 0 left to 1 right.
        y: the same, 0 top to 1 bottom.
        radius: pixels, radius of the disc of the same area.
        shade: grey level of the background, in [0, 1].
    """

    shape: Tensor
    hue: Tensor
    x: Tensor
    y: Tensor
    radius: Tensor
    shade: Tensor

    def __len__(self) -> int:
        return len(self.hue)

    def __getitem__(self, index: Tensor | slice) -> Scenes:
        return Scenes(**{f.name: getattr(self, f.name)[index] for f in fields(self)})

    def with_shape(self, name: str) -> Scenes:
        """The same scenes with every object of one shape."""
        return replace(self, shape=torch.full_like(self.shape, SHAPES.index(name)))


def sample_scenes(n: int, generator: torch.Generator) -> Scenes:
    """Draw ``n`` independent scenes from the true distribution."""

    def uniform(low: float, high: float) -> Tensor:
        return low + (high - low) * torch.rand(n, generator=generator)

    return Scenes(
        shape=torch.randint(len(SHAPES), (n,), generator=generator),
        hue=uniform(0.0, 1.0),
        x=uniform(0.0, 1.0),
        y=uniform(0.0, 1.0),
        radius=uniform(*RADIUS),
        shade=uniform(*SHADE),
    )


def hsv_to_rgb(hue: Tensor, saturation: float, value: float) -> Tensor:
    """Hue in turns, shape (n,), to RGB in [0, 1], shape (n, 3)."""
    offset = torch.tensor([5.0, 3.0, 1.0], device=hue.device)
    sector = (offset + 6.0 * hue[:, None]) % 6.0
    return value - value * saturation * torch.minimum(sector, 4.0 - sector).clamp(0.0, 1.0)


@dataclass(frozen=True)
class _Outline:
    """A polygon of ``tips`` corners at equal angles and as many inner ones between them.

    With the inner corners on the chords it is a regular polygon. ``scale`` gives it the area of
    the unit disc; ``reach`` is half its bounding box and ``middle`` the box's centre, (x, y).
    """

    tips: int
    inner: float
    turn: float

    @property
    def scale(self) -> float:
        return math.sqrt(math.pi / (self.tips * self.inner * math.sin(math.pi / self.tips)))

    def _corners(self) -> Tensor:
        angle = self.turn + torch.arange(self.tips) * (2.0 * math.pi / self.tips)
        return self.scale * torch.stack([angle.sin(), -angle.cos()], dim=-1)

    @property
    def reach(self) -> Tensor:
        return (self._corners().amax(0) - self._corners().amin(0)) / 2

    @property
    def middle(self) -> Tensor:
        return (self._corners().amax(0) + self._corners().amin(0)) / 2


def _regular(tips: int, turn: float = 0.0) -> _Outline:
    return _Outline(tips, math.cos(math.pi / tips), turn)


_OUTLINES = {
    "circle": _regular(64),
    "square": _regular(4, math.pi / 4),
    "triangle": _regular(3),
    "star": _Outline(5, 0.45, 0.0),
}


def half_extent(shape: Tensor) -> Tensor:
    """Half width and half height of each object at radius 1, shape (n, 2)."""
    table = torch.stack([_OUTLINES[name].reach for name in SHAPES])
    return table.to(shape.device)[shape]


def centroid_to_centre(shape: Tensor) -> Tensor:
    """From each object's centroid to its bounding box's centre at radius 1, shape (n, 2)."""
    table = torch.stack([_OUTLINES[name].middle for name in SHAPES])
    return table.to(shape.device)[shape]


def signed_distance(shape: Tensor, points: Tensor) -> Tensor:
    """Signed distance to the nearest edge's line, negative inside, for outlines of radius 1.

    By symmetry only half of one tip matters: fold the angle into it, and the outline is one line.

    Args:
        shape: (n,) index into ``SHAPES``.
        points: (n, h, w, 2), relative to the centre of the bounding box, units of the radius.
    """
    outlines = [_OUTLINES[name] for name in SHAPES]
    table = torch.tensor([[o.tips, o.inner, o.turn, o.scale] for o in outlines])
    tips, inner, turn, scale = table.to(points.device)[shape][..., None, None].unbind(1)
    x, y = (points + centroid_to_centre(shape)[:, None, None]).unbind(-1)
    sector = 2.0 * math.pi / tips
    angle = torch.atan2(x, -y) - turn
    folded = (angle - sector * (angle / sector).round()).abs()
    # The edge runs from the tip (scale, 0) to the inner corner (a, b).
    a, b = scale * inner * (sector / 2).cos(), scale * inner * (sector / 2).sin()
    length = ((scale - a).square() + b.square()).sqrt()
    distance = torch.hypot(x, y)
    return ((distance * folded.cos() - scale) * b + distance * folded.sin() * (scale - a)) / length


def coverage(shape: Tensor, centre: Tensor, radius: Tensor, size: int = IMAGE_SIZE) -> Tensor:
    """Anti-aliased masks of the objects, shape (n, size, size), in [0, 1].

    Args:
        shape: (n,) index into ``SHAPES``.
        centre: (n, 2) centre of the bounding box, pixels, x then y.
        radius: (n,) pixels.
    """
    pixel = torch.arange(size, device=radius.device) + 0.5
    grid = torch.stack(torch.meshgrid(pixel, pixel, indexing="xy"), dim=-1)
    scale = radius[:, None, None]
    points = (grid - centre[:, None, None]) / scale[..., None]
    return (0.5 - scale * signed_distance(shape, points)).clamp(0.0, 1.0)


def centres(scenes: Scenes, size: int = IMAGE_SIZE) -> Tensor:
    """Centre of each object's bounding box in pixels, shape (n, 2), x then y."""
    reach = half_extent(scenes.shape) * scenes.radius[:, None] + MARGIN
    position = torch.stack([scenes.x, scenes.y], dim=-1)
    return reach + position * (size - 2 * reach)


def render(scenes: Scenes, size: int = IMAGE_SIZE) -> Tensor:
    """Draw the scenes: images in [0, 1], shape (n, 3, size, size)."""
    mask = coverage(scenes.shape, centres(scenes, size), scenes.radius, size)[:, None]
    colour = hsv_to_rgb(scenes.hue, SATURATION, VALUE)[:, :, None, None]
    return mask * colour + (1.0 - mask) * scenes.shade[:, None, None, None]
