"""The contract of a model to align; everything above this folder knows only this."""

from __future__ import annotations

import abc
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import replace
from functools import partial

import torch
from jaxtyping import Int
from torch import Tensor, nn

from nablaflow.diffusion.kernels import clip_x0
from nablaflow.diffusion.prediction import Prediction, network_input, predict_from
from nablaflow.diffusion.process import ReverseProcess, at
from nablaflow.diffusion.trajectory import Noise, Predict, Trajectories, sample_trajectories
from nablaflow.models.condition import Condition
from nablaflow.typing import Images, Latents, Steps


def _at_least_float32(values: Tensor) -> Tensor:
    return values.to(torch.promote_types(values.dtype, torch.float32))


def rescaled(guided: Latents, positive: Latents, share: float) -> Latents:
    """A guided output whose spread is ``share`` of the way back to the prompt's own.

    arXiv 2305.08891, equations 15 and 16; the spread is of all values of a state.
    """
    if share == 0.0:
        return guided
    wanted, own = (part.flatten(1).std(dim=1)[:, None, None, None] for part in (positive, guided))
    return share * (guided * (wanted / own)) + (1 - share) * guided


class DiffusionModel(abc.ABC):
    """A pretrained model with a policy beside it: the reference, and the same network adapted.

    A family implements the abstract parts; guidance, kernels and clipping are the same for all.

    Attributes:
        process: the reverse process that both the reference and the policy sample with.
        network: the denoiser; its parameters that require a gradient are the policy's.
        state_shape: (channel, height, width) of a state.
        image_size: (height, width) of an image, pixels.
        parameterization: what the network predicts.
        guidance_scale: of classifier-free guidance (arXiv 2207.12598); 1 is none.
        guidance_rescale: see `rescaled`; 0 is none.
        takes_prompts: whether they condition it; for an unconditional model they are only labels.
    """

    takes_prompts: bool = True

    process: ReverseProcess
    network: nn.Module
    state_shape: tuple[int, int, int]
    image_size: tuple[int, int]
    parameterization: str
    guidance_scale: float
    guidance_rescale: float = 0.0
    device: torch.device

    @abc.abstractmethod
    def condition(self, prompts: list[str]) -> Condition:
        """What the network is given with each prompt; detached, and may be cached."""

    @abc.abstractmethod
    def decode(self, x0: Latents) -> Images:
        """Generated states to images in [0, 1], differentiable."""

    def decode_for_gradient(self, x0: Latents) -> Images:
        """What a reward's gradient at a predicted state is taken through: `decode`, or near it."""
        return self.decode_in_training(x0)

    def decode_in_training(self, x0: Latents) -> Images:
        """What makes the images that an update's rewards are of: `decode`, or near it.

        What is measured, shown and compared is made by `decode`.
        """
        return self.decode(x0)

    @abc.abstractmethod
    def forward(self, x: Latents, timestep: Tensor, condition: Condition) -> Latents:
        """The network's raw output, unguided: ``condition.negative`` is not looked at.

        Args:
            x: in the network's own units, see `nablaflow.diffusion.prediction.network_input`.
        """

    @abc.abstractmethod
    def allow_second_derivatives(self) -> None:
        """Use only operations in the policy that can be differentiated twice."""

    @abc.abstractmethod
    @contextmanager
    def reference(self) -> Iterator[None]:
        """Within this context `predict` is the pretrained model's."""

    def predict(self, x: Latents, k: Steps, condition: Condition) -> Prediction:
        """Guided prediction at x_k, in float32 or better; at k = 0 callers use ``x`` itself.

        The guided prediction is the only one there is: kernel, x0_hat and reference all use it.
        """
        alpha_bar = at(self.process.alpha_bar, k, x)
        given = network_input(x, alpha_bar, self.parameterization)
        output = self._guided_output(given, self.process.timestep.to(x.device)[k], condition)
        output = _at_least_float32(output)
        prediction = predict_from(output, x, alpha_bar, self.parameterization)
        return clip_x0(self.process, prediction)

    def sample(
        self,
        prompts: list[str],
        noise: Noise,
        *,
        condition: Condition | None = None,
        keep: Int[Tensor, "trajectory transition"] | None = None,
        keep_states: bool = False,
        predict: Predict | None = None,
        on_step: Callable[[int], None] | None = None,
    ) -> Trajectories:
        """Trajectories of the policy, or within `reference` of the pretrained model.

        `decode` makes images of their ``x0``.

        Args:
            prompts: one for each trajectory; texts of any kind for an unconditional model.
            noise: a generator for each trajectory, or one that draws for all of them at once.
            condition: of the prompts, where it is there already.
            keep: step indices of the transitions to keep, for each trajectory.
            keep_states: keep every state besides.
            predict: in place of `predict` for these prompts.
            on_step: told k after each step.
        """
        if predict is None:
            given = self.condition(prompts) if condition is None else condition
            predict = partial(self.predict, condition=given)
        return sample_trajectories(
            predict,
            self.process,
            self.state_shape,
            noise,
            self.device,
            keep,
            on_step,
            n=len(prompts),
            keep_states=keep_states,
        )

    def _guided_output(self, x: Latents, timestep: Tensor, condition: Condition) -> Latents:
        if self.guidance_scale == 1.0 or condition.negative is None:
            return self.forward(x, timestep, condition)
        both = self.forward(
            torch.cat([x, x]),
            torch.cat([timestep, timestep]),
            Condition.concatenate([condition.negative, replace(condition, negative=None)]),
        )
        # The difference of two near predictions, times the scale: not in half precision.
        negative, positive = _at_least_float32(both).chunk(2)
        return self.guided(negative, positive)

    def guided(self, negative: Latents, positive: Latents) -> Latents:
        """The guided output from the raw ones of both ends."""
        guided = negative + self.guidance_scale * (positive - negative)
        return rescaled(guided, positive, self.guidance_rescale)
