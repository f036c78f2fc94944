"""What a network predicts, in every parameterization: noise, clean state, v, velocity, score.

All of them say the same thing about x = sqrt(alpha_bar) x0 + sqrt(1 - alpha_bar) epsilon.

Flow matching has x_s = (1 - s) x0 + s epsilon instead, which is x in other units: x_s = n x with
n = sqrt((1 - s)^2 + s^2), so that sqrt(alpha_bar) = (1 - s) / n, sqrt(1 - alpha_bar) = s / n and
n = 1 / (sqrt(alpha_bar) + sqrt(1 - alpha_bar)). Only the network sees x_s.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal, get_args

from torch import Tensor

from nablaflow.typing import Latents

Parameterization = Literal["epsilon", "v_prediction", "sample"]
PARAMETERIZATIONS: tuple[str, ...] = get_args(Parameterization)
FLOW = "flow_prediction"
"""The parameterization of flow matching, as diffusers calls it."""


@dataclass(frozen=True)
class Prediction:
    """One network output, as both quantities that the kernels need.

    Attributes:
        x0_hat: the one-step (Tweedie) prediction of the clean state.
        epsilon: the prediction of the noise.
    """

    x0_hat: Latents
    epsilon: Latents


def predict_from(
    output: Latents, x: Latents, alpha_bar: Tensor, parameterization: str
) -> Prediction:
    """Read a network's raw output.

    Args:
        output: what the network returned at ``x``.
        alpha_bar: broadcasts against ``x``.
        parameterization: what the output means: ``epsilon``, ``v_prediction`` (arXiv 2202.00512,
            v = sqrt(alpha_bar) epsilon - sqrt(1 - alpha_bar) x0), ``sample`` (x0 itself), or
            ``flow_prediction`` (arXiv 2210.02747, the velocity epsilon - x0).

    Raises:
        ValueError: for any other parameterization.
    """
    signal, noise = alpha_bar.sqrt(), (1.0 - alpha_bar).sqrt()
    if parameterization == "epsilon":
        return Prediction(x0_hat=(x - noise * output) / signal, epsilon=output)
    if parameterization == "v_prediction":
        return Prediction(x0_hat=signal * x - noise * output, epsilon=noise * x + signal * output)
    if parameterization == "sample":
        return Prediction(x0_hat=output, epsilon=(x - signal * output) / noise)
    if parameterization == FLOW:
        n = 1.0 / (signal + noise)
        return Prediction(x0_hat=n * (x - noise * output), epsilon=n * (x + signal * output))
    raise ValueError(f"parameterization {parameterization!r}")


def network_input(x: Latents, alpha_bar: Tensor, parameterization: str) -> Latents:
    """The state in the network's own units: x_s for flow matching, else ``x`` itself."""
    if parameterization != FLOW:
        return x
    return x / (alpha_bar.sqrt() + (1.0 - alpha_bar).sqrt())


def flow_time(alpha_bar: Tensor) -> Tensor:
    """S of the flow-matching state x_s that a state of this signal power is, in other units."""
    noise = (1.0 - alpha_bar).sqrt()
    return noise / (alpha_bar.sqrt() + noise)


def score(prediction: Prediction, alpha_bar: Tensor) -> Latents:
    """Grad log p(x_k) = -epsilon / sqrt(1 - alpha_bar)."""
    return -prediction.epsilon / (1.0 - alpha_bar).sqrt()
