"""Captions of scenes: any subset of the attributes, in one fixed order of words."""

from __future__ import annotations

from dataclasses import dataclass

import torch

from nablaflow.nano.scenes import COLORS, RADIUS, SHADE, SHAPES, Scenes

ATTRIBUTES = ("shape", "color", "size", "x", "y", "shade")
SIZES = ("small", "large")
SIDES = ("left", "right")
HEIGHTS = ("top", "bottom")
SHADES = ("dark", "light")
WORDS = (
    ("a", "at", "the", "on", "background", "shape")
    + SHAPES
    + tuple(COLORS)
    + SIZES
    + SIDES
    + HEIGHTS
    + SHADES
)


@dataclass(frozen=True)
class Names:
    """The words for one scene's attributes."""

    shape: str
    color: str
    size: str
    x: str
    y: str
    shade: str


def color_name(hue: float) -> str:
    """The name whose sector of the hue circle holds ``hue`` (turns)."""
    for name, (low, high) in COLORS.items():
        if (hue - low) % 1.0 < high - low:
            return name
    raise ValueError(f"hue {hue} is not a number of turns")


def name_attributes(scenes: Scenes) -> list[Names]:
    """The words that describe each scene: every attribute, named or not in its caption."""
    columns = zip(
        scenes.shape.tolist(),
        scenes.hue.tolist(),
        scenes.radius.tolist(),
        scenes.x.tolist(),
        scenes.y.tolist(),
        scenes.shade.tolist(),
        strict=True,
    )
    return [
        Names(
            shape=SHAPES[shape],
            color=color_name(hue),
            size=SIZES[radius > sum(RADIUS) / 2],
            x=SIDES[x > 0.5],
            y=HEIGHTS[y > 0.5],
            shade=SHADES[shade > sum(SHADE) / 2],
        )
        for shape, hue, radius, x, y, shade in columns
    ]


def compose(names: Names, named: set[str]) -> str:
    """The caption that names the attributes in ``named`` and leaves the others free.

    >>> compose(Names("circle", "red", "large", "left", "top", "dark"), {"shape", "color", "x"})
    'a red circle on the left'
    """
    words = ["a"]
    words += [names.size] if "size" in named else []
    words += [names.color] if "color" in named else []
    words += [names.shape] if "shape" in named else ["shape"]
    if "y" in named:
        words += ["at", "the", names.y]
        words += [names.x] if "x" in named else []
    elif "x" in named:
        words += ["on", "the", names.x]
    words += ["on", "a", names.shade, "background"] if "shade" in named else []
    return " ".join(words)


def sample_captions(scenes: Scenes, generator: torch.Generator, dropout: float = 0.1) -> list[str]:
    """A caption for each scene; the number of attributes it names is spread evenly.

    Args:
        dropout: share of empty captions, for classifier-free guidance.
    """
    n = len(scenes)
    talkative = torch.rand(n, 1, generator=generator)
    named = torch.rand(n, len(ATTRIBUTES), generator=generator) < talkative
    silent = torch.rand(n, generator=generator) < dropout
    return [
        "" if mute else compose(names, {a for a, used in zip(ATTRIBUTES, row, strict=True) if used})
        for names, row, mute in zip(
            name_attributes(scenes), named.tolist(), silent.tolist(), strict=True
        )
    ]
