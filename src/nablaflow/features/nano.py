"""Channel statistics of the embedded model's own encoder; ships with the package.

Mean and standard deviation over all places of every channel, after the first convolution, each
down block and the middle block: the style statistics of Huang & Belongie (arXiv 1703.06868, eq. 5).
They tell colour, size, shape and background of a scene and forget where the object lies. On 800
fresh scenes a linear regression from them explains 99 % of the variance of hue, size and background
shade together; from the encoder's latents it is 60 %, from pooled pixels 63 %.
"""

from __future__ import annotations

from typing import Any, cast

import torch
from torch import Tensor
from torch.nn.functional import silu

from nablaflow import nano
from nablaflow.errors import UserError
from nablaflow.features.contract import FeatureExtractor, frozen
from nablaflow.features.preprocess import square
from nablaflow.nano.scenes import IMAGE_SIZE
from nablaflow.typing import Features, Images

FLOOR = 1e-6  # added to a variance: the slope of a root at 0 is infinite


def load_nano(weights: str | None, device: torch.device) -> FeatureExtractor:
    """The extractor ``nano``, from the embedded model.

    Args:
        weights: another diffusers folder whose ``vae`` is an ``AutoencoderKL``.

    Raises:
        UserError: the folder has none.
    """
    from diffusers import AutoencoderKL

    folder = str(nano.path()) if weights is None else weights
    try:
        vae: Any = AutoencoderKL.from_pretrained(folder, subfolder="vae", local_files_only=True)
    except (OSError, ValueError) as error:
        raise UserError(
            f"features nano: {folder} has no AutoencoderKL in its folder vae"
        ) from error
    encoder = cast(Any, frozen(vae.encoder, device))
    blank = torch.zeros(1, 3, IMAGE_SIZE, IMAGE_SIZE, device=device)
    dim = 2 * sum(stage.shape[1] for stage in _stages(encoder, blank))

    def statistics(images: Images) -> Features:
        stages = _stages(encoder, square(images, IMAGE_SIZE) * 2 - 1)
        parts = [part for stage in stages for part in _moments(silu(stage))]
        return torch.cat(parts, dim=1)

    return FeatureExtractor("nano", dim, statistics)


def _stages(encoder: Any, x: Tensor) -> list[Tensor]:
    """Activations (batch, channel, h, w) after every stage of a diffusers encoder."""
    stages = [encoder.conv_in(x)]
    for block in (*encoder.down_blocks, encoder.mid_block):
        stages.append(block(stages[-1]))
    return stages


def _moments(x: Tensor) -> tuple[Tensor, Tensor]:
    variance, mean = torch.var_mean(x, dim=(2, 3), correction=0)
    return mean, (variance + FLOOR).sqrt()
