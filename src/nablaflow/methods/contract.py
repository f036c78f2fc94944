"""The contract of a method: a frozen record of settings whose `losses` is the whole objective."""

from __future__ import annotations

import abc
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from typing import Any, ClassVar, Literal

import torch
from jaxtyping import Bool, Float, Int
from pydantic import Field
from torch import Tensor

from nablaflow.diffusion import (
    Prediction,
    Transitions,
    ValueStep,
    draw_transitions,
    value_step,
)
from nablaflow.diffusion.process import ReverseProcess, at
from nablaflow.errors import UserError
from nablaflow.estimators import Estimator, Networks, TrainingBatch
from nablaflow.methods.groups import Scores, by_group
from nablaflow.methods.tilt_rule import TiltStrength
from nablaflow.models import Condition, FlowScore
from nablaflow.settings import Settings
from nablaflow.typing import Latents

CreditGroup = Literal["prompt", "batch"]
SamplerNoise = Literal["needed", "any", "none"]


@dataclass(frozen=True)
class Losses:
    """The objective on a batch.

    Attributes:
        terms: each part of the loss for each transition, weight included; the loss is their sum.
        metrics: further figures for each transition, for the log.
    """

    terms: dict[str, Float[Tensor, "batch"]]
    metrics: dict[str, Float[Tensor, "batch"]] = field(default_factory=dict)

    @property
    def total(self) -> Float[Tensor, "batch"]:
        return torch.stack(list(self.terms.values())).sum(0)

    def __getitem__(self, rows: Tensor) -> Losses:
        terms, metrics = (
            {name: value[rows] for name, value in part.items()}
            for part in (self.terms, self.metrics)
        )
        return Losses(terms, metrics)

    @staticmethod
    def concatenate(parts: Sequence[Losses]) -> Losses:
        """The rows of several losses of the same terms, one behind the other."""
        first = parts[0]
        return Losses(
            {name: torch.cat([part.terms[name] for part in parts]) for name in first.terms},
            {name: torch.cat([part.metrics[name] for part in parts]) for name in first.metrics},
        )


class Method(Settings, abc.ABC):
    """Settings of one objective. Subclasses are final and fit on a page.

    Attributes:
        needs_reward_gradient: whether the reward must be differentiable.
        needs_states: whether the losses read `TrainingBatch.states`.
        credit_group: whose trajectories are compared for `credits`: each prompt's by themselves, or
            all of the batch; None: there are no credits.
        needs_path_ratio: whether `credits` reads the trajectories' log ratio.
        one_transition: whether one of each trajectory is trained, whatever share is asked for.
        sampler_noise: what the method makes of the sampler's: most align kernels, which are none
            without noise; `any` learns from clean states alone; `none` controls the ODE.
    """

    name: ClassVar[str]
    needs_reward_gradient: ClassVar[bool]
    needs_states: ClassVar[bool] = False
    credit_group: ClassVar[CreditGroup | None] = None
    needs_path_ratio: ClassVar[bool] = False
    one_transition: ClassVar[bool] = False
    sampler_noise: ClassVar[SamplerNoise] = "needed"

    beta: TiltStrength = Field(
        description="the tilt: p* is p_ref exp(beta r); auto, {effective_share: …} or {nats: …} "
        "has the run find it from reference samples"
    )

    @abc.abstractmethod
    def losses(self, batch: TrainingBatch, networks: Networks) -> Losses:
        """The objective on a batch, differentiable by the policy's and the flow's parameters."""

    @property
    def aims_at_tilt(self) -> bool:
        """Whether it converges to the exact tilt, but for what its estimates miss."""
        return False

    @property
    def keeps_shape_beyond(self) -> bool:
        """Whether a strength above 1 leads on along the tilts, and not only to more reward."""
        return False

    def settled(self, *, calibrated: bool) -> Method:
        """With what it leaves to a run.

        Args:
            calibrated: whether the run finds the policy's strength at its end.
        """
        return self

    def settled_as(self, begun: Method) -> Method:
        """With what it leaves to a run as one that goes on was begun with it."""
        return self

    @property
    def uses_flow(self) -> bool:
        """Whether there is a use for a flow-score network."""
        return True

    def value_estimator(self) -> Estimator | None:
        """What finds `TrainingBatch.estimate` before the losses; None for methods without."""
        return None

    def value_step(self, process: ReverseProcess) -> ValueStep:
        """How value gradients move the kernels' means; for methods with an estimator."""
        return value_step("published", process)

    @property
    def states_its_target(self) -> bool:
        """Whether what is asked of a kernel is known to whoever has its `Networks`.

        Then the losses log ``asked_nats`` and ``unfollowed_nats``, see `nablaflow.evaluation.fit`.
        """
        return False

    @property
    def trains_at_any_state(self) -> bool:
        """Whether what is asked of a kernel is a function of its state alone.

        Then a state noised afresh is as good as one that the sampler passed.
        """
        return self.states_its_target

    @property
    def needs_log_flow(self) -> bool:
        """Whether `Networks.log_flow` has to be fitted before the first update."""
        return False

    @property
    def needs_measured_gamma(self) -> bool:
        """Whether `Networks.measured_gamma` has to be measured before the first update."""
        estimator = self.value_estimator()
        measured = getattr(self, "gamma", None) == "measured"
        return measured or (estimator is not None and estimator.needs_measured_gamma)

    def draw(
        self, trajectories: int, process: ReverseProcess, strata: int, generator: torch.Generator
    ) -> Int[Tensor, "trajectory transition"]:
        """Which transitions of a rollout are trained, found before it is made."""
        return draw_transitions(trajectories, process.steps, strata, generator)

    def fresh_levels(self, process: ReverseProcess) -> Bool[Tensor, "levels"] | None:
        """By k, whether transitions are trained with their x_k noised afresh from x_0."""
        return None

    def credits(
        self,
        scores: Float[Tensor, "trajectory"],
        prompts: list[str],
        log_ratio: Float[Tensor, "trajectory"] | None = None,
    ) -> Float[Tensor, "trajectory"] | None:
        """`TrainingBatch.credit` from the scores of the whole rollout; None for methods without.

        Args:
            log_ratio: see `nablaflow.estimators.path_log_ratio`; for methods that need it.
        """
        if self.credit_group is None:
            return None
        groups = prompts if self.credit_group == "prompt" else [""] * len(scores)
        return by_group(self.group_credits, groups, scores, log_ratio)

    @property
    def needs_group(self) -> bool:
        """Whether each prompt needs several images in an update."""
        return self.credit_group == "prompt"

    def group_credits(self, scores: Scores, log_ratio: Scores | None) -> Scores:
        """Credits of the trajectories of one group; for methods that have a `credit_group`."""
        raise NotImplementedError

    @property
    def needs_second_derivatives(self) -> bool:
        """Whether the loss holds a gradient of the policy with its graph."""
        return False

    def check(self, process: ReverseProcess, *, flow: bool, on_policy: bool) -> None:
        """Raise `UserError` where the settings do not fit the sampler or the loop.

        Args:
            flow: whether there is a flow-score network.
            on_policy: whether the policy that trains is the one that sampled.
        """

    def idle(self, *, flow: bool) -> Iterator[tuple[str, str]]:
        """Settings that others leave without any effect, and what would give them one."""
        yield from ()

    def old_policy_decay(self, update: int) -> float | None:
        """What the old policy keeps of itself after an update; None: there is no old policy.

        Where there is one it samples the rollouts, and `Networks.old_policy` predicts by it.

        Args:
            update: updates done, this one included.
        """
        return None

    def model_dump_named(self) -> dict[str, Any]:
        """The settings with the method's name, as a recipe has them."""
        return {"name": self.name, **self.model_dump(mode="json")}


class StepwiseMethod(Method, abc.ABC):
    """A method that trains on transitions drawn from all along each trajectory."""

    always_last: bool = Field(
        default=False,
        description="train the last transition of each trajectory besides the drawn ones",
    )

    def draw(
        self, trajectories: int, process: ReverseProcess, strata: int, generator: torch.Generator
    ) -> Int[Tensor, "trajectory transition"]:
        return draw_transitions(
            trajectories, process.steps, strata, generator, always_last=self.always_last
        )


def check_noise(method: Method, *, noisy: bool) -> None:
    """Raise `UserError` where the sampler adds noise and the method cannot have it, or needs it."""
    if method.sampler_noise == "needed" and not noisy:
        raise UserError(
            "sampler.name: euler adds no noise, so that there is no kernel to align; use ddim, or "
            "memoryless for flow matching, and sample the result by euler"
        )
    if method.sampler_noise == "none" and noisy:
        raise UserError(
            f"sampler.name: {method.name} controls the ODE, which has no noise; use euler"
        )


def mean_square(residual: Latents) -> Float[Tensor, "batch"]:
    """Mean over a state's values, for each row."""
    return residual.square().flatten(1).mean(1)


def norm(values: Latents) -> Float[Tensor, "batch"]:
    return values.detach().flatten(1).norm(dim=1)


def noise_prediction_change(prediction: Prediction, transitions: Transitions) -> Tensor:
    """Output regularisation: squared change of the noise prediction since the rollout."""
    return mean_square(prediction.epsilon - transitions.epsilon)


def flow_scores(
    flow: FlowScore, process: ReverseProcess, batch: TrainingBatch
) -> tuple[Latents, Latents]:
    """g_phi at x_k and at x_{k-1} in one forward pass; at x_0 what the network says, not 0."""
    transitions, condition = batch.transitions, batch.condition
    timestep = process.timestep.to(transitions.k.device)
    both = flow(
        torch.cat([transitions.x, transitions.x_next]),
        timestep[torch.cat([transitions.k, transitions.k - 1])],
        Condition.concatenate([condition, condition]),
    )
    here, following = both.chunk(2)
    return here, following


def check_output_regularization(weight: float, on_policy: bool) -> None:
    """On the samples of the policy itself the change is 0, and so is its gradient."""
    if weight > 0 and on_policy:
        raise UserError(
            "method.output_regularization: on-policy there is no last iterate to stay near; set "
            "training.data=previous-rollout, training.steps_per_rollout above 1, or "
            "method.output_regularization=0"
        )


def check_residuals(forward: float, reverse: float, policy_graph: bool) -> None:
    """Whether one of both residuals trains the policy.

    Args:
        forward: weight of the forward residual, and ``reverse`` of the reverse one.
        policy_graph: whether the reverse residual is to train the policy too.
    """
    if policy_graph and reverse == 0:
        raise UserError(
            "method.reverse_policy_graph: there is no reverse residual to train the policy by; set "
            "method.reverse_weight=1, or method.reverse_policy_graph=false"
        )
    if forward == 0 and not policy_graph:
        raise UserError(
            "method.forward_weight: without the forward residual nothing trains the policy; set "
            "method.forward_weight=1, or method.reverse_policy_graph=true and method.reverse_weight"
        )


def sigma_at(process: ReverseProcess, transitions: Transitions) -> Tensor:
    return at(process.sigma, transitions.k, transitions.x)
