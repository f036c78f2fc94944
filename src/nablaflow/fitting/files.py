"""The files of a fitted reward: itself, its card, its picture."""

from __future__ import annotations

import os
from pathlib import Path

from nablaflow.errors import UserError
from nablaflow.fitting.card import card
from nablaflow.fitting.fit import Fit
from nablaflow.rewards.heads import save_heads
from nablaflow.storage.files import write_whole

SUFFIX = ".safetensors"
CARD, PICTURE = ".md", ".png"


def check_out(out: Path, *, overwrite: bool) -> None:
    """Find out before the work whether the reward, its card and its picture can be written.

    Raises:
        UserError: the name ends otherwise, the folder is missing or not writable, or one of the
            three is there already; all that are there are named.
    """
    if out.suffix != SUFFIX:
        raise UserError(f"--out: {out} must end in {SUFFIX}")
    if not out.parent.is_dir():
        raise UserError(f"--out: there is no folder {out.parent}; make it first")
    if not os.access(out.parent, os.W_OK):
        raise UserError(f"--out: nothing can be written to {out.parent}; give another folder")
    there = [path for path in map(out.with_suffix, (SUFFIX, CARD, PICTURE)) if path.exists()]
    folders = [str(path) for path in there if path.is_dir()]
    if folders:
        raise UserError(f"--out: {', '.join(folders)} is a folder; use another name")
    if there and not overwrite:
        names = ", ".join(map(str, there))
        raise UserError(f"--out: there already: {names}; use --overwrite or another name")


def save(fitted: Fit, out: Path) -> Path:
    """Write the reward and its card, each whole or not at all; returns the card's path."""
    text = out.with_suffix(CARD)
    save_heads(out, fitted.heads, fitted.about)
    write_whole(text, card(out.name, fitted.about))
    return text
