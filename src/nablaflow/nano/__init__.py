"""The embedded text-to-image models: stock diffusers pipelines of a few megabytes."""

from pathlib import Path

from nablaflow.errors import UserError, nearest, show

_FOLDER = Path(__file__).parent

MODELS = {"nano": "pipeline", "flow": "flow"}
"""Folder of each: a `StableDiffusionPipeline`, and flow matching's `StableDiffusion3Pipeline`."""


def path(model: str = "nano") -> Path:
    """Folder of an embedded model; ``from_pretrained`` of its class loads it.

    Args:
        model: ``nano``, or ``flow``.

    Raises:
        UserError: there is no embedded model of this name.
    """
    if not isinstance(model, str) or model not in MODELS:
        hint = nearest(str(model), MODELS)
        raise UserError(f"nano.path: no embedded model {show(model)}; {hint}")
    return _FOLDER / MODELS[model]


def decoder_path() -> Path:
    """Folder of the small decoder for both models' latents, for ``training.decoder: tiny``."""
    return _FOLDER / "decoder"


def bank_path(model: str = "nano") -> Path:
    """File of the reference samples that ship with a model, for the demo's prompts."""
    return _FOLDER / {"nano": "bank.safetensors", "flow": "flow_bank.safetensors"}[model]


def guard_path(model: str = "nano") -> Path:
    """File of those that the demo's guard compares with, as the demo leaves it in the cache."""
    return _FOLDER / {"nano": "guard.safetensors", "flow": "flow_guard.safetensors"}[model]


def value_path(model: str = "nano") -> Path:
    """File of those that the demo's value is fitted to, likewise: of seed 0."""
    return _FOLDER / {"nano": "value.safetensors", "flow": "flow_value.safetensors"}[model]


def evaluation_path(model: str = "nano") -> Path:
    """File of the reference's samples that the demo's figures are of, likewise."""
    return (
        _FOLDER / {"nano": "evaluation.safetensors", "flow": "flow_evaluation.safetensors"}[model]
    )


def scores_path(model: str = "nano") -> Path:
    """File of the features and scores of those samples, by rewards of the package."""
    return _FOLDER / {"nano": "scores.safetensors", "flow": "flow_scores.safetensors"}[model]


def kernels_path(model: str = "nano") -> Path:
    """File of what its analytic kernels are made of, for the demo's prompts and steps."""
    return _FOLDER / {"nano": "kernels.safetensors", "flow": "flow_kernels.safetensors"}[model]


__all__ = [
    "MODELS",
    "bank_path",
    "decoder_path",
    "evaluation_path",
    "guard_path",
    "kernels_path",
    "path",
    "scores_path",
    "value_path",
]
