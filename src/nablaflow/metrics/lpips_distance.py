"""LPIPS: a learned perceptual distance between two images (Zhang et al., arXiv 1801.03924)."""

from __future__ import annotations

from functools import cache
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from nablaflow.errors import UserError
from nablaflow.hub import read_weights
from nablaflow.metrics.bootstrap import Counts, Resampling
from nablaflow.metrics.contract import View
from nablaflow.metrics.estimate import Estimate
from nablaflow.metrics.pair_diversity import measure_pairs
from nablaflow.metrics.quadratic import matrix_mean
from nablaflow.metrics.weights import extra, fetched
from nablaflow.typing import Batch, Images

_BATCH = 64  # pairs at once


class Lpips:
    """Distance of each pair of images in [0, 1], by AlexNet, the paper's fastest and its choice."""

    def __init__(self, weights: str | Path | None = None, device: torch.device | str = "cpu"):
        """Load the network.

        Args:
            weights: file of torchvision's AlexNet; None takes the cached one or downloads it. The
                layers on top come with the package.

        Raises:
            UserError: the package is missing, or the weights are.
        """
        package = extra("lpips", "metrics")
        alexnet = extra("torchvision.models", "metrics").AlexNet_Weights.IMAGENET1K_V1
        state = fetched(alexnet.url, "lpips") if weights is None else read_weights(Path(weights))
        network = package.LPIPS(net="alex", pnet_rand=True, verbose=False)
        _load_trunk(network.net, state)
        self._network = network.requires_grad_(False).to(device)
        self._device = torch.device(device)

    @torch.no_grad()
    def __call__(self, first: Images, second: Images) -> Batch:
        """(batch,) float32."""
        pair = (side.to(self._device).float() for side in (first, second))
        distance: Tensor = self._network(*pair, normalize=True)
        return distance.flatten().cpu()

    def matrix(self, images: Images) -> Tensor:
        """All pairs of some images: (n, n) float64, symmetric, zero on its diagonal."""
        images = images.to(self._device)  # once, and not with every batch of pairs
        rows, columns = torch.triu_indices(len(images), len(images), 1)
        parts = zip(rows.split(_BATCH), columns.split(_BATCH), strict=True)
        upper = torch.cat([self(images[i], images[j]) for i, j in parts]).double()
        matrix = torch.zeros(len(images), len(images), dtype=torch.float64)
        matrix[rows, columns] = upper
        return matrix + matrix.T


def lpips_network(device: torch.device | str = "cpu") -> Lpips:
    """The network with its cached or downloaded weights, built once a process and device.

    Raises:
        UserError: as `Lpips`; the next call tries again.
    """
    return _network(torch.device(device))


def measure_lpips(own: View, reference: View, resampling: Resampling) -> Estimate:
    """Mean LPIPS between two images of a prompt, averaged over prompts.

    Every pair goes through the network, so the work grows with the square of the images a prompt.
    The network is `lpips_network`, where the images are.

    Args:
        own: its rows are images, (n, 3, h, w) of bytes.

    Raises:
        UserError: a prompt has fewer images than `pair_diversity.LEAST`, or `Lpips` does.
    """

    def prompt_mean(rows: Tensor, counts: Counts) -> Tensor:
        network = lpips_network(own.rows.device)
        return matrix_mean(network.matrix(own.rows[rows].float() / 255.0), counts)

    return measure_pairs("lpips", own, resampling, prompt_mean)


@cache
def _network(device: torch.device) -> Lpips:
    return Lpips(device=device)


def _load_trunk(trunk: Any, state: dict[str, Tensor]) -> None:
    """The ``features.i`` of torchvision into the package's slices, which keep its numbers."""
    try:
        renamed = {name: state[f"features.{name.partition('.')[2]}"] for name in trunk.state_dict()}
        trunk.load_state_dict(renamed)
    except (KeyError, RuntimeError) as error:
        raise UserError(
            "lpips: the weights are not torchvision's AlexNet; give that file"
        ) from error
