"""The features of FID and KID: torch-fidelity's port of the 2015 Inception network.

Its output is that of the network the papers' figures come from, resizing included, which
torchvision's Inception is not (Parmar et al., arXiv 2104.11222). Weights are read with
``weights_only``; the package itself would unpickle them, so it is handed a file written here.
"""

from __future__ import annotations

import tempfile
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from nablaflow.errors import UserError
from nablaflow.hub import read_weights
from nablaflow.metrics.weights import extra, fetched
from nablaflow.typing import Features, Images

DIM = 2048


class Inception:
    """Images in [0, 1] to the (batch, 2048) features before the last layer."""

    name, dim = "inception", DIM

    def __init__(self, weights: str | Path | None = None, device: torch.device | str = "cpu"):
        """Load the network.

        Args:
            weights: file of torch-fidelity's weights; None takes the cached ones or downloads them.

        Raises:
            UserError: the package is missing, or the weights are.
        """
        package = extra("torch_fidelity.feature_extractor_inceptionv3", "metrics")
        address = package.URL_INCEPTION_V3
        state = fetched(address, self.name) if weights is None else read_weights(Path(weights))
        with tempfile.TemporaryDirectory() as folder:
            file = Path(folder) / "inception.pt"
            torch.save(state, file)
            self._network = _built(package, file).to(device)

    @torch.no_grad()
    def __call__(self, images: Images) -> Features:
        """Rounded to 8 bits first, as the images of a data set are: (batch, 2048) float32."""
        device = next(self._network.parameters()).device
        bytes_ = (images.to(device).clamp(0.0, 1.0) * 255.0).round().byte()
        features: Tensor = self._network(bytes_)[0]
        return features


def _built(package: Any, file: Path) -> torch.nn.Module:
    try:
        return package.FeatureExtractorInceptionV3(
            "inception-v3-compat", [str(DIM)], feature_extractor_weights_path=str(file)
        )
    except RuntimeError as error:
        reason = str(error).splitlines()[0]
        raise UserError(
            f"inception: the weights are not torch-fidelity's ({reason}); give its own file"
        ) from error
