"""The value gradient that forward-looking and flow score give together, as a constant target.

grad V_k(x_k) = beta gamma_k grad r(x0_hat(x_k)) + g_phi(x_k, k), with an average of g_phi that no
loss of this update follows; at x_0 it is beta grad r(x_0), which is exact.
"""

from __future__ import annotations

import torch
from jaxtyping import Float
from torch import Tensor

from nablaflow.diffusion.process import at
from nablaflow.estimators.contract import Networks
from nablaflow.estimators.forward_looking import Predictor, look_ahead
from nablaflow.estimators.reference import reward_gradient
from nablaflow.models import Condition
from nablaflow.typing import Latents, Steps


def bootstrap(
    networks: Networks,
    x: Latents,
    k: Steps,
    condition: Condition,
    prompts: list[str],
    strength: Float[Tensor, "levels"],
    predictor: Predictor = "reference",
) -> Latents:
    """The value gradient at any states x_k, detached.

    Args:
        strength: beta gamma_k by k. Where it is 0 for all noisy states, the reward is only asked
            about clean ones.
    """
    looked = looked_ahead(networks, x, k, condition, prompts, strength, predictor)
    flow = target_flow(networks, x, k, condition)
    return looked + torch.where((k == 0).reshape(-1, *[1] * (x.ndim - 1)), 0.0, flow)


def looked_ahead(
    networks: Networks,
    x: Latents,
    k: Steps,
    condition: Condition,
    prompts: list[str],
    strength: Float[Tensor, "levels"],
    predictor: Predictor,
) -> Latents:
    """The forward-looking part of it."""
    if strength[1:].any():
        return look_ahead(networks, x, k, condition, prompts, strength, predictor)
    value = torch.zeros_like(x)
    rows = (k == 0).nonzero()[:, 0]
    if len(rows):
        ended = reward_gradient(networks, x[rows], [prompts[row] for row in rows.tolist()])
        value[rows] = at(strength, k[rows], x) * ended
    return value


@torch.no_grad()
def target_flow(networks: Networks, x: Latents, k: Steps, condition: Condition) -> Latents:
    """g_phi(x_k, k) by the average of the flow network."""
    assert networks.flow_target is not None
    timestep = networks.model.process.timestep.to(k.device)[k]
    return networks.flow_target(x, timestep, condition)
