"""Images of a run as pictures: a grid, and before and after side by side."""

from __future__ import annotations

from bisect import bisect_right
from collections.abc import Sequence
from functools import cache
from io import BytesIO
from pathlib import Path

from PIL import Image, ImageDraw, ImageFont
from torch import Tensor

from nablaflow.storage.files import write_whole
from nablaflow.typing import Images

_INK, _MUTED, _PAPER = "#1c1f24", "#6b717b", "#ffffff"
_TINY = 128  # pixels: up to this side an image is enlarged before anyone can see it


def to_picture(image: Tensor) -> Image.Image:
    """One (3, h, w) image in [0, 1]; what is beyond is clipped, and what is no number is black."""
    pixels = image.detach().float().cpu().nan_to_num(0.0).clamp(0.0, 1.0)
    return Image.fromarray((pixels * 255.0).round().byte().permute(1, 2, 0).numpy())


def save_picture(picture: Image.Image, path: Path) -> None:
    """As a PNG, whole or not at all."""
    content = BytesIO()
    picture.save(content, "PNG")
    write_whole(path, content.getvalue())


def natural_scale(side: int) -> int:
    """The whole factor that brings a tiny image to about 128 pixels a side; 1 for others."""
    return max(1, _TINY // side)


def by_prompt(prompts: Sequence[str]) -> dict[str, list[int]]:
    """The indices of each prompt, in order of first appearance."""
    groups: dict[str, list[int]] = {}
    for index, prompt in enumerate(prompts):
        groups.setdefault(prompt, []).append(index)
    return groups


def shown(prompt: str) -> str:
    """What stands above the images of a prompt; an unconditional model's is empty."""
    return prompt or "without a prompt"


def grid(images: Images, columns: int, scale: int | None = None, gap: int = 4) -> Image.Image:
    """Images row by row on white, enlarged by a whole factor with square pixels.

    Args:
        images: (batch, 3, height, width) in [0, 1].
        columns: images a row; a single short row is only as wide as it needs.
        scale: whole factor of enlargement; None picks one by size.
        gap: pixels between images.
    """
    count, _, height, width = images.shape
    scale = natural_scale(max(height, width)) if scale is None else scale
    columns = min(columns, count)
    lines = -(-count // columns)
    wide, high = width * scale, height * scale
    sheet = Image.new("RGB", (columns * (wide + gap) - gap, lines * (high + gap) - gap), _PAPER)
    for index, image in enumerate(images):
        line, column = divmod(index, columns)
        picture = to_picture(image).resize((wide, high), Image.Resampling.NEAREST)
        sheet.paste(picture, (column * (wide + gap), line * (high + gap)))
    return sheet


def before_after(
    before: Images,
    after: Images,
    prompts: Sequence[str],
    *,
    columns: int = 4,
    scale: int | None = None,
    headings: tuple[str, str] = ("reference", "aligned"),
) -> Image.Image:
    """The same prompts and seeds from both models: a strip for each prompt, left and right.

    Args:
        before: (batch, 3, height, width) in [0, 1], of the reference.
        after: the same of the policy, from the same prompts and seeds.
        prompts: one for each image; equal prompts share a strip.
        columns: images a row on either side.
        scale: whole factor of enlargement; None picks one by size.
        headings: above the left and the right side.

    Raises:
        ValueError: the three differ in number.
    """
    check_same_number(before, after, prompts)
    sides = [
        (prompt, [grid(images[rows], columns, scale) for images in (before, after)])
        for prompt, rows in by_prompt(prompts).items()
    ]
    wide = max(pair[0].width for _, pair in sides)
    size = max(15, wide // 28)  # of the text, pixels
    margin, line = 2 * size, round(1.9 * size)
    lefts = (margin, 2 * margin + wide)
    high = sum(line + pair[0].height + size for _, pair in sides)
    sheet = Image.new("RGB", (3 * margin + 2 * wide, 2 * margin + line + high - size), _PAPER)
    pen = ImageDraw.Draw(sheet)
    for left, heading in zip(lefts, headings, strict=True):
        pen.text((left, margin), heading, _INK, _font(round(1.25 * size), bold=True))
    top = margin + line
    for prompt, pair in sides:
        text = shorten(shown(prompt), _font(size), sheet.width - 2 * margin)
        pen.text((margin, top + size // 3), text, _MUTED, _font(size))
        top += line
        for left, side in zip(lefts, pair, strict=True):
            sheet.paste(side, (left, top))
        top += pair[0].height + size
    return sheet


def check_same_number(before: Tensor, after: Tensor, prompts: Sequence[str]) -> None:
    """Raise ``ValueError`` unless there is one image of each model for each prompt."""
    if not len(before) == len(after) == len(prompts) > 0:
        counts = f"{len(before)} before, {len(after)} after, {len(prompts)} prompts"
        raise ValueError(f"need as many images before and after as prompts, got {counts}")


def shorten(text: str, font: ImageFont.FreeTypeFont, width: int) -> str:
    """One line of at most ``width`` pixels, with an ellipsis where it was cut."""
    text = " ".join(text.split())
    if font.getlength(text) <= width:
        return text
    # Of a prompt of a million characters one look at each of its beginnings would take minutes.
    fits = bisect_right(range(len(text)), width, key=lambda end: _cut(text, end, font))
    return text[: max(fits - 1, 0)].rstrip() + "…"


def _cut(text: str, end: int, font: ImageFont.FreeTypeFont) -> float:
    """Pixels of what is left of a text that is cut."""
    return font.getlength(text[:end].rstrip() + "…")


@cache
def _font(size: int, bold: bool = False) -> ImageFont.FreeTypeFont:
    # matplotlib ships it, so pictures come out alike on every machine.
    import matplotlib

    name = "DejaVuSans-Bold.ttf" if bold else "DejaVuSans.ttf"
    return ImageFont.truetype(str(Path(matplotlib.get_data_path(), "fonts", "ttf", name)), size)
