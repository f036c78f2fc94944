"""What memory the fit of a value to the reference takes, carried out on shapes alone."""

from __future__ import annotations

import math

import torch

from nablaflow.estimators.contrastive import CONTRASTED, contrast_gradient
from nablaflow.estimators.contrasts import Contrast
from nablaflow.models import DiffusionModel, LogFlow
from nablaflow.shapes import META, Shapes
from nablaflow.training.held import FLOAT


def fit_takes(model: DiffusionModel, network: LogFlow, samples: int) -> int:
    """Bytes: the samples, a contrast's gradient, the log flow, its gradient and AdamW's moments.

    How the samples are made and scored is not in it: that is done as a rollout's are.

    Args:
        model: on shapes, as ``network`` is.
        samples: of the reference.
    """
    state, parameters = math.prod(model.state_shape), sum(p.numel() for p in network.parameters())
    with Shapes() as shapes:
        part = Contrast(
            x=torch.zeros(CONTRASTED, *model.state_shape, device=META),
            k=torch.full((CONTRASTED,), model.process.steps),
            weights=torch.full((CONTRASTED,), 1.0 / CONTRASTED),
            condition=model.condition(["a"]).expand(CONTRASTED),
            prompt="a",
        )
        timestep = model.process.timestep.to(META)
        contrast_gradient(network.requires_grad_(True), part, timestep, CONTRASTED)
    network.requires_grad_(False)
    return shapes.peak + FLOAT * (samples * state + 4 * parameters)
