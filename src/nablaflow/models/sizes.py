"""How large the states of a pipeline are: as its UNet says, or as the settings ask."""

from __future__ import annotations

import math
from typing import Any

from nablaflow.errors import UserError
from nablaflow.models.settings import SamplerSettings


def own_size(unet: Any) -> tuple[int, int] | None:
    """(height, width) of the states that a UNet's configuration names, which may be none.

    Raises:
        UserError: it names what is no size.
    """
    size = unet.config.sample_size
    if size is None:
        return None
    sides = [size, size] if isinstance(size, int) else size
    if not isinstance(sides, list | tuple) or len(sides) != 2 or not all(map(_is_side, sides)):
        raise UserError(
            f"model: its sample_size of {size!r} is no size; write a number, or [height, width], "
            "into its unet/config.json"
        )
    height, width = sides
    return height, width


def _is_side(value: Any) -> bool:
    return type(value) is int and value > 0


STOCK = 8
"""Stock pipelines of a UNet make images whose sides are multiples of this, whatever their VAE."""


def latent_size(unet: Any, factor: int, sampler: SamplerSettings) -> tuple[int, int]:
    """(height, width) of the latents of the images asked for.

    Args:
        factor: pixels of an image on each side of a latent's.

    Raises:
        UserError: no size anywhere, or one that the VAE or the stock pipeline cannot make.
    """
    patch = math.lcm(factor, STOCK) // factor
    return sides(own_size(unet) or (None, None), factor, sampler, patch)


def sides(
    own: tuple[int | None, int | None], factor: int, sampler: SamplerSettings, patch: int = 1
) -> tuple[int, int]:
    """(height, width) of the latents of the images asked for.

    Args:
        own: by default; None where the model says nothing.
        factor: pixels of an image on each side of a latent's.
        patch: latents on each side of what the network takes as one.

    Raises:
        UserError: no size anywhere, or one that the VAE or the network cannot make.
    """
    height, width = (
        _side(name, default, factor, factor * patch, getattr(sampler, name))
        for name, default in zip(("height", "width"), own, strict=True)
    )
    return height, width


def _side(name: str, own: int | None, factor: int, multiple: int, asked: int | None) -> int:
    """Of the latents; ``own`` is in their units, ``asked`` in pixels."""
    if asked is None and own is None:
        raise UserError(
            f"sampler.{name}: the model's UNet has no sample_size, so there is no default; set "
            f"sampler.height and sampler.width, in multiples of {multiple}"
        )
    pixels = asked if asked is not None else factor * (own or 0)
    if pixels % multiple:
        near = max(multiple, round(pixels / multiple) * multiple)
        whose, remedy = "", f"use {near}"
        if asked is None:
            whose, remedy = "of the model's own size ", f"set sampler.{name}={near}"
        raise UserError(
            f"sampler.{name}: {pixels} pixels {whose}are not a multiple of {multiple}, which the "
            f"model needs; {remedy}"
        )
    return pixels // factor


def check_positions(latents: tuple[int, int], most: tuple[int, int], factor: int) -> None:
    """Refuse latents, each (height, width), that are larger than ``most``.

    Args:
        factor: pixels of an image on each side of a latent's.

    Raises:
        UserError: a side is.
    """
    for name, side, largest in zip(("height", "width"), latents, most, strict=True):
        if side > largest:
            raise UserError(
                f"sampler.{name}: its transformer has positions for images of up to "
                f"{largest * factor} pixels; use that or less"
            )


def pixel_size(unet: Any, sampler: SamplerSettings) -> tuple[int, int]:
    """(height, width) of the images of an unconditional model: a stock pipeline has no other.

    Raises:
        UserError: another one is asked for, or the model's own is missing or does not fit it.
    """
    own = own_size(unet)
    if own is None:
        raise UserError("model: its UNet has no sample_size; write it into its unet/config.json")
    for name, asked, side in zip(
        ("height", "width"), (sampler.height, sampler.width), own, strict=True
    ):
        if asked not in (None, side):
            raise UserError(
                f"sampler.{name}: an unconditional pipeline makes images of {own[0]}x{own[1]} "
                "pixels only; leave it out"
            )
        halvings = 2 ** (len(unet.config.block_out_channels) - 1)
        if side % halvings:
            raise UserError(
                f"model: its sample_size of {side} is not a multiple of {halvings}, by which its "
                "UNet divides; write another into its unet/config.json"
            )
    return own
