"""Scenes as a folder of images with ``pairs.csv``, for `nablaflow reward fit`.

python -m nablaflow.nano.judged FOLDER [--n N --seed SEED]
"""

from __future__ import annotations

import argparse
from pathlib import Path

import torch
from PIL import Image

from nablaflow.nano.preferences import draw_pairs, shipped_pairs
from nablaflow.nano.scenes import Scenes, render


def write_judged(folder: Path, pairs: tuple[Scenes, Scenes]) -> None:
    """Write every scene as a PNG, and the table beside them; the folder must be there."""
    lines = ["preferred,rejected"]
    preferred, rejected = (render(scenes) for scenes in pairs)
    for number, sides in enumerate(zip(preferred, rejected, strict=True)):
        names = [f"{number:03d}-{side}.png" for side in "ab"]
        for name, image in zip(names, sides, strict=True):
            pixels = (image * 255).round().to(torch.uint8).permute(1, 2, 0)
            Image.fromarray(pixels.numpy()).save(folder / name)
        lines.append(",".join(names))
    (folder / "pairs.csv").write_text("\n".join(lines) + "\n", encoding="utf-8")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("folder", type=Path)
    parser.add_argument("--n", type=int, help="fresh pairs; without it, those that ship")
    parser.add_argument("--seed", type=int, default=0)
    given = parser.parse_args()
    generator = torch.Generator().manual_seed(given.seed)
    given.folder.mkdir(parents=True, exist_ok=True)
    write_judged(given.folder, draw_pairs(given.n, generator) if given.n else shipped_pairs())
    print(given.folder / "pairs.csv")


if __name__ == "__main__":
    main()
