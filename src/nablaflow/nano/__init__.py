"""The embedded text-to-image model: a stock diffusers pipeline of a few megabytes."""

from pathlib import Path

_FOLDER = Path(__file__).parent


def path() -> Path:
    """Folder of the model; ``StableDiffusionPipeline.from_pretrained`` loads it."""
    return _FOLDER / "pipeline"


def bank_path() -> Path:
    """File of the reference samples that ship with the model, for the demo's prompts."""
    return _FOLDER / "bank.safetensors"


__all__ = ["bank_path", "path"]
