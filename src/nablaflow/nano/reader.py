"""Reads a scene's attributes off its pixels, without any network: segment, hue, area, overlap."""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
from torch import Tensor

from nablaflow.errors import UserError
from nablaflow.nano.scenes import (
    IMAGE_SIZE,
    MARGIN,
    RADIUS,
    SHAPES,
    Scenes,
    centroid_to_centre,
    coverage,
    half_extent,
)


@dataclass(frozen=True)
class Reading:
    """What was read off a batch of images.

    Attributes:
        scenes: the attributes, in the scenes' own units.
        overlap: (n,) intersection over union of the object with the best ideal shape; below about
            0.7 there is no clean object.
    """

    scenes: Scenes
    overlap: Tensor


def chroma(images: Tensor) -> tuple[Tensor, Tensor]:
    """The two coordinates of an RGB image's hue circle, each (n, h, w); length = chroma."""
    red, green, blue = images.unbind(1)
    return red - (green + blue) / 2, (green - blue) * (math.sqrt(3) / 2)


def segment(images: Tensor) -> Tensor:
    """Soft mask of the coloured object, (n, h, w): chroma relative to the object's own."""
    saturation = torch.hypot(*chroma(images))
    top = saturation.flatten(1).topk(48, dim=1).values.median(dim=1).values
    mask = saturation / top.clamp_min(0.15)[:, None, None]
    return torch.where(mask > 0.15, mask, 0.0).clamp(max=1.0)


def _centroid(mask: Tensor) -> Tensor:
    """Centre of mass in pixels, shape (n, 2), x then y."""
    pixel = torch.arange(IMAGE_SIZE, device=mask.device) + 0.5
    weight = mask.sum((1, 2)).clamp_min(1e-6)
    x, y = (mask.sum(1) * pixel).sum(1), (mask.sum(2) * pixel).sum(1)
    return torch.stack([x, y], dim=-1) / weight[:, None]


def _overlap(first: Tensor, second: Tensor) -> Tensor:
    intersection = torch.minimum(first, second).sum((1, 2))
    return intersection / torch.maximum(first, second).sum((1, 2)).clamp_min(1e-6)


def _best_shape(mask: Tensor, radius: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """The shape that overlaps most, the centre of its bounding box, and the overlap."""
    centroid = _centroid(mask)
    kinds = [torch.full_like(radius, index).long() for index in range(len(SHAPES))]
    offered = [centroid + centroid_to_centre(kind) * radius[:, None] for kind in kinds]
    overlaps = torch.stack(
        [
            _overlap(mask, coverage(kind, centre, radius))
            for kind, centre in zip(kinds, offered, strict=True)
        ]
    )
    overlap, shape = overlaps.max(dim=0)
    return shape, torch.stack(offered)[shape, torch.arange(len(shape))], overlap


def _position(centre: Tensor, shape: Tensor, radius: Tensor) -> Tensor:
    """Centre in pixels to the share of the room that the object has, (n, 2)."""
    reach = half_extent(shape) * radius[:, None] + MARGIN
    return ((centre - reach) / (IMAGE_SIZE - 2 * reach)).clamp(0.0, 1.0)


def read(images: Tensor) -> Reading:
    """Read the attributes of (n, 3, 64, 64) images in [0, 1].

    Raises:
        UserError: images of another size, which are not the embedded model's.
    """
    if images.shape[-2:] != (IMAGE_SIZE, IMAGE_SIZE):
        height, width = images.shape[-2:]
        raise UserError(
            f"reward: scenes of {IMAGE_SIZE}x{IMAGE_SIZE} can be read, not images of "
            f"{width}x{height}; shape_shown and preference_rule are for the embedded model"
        )
    mask = segment(images)
    area = mask.sum((1, 2))
    radius = (area / math.pi).sqrt().clamp(RADIUS[0] / 2, RADIUS[1] * 1.5)
    shape, centre, overlap = _best_shape(mask, radius)
    first, second = (((mask > 0.9) * part).sum((1, 2)) for part in chroma(images))
    background = mask == 0.0
    shade = (images.mean(1) * background).sum((1, 2)) / background.sum((1, 2)).clamp_min(1)
    position = _position(centre, shape, radius)
    scenes = Scenes(
        shape=shape,
        hue=torch.atan2(second, first) / (2 * math.pi) % 1.0,
        x=position[:, 0],
        y=position[:, 1],
        radius=radius,
        shade=shade,
    )
    return Reading(scenes, overlap)
