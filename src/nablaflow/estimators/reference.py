"""Gradients through one step of the reference: the parts that estimators are made of."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass

import torch
from jaxtyping import Float
from torch import Tensor

from nablaflow.diffusion import jump_mean
from nablaflow.diffusion.prediction import Prediction
from nablaflow.estimators.contract import Networks
from nablaflow.models import Condition, DiffusionModel
from nablaflow.rewards.contract import gradient_of
from nablaflow.typing import Latents, Steps


def reward_gradient(networks: Networks, x0: Latents, prompts: list[str]) -> Latents:
    """Grad r(decode(x0), prompt) by x0, see `reward_and_gradient`."""
    return reward_and_gradient(networks, x0, prompts)[1]


def reward_and_gradient(
    networks: Networks, x0: Latents, prompts: list[str]
) -> tuple[Float[Tensor, "batch"], Latents]:
    """r(decode(x0), prompt) and its gradient by x0, detached, at least float32.

    Decoded by `DiffusionModel.decode_for_gradient`, which may be smaller than what makes images.

    Rows do not depend on each other, so `Networks.decode_batch` of them at a time give the same.

    Raises:
        UserError: reward or gradient is not finite.
    """
    reward, found, gradients = networks.reward, [], []
    for rows in _parts(networks, x0):
        with torch.enable_grad():
            leaf = x0[rows].detach().requires_grad_()
            scores = reward(networks.model.decode_for_gradient(leaf), prompts[rows])
            gradients.append(gradient_of(reward.name, scores, leaf))
        found.append(scores.detach())
    return torch.cat(found), torch.cat(gradients)


@torch.no_grad()
def reward_of(networks: Networks, x0: Latents, prompts: list[str]) -> Float[Tensor, "batch"]:
    """r(decode(x0), prompt) of images that need no gradient, as many at once likewise.

    Raises:
        UserError: it is not finite.
    """
    decode = networks.model.decode_in_training
    return torch.cat(
        [networks.reward(decode(x0[rows]), prompts[rows]) for rows in _parts(networks, x0)]
    )


def _parts(networks: Networks, x0: Latents) -> list[slice]:
    n = max(1, len(x0))
    size = networks.decode_batch or n
    return [slice(start, min(start + size, len(x0))) for start in range(0, n, size)]


def vector_jacobian(
    output: Latents, x: Latents, cotangent: Latents, what: str, *, keep_graph: bool = True
) -> Latents:
    """J^T cotangent for ``output`` as a function of ``x``.

    Each row is brought near 1 on its way, so that a network in half precision keeps its digits.

    Args:
        keep_graph: for more products through it; without, its memory is given back on the way.

    Raises:
        FloatingPointError: the result is not finite; ``what`` names the cotangent.
    """
    return sum_of_products([(output, cotangent)], x, what, keep_graph=keep_graph)


def sum_of_products(
    pairs: Sequence[tuple[Latents, Latents]], x: Latents, what: str, *, keep_graph: bool = True
) -> Latents:
    """The sum of J^T cotangent over (output, cotangent), as `vector_jacobian`: one backward pass.

    Where outputs share a network, as a kernel's mean and x0_hat do, it is passed once for all.
    """
    outputs, cotangents = zip(*pairs, strict=True)
    scale = _power_of_two(torch.cat([value.flatten(1) for value in cotangents], dim=1), x)
    scaled = [value * scale for value in cotangents]
    (pulled,) = torch.autograd.grad(outputs, x, scaled, retain_graph=keep_graph)
    if not pulled.isfinite().all():
        raise FloatingPointError(f"{what}, taken through the network,")
    return pulled / scale


def _power_of_two(gradient: Float[Tensor, "batch value"], like: Tensor) -> Tensor:
    """Brings each row's largest value near 1, exactly; shaped to broadcast against ``like``."""
    largest = gradient.abs().amax(1)
    exponent = torch.frexp(torch.where(largest > 0, largest, 1.0)).exponent
    exponent = exponent.clamp(min=-126)  # float32 has no larger power
    return torch.ldexp(torch.ones_like(largest), -exponent).reshape(-1, *[1] * (like.ndim - 1))


@dataclass(frozen=True)
class ReferenceStep:
    """The reference at x_k, with the graphs from ``x`` to its prediction and to a mean.

    Attributes:
        x: a leaf.
        mean: of x_j given x_k, j < k.
    """

    x: Latents
    prediction: Prediction
    mean: Latents

    def pull(self, value_gradient: Latents) -> Latents:
        """J^T grad V_j: one step of the lean adjoint (arXiv 2409.08861, equation 38)."""
        return vector_jacobian(self.mean, self.x, value_gradient, "the adjoint")


@contextmanager
def reference_step(
    model: DiffusionModel, x: Latents, k: Steps, to: Steps, condition: Condition
) -> Iterator[ReferenceStep]:
    """The reference at ``x``; gradients through it have to be taken inside this context.

    A checkpointed layer runs again at the backward pass, and must still be the reference's then.
    """
    with model.reference(), torch.enable_grad():
        leaf = x.detach().requires_grad_()
        prediction = model.predict(leaf, k, condition)
        yield ReferenceStep(leaf, prediction, jump_mean(model.process, leaf, prediction, k, to))
