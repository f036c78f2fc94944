"""Guided sampling: the reference's kernels, moved by the forward-looking value gradient.

    x_{k-1} ~ N(mu_ref(x_k) + m_k beta gamma_k grad r(x0_hat(x_k)), sigma_k^2)

with m_k = c_k by the exact step, sigma_k^2 by the published one (`nablaflow.diffusion.value_step`).

What forward-looking residual ∇-DB would learn, put in while sampling (as in arXiv 2209.14687): a
backward pass of the reference and of the reward at each step of each image.
"""

from __future__ import annotations

from typing import ClassVar, final

import torch
from diffusers.utils.torch_utils import randn_tensor
from jaxtyping import Float
from pydantic import Field
from torch import Tensor

from nablaflow.diffusion import Noise, Step, adds_noise, check_step, value_step
from nablaflow.diffusion.process import ReverseProcess, at
from nablaflow.errors import UserError
from nablaflow.estimators import Gamma, Networks, check_gamma, forward_looking, gamma_table
from nablaflow.estimators.reference import reference_step
from nablaflow.methods.untrained import Untrained
from nablaflow.models import Condition
from nablaflow.typing import Latents, Steps


@final
class GuidedSampling(Untrained):
    """Biased: the gradient is that at x_k, and looks ahead by one guess at x_0."""

    name: ClassVar[str] = "guided-sampling"
    needs_reward_gradient: ClassVar[bool] = True

    beta: float = Field(ge=0, description="the tilt: p* is p_ref exp(beta r)")
    gamma: Gamma = Field(default="one", description="gamma_k, trust in the forward-looking reward")
    step: Step = Field(
        default="published",
        description="how a value gradient moves a kernel's mean: by sigma_k^2, or exact",
    )

    def check(self, process: ReverseProcess) -> None:
        check_step(self.step, process)
        if self.step == "published" and not adds_noise(process):
            raise UserError(
                "method.step: the published step is by the noise's variance, and this sampler has "
                "none; use another sampler"
            )
        if self.gamma == "measured":
            raise UserError(
                "method.gamma: guided sampling measures nothing beforehand; give a number, a list "
                "or the name of a schedule"
            )
        check_gamma(self.gamma, process)

    @torch.no_grad()
    def sample(
        self,
        networks: Networks,
        prompts: list[str],
        generators: Noise,
    ) -> Latents:
        model = networks.model
        strength = self.beta * gamma_table(self.gamma, model.process)
        scale = value_step(self.step, model.process).scale
        condition = model.condition(prompts)
        shape = (len(prompts), *model.state_shape)

        def noise() -> Latents:
            return randn_tensor(shape, generators, model.device, torch.float32)

        x = noise()
        for step in range(model.process.steps, 0, -1):
            k = torch.full((len(prompts),), step, device=x.device)
            mean = guided_mean(networks, x, k, condition, prompts, strength, scale)
            x = mean + at(model.process.sigma, k, x) * noise()
        return x


def guided_mean(
    networks: Networks,
    x: Latents,
    k: Steps,
    condition: Condition,
    prompts: list[str],
    strength: Float[Tensor, "levels"],
    scale: Float[Tensor, "levels"],
) -> Latents:
    """The mean of the moved kernel at x_k, detached.

    Args:
        strength: beta gamma_k by k.
        scale: of the kernel's shift by the value gradient, see `ValueStep`.
    """
    with reference_step(networks.model, x, k, k - 1, condition) as step:
        x0_hat = step.prediction.x0_hat
        gradient = forward_looking(networks, x0_hat, step.x, k, prompts, strength)
    return step.mean.detach() + at(scale, k, x) * gradient
