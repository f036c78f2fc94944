"""What the page exports of a run, and what of it can be downloaded."""

from __future__ import annotations

from pathlib import Path

from nablaflow.studio.data import json_of
from nablaflow.studio.galleries import place_named

PLACE = "exports"  # below the page's own folder
MANIFEST = "export.json"
FORMATS = {
    "diffusers": "for load_lora_weights",
    "kohya": "by the names of ComfyUI and A1111",
    "merged": "a whole pipeline, the adapter in its weights",
}
"""Formats of `nablaflow export`, to what they are; named here, since that module loads torch."""


def place_of(root: Path, run: Path, form: str) -> Path:
    """Where the page exports a run to."""
    named = place_named(root / PLACE, run)
    return named.with_name(f"{named.name}-{form}")


def exported(root: Path, run: Path) -> dict[str, Path]:
    """The formats that are there, whole, to their folders."""
    places = {form: place_of(root, run, form) for form in FORMATS}
    return {form: place for form, place in places.items() if json_of(place / MANIFEST)}


def single_file(folder: Path) -> Path | None:
    """The one file with the weights; None where there are several, or a link."""
    files = json_of(folder / MANIFEST).get("files")
    names = [n for n in files if n.endswith(".safetensors")] if isinstance(files, dict) else []
    weights = folder / names[0] if len(names) == 1 and Path(names[0]).name == names[0] else None
    linked = weights is not None and (weights.is_symlink() or folder.is_symlink())
    return weights if weights is not None and weights.is_file() and not linked else None
