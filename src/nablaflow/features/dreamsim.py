"""Embeddings of DreamSim (Fu et al., arXiv 2306.09344), whose distance is close to people's."""

from __future__ import annotations

import importlib
import sys
from contextlib import redirect_stdout
from pathlib import Path
from typing import Any

import torch
from huggingface_hub import constants

from nablaflow.errors import UserError, installing
from nablaflow.features.contract import FeatureExtractor, frozen
from nablaflow.features.preprocess import resize
from nablaflow.hub import announce
from nablaflow.places import at_home
from nablaflow.typing import Features, Images

SIZE = 224  # the package's own preprocessing squeezes an image to this square


def load_dreamsim(weights: str | None, device: torch.device) -> FeatureExtractor:
    """The extractor ``dreamsim``, from the package of that name.

    Args:
        weights: the folder that the package keeps its weights in; it fetches what is not there.
            None is ``dreamsim`` beside the hub's cache, in ``HF_HOME``.

    Raises:
        UserError: the package is not installed, or its weights cannot be downloaded.
    """
    folder = Path(constants.HF_HOME) / "dreamsim" if weights is None else Path(weights)
    network: Any = frozen(_model(at_home(folder), device), device)

    def embed(images: Images) -> Features:
        return network.embed(resize(images, SIZE, SIZE))

    blank = torch.zeros(1, 3, SIZE, SIZE, device=device)
    with torch.no_grad():
        dim = embed(blank).shape[-1]
    return FeatureExtractor("dreamsim", dim, embed)


def _model(folder: Path, device: torch.device) -> torch.nn.Module:
    """The package's network; what the package prints goes to standard error."""
    try:
        dreamsim: Any = importlib.import_module("dreamsim").dreamsim
    except ImportError as error:
        raise UserError(
            f"features dreamsim: the package is not installed; {installing('dreamsim')}"
        ) from error
    try:
        folder.mkdir(parents=True, exist_ok=True)
        if not any(folder.iterdir()):
            announce(f"downloading the weights of dreamsim into {folder}")
        with redirect_stdout(sys.stderr):
            model, _ = dreamsim(pretrained=True, device=str(device), cache_dir=str(folder))
    except Exception as error:  # what it fetches with raises many kinds for one cause
        reason = " ".join(str(error).split())[:120]
        raise UserError(
            f"features dreamsim: no weights ({reason}); load them once where there is a network, "
            f"and copy them to {folder}"
        ) from error
    return model
