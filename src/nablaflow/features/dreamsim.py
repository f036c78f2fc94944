"""Embeddings of DreamSim (Fu et al., arXiv 2306.09344), whose distance is close to people's."""

from __future__ import annotations

import importlib
from typing import Any

import torch

from nablaflow.errors import UserError
from nablaflow.features.contract import FeatureExtractor, frozen
from nablaflow.features.preprocess import resize
from nablaflow.typing import Features, Images

SIZE = 224  # the package's own preprocessing squeezes an image to this square


def load_dreamsim(weights: str | None, device: torch.device) -> FeatureExtractor:
    """The extractor ``dreamsim``, from the package of that name.

    Args:
        weights: the folder that the package keeps its weights in; it fetches what is not there.

    Raises:
        UserError: the package is not installed, or its weights cannot be had.
    """
    try:
        dreamsim: Any = importlib.import_module("dreamsim").dreamsim
    except ImportError as error:
        raise UserError(
            "features dreamsim: the package is not installed; pip install 'nablaflow[dreamsim]'"
        ) from error
    cache = {} if weights is None else {"cache_dir": weights}
    try:
        model, _ = dreamsim(pretrained=True, device=str(device), **cache)
    except Exception as error:  # what it fetches with raises many kinds for one cause
        reason = " ".join(str(error).split())[:120]
        raise UserError(
            f"features dreamsim: no weights ({reason}); fetch them once where there is a network, "
            "and give their folder as weights"
        ) from error
    network: Any = frozen(model, device)

    def embed(images: Images) -> Features:
        return network.embed(resize(images, SIZE, SIZE))

    blank = torch.zeros(1, 3, SIZE, SIZE, device=device)
    with torch.no_grad():
        dim = embed(blank).shape[-1]
    return FeatureExtractor("dreamsim", dim, embed)
