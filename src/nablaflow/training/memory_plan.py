"""What memory an update takes, found by carrying its parts out on shapes alone.

Each stage of an update runs on a twin of the model without data (`nablaflow.shapes`), for one row
and for two: its peak grows by the same bytes for each further row. So the plan follows the code,
whatever the method, the adapter or the family, and costs seconds, not memory. Weights and what
trains of them are counted (`nablaflow.training.held`).
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any, final

import torch
from jaxtyping import Int
from torch import Tensor

from nablaflow.config.recipe import Config
from nablaflow.diffusion import Transitions
from nablaflow.estimators import LogFlowFit, Networks, Path, TrainingBatch
from nablaflow.methods import Method
from nablaflow.methods.contract import StepwiseMethod
from nablaflow.models import FlowScore, make_log_flow
from nablaflow.models.pipelines import PipelineModel
from nablaflow.models.raised import computing_in_float32
from nablaflow.models.twin import network_without_data, without_data
from nablaflow.rewards import NamedReward
from nablaflow.shapes import META, Shapes
from nablaflow.training.fit_memory import fit_takes
from nablaflow.training.held import (
    FLOAT,
    encoders_held,
    resting_encoders,
    stocks_own,
    trained_held,
    weights_held,
)
from nablaflow.training.update import Update
from nablaflow.typing import Batch, Images, Latents

GIB = 2**30


@dataclass(frozen=True)
class Line:
    """Bytes by the number of rows that a stage works on at once."""

    base: int
    each: int

    def at(self, rows: int) -> int:
        return self.base + rows * self.each

    def rows_in(self, room: float) -> int:
        """The most rows in so many bytes; 0 if none."""
        return max(0, int((room - self.base) // max(1, self.each)))


@dataclass(frozen=True)
class Needs:
    """What a run holds all the time, and what each stage of an update takes besides.

    Attributes:
        weights: of all networks that are kept where training runs.
        trained: parameters that train, AdamW's two moments, averages.
        kept: of a rollout, for each of its trajectories.
        rollout: a step of the sampler, by trajectories; ``decode``: their images and rewards.
        estimate: value gradients, by trajectories; None for methods that have no estimator.
        loss: losses and gradients, by transitions.
        rehearsal: before the first update, where resting encoders are at work for a while.
        fit: then, of a value to the reference; None where there is none.
        encoders: of the text encoders, by name; ``rest``: whether they are not in ``weights``.
        saved: for backward, by part, for one transition.
        rewarded: whether the reward's own is in ``decode``, ``estimate`` and ``loss``.
    """

    weights: int
    trained: int
    kept: int
    rollout: Line
    decode: Line
    estimate: Line | None
    loss: Line
    rehearsal: int
    fit: int | None
    encoders: dict[str, int]
    rest: bool
    saved: dict[str, int]
    rewarded: bool


def needs_of(
    config: Config,
    model: PipelineModel,
    reward: NamedReward,
    flow: FlowScore | None,
    decode_batch: int | None,
    device: torch.device,
    shares: int = 1,
) -> Needs:
    """The needs of a configuration, by its parts as they would train.

    Args:
        decode_batch: images at once through the decoder under a reward's gradient; None: all.
        device: whose memory it is; encoders that rest on the CPU are in a CPU's.
        shares: processes that divide what trains among them (FSDP2).
    """
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)  # a layer that draws does so here, not in the run
        return _Rehearsal(config, model, reward, flow, decode_batch, device, shares).needs()


@final
class _Rehearsal:
    """An update's stages on the twin of a model."""

    def __init__(
        self,
        config: Config,
        model: PipelineModel,
        reward: NamedReward,
        flow: FlowScore | None,
        decode_batch: int | None,
        device: torch.device,
        shares: int,
    ) -> None:
        self.config, self.flow, self.shares = config, flow, shares
        self.model = without_data(model)
        method = config.method
        method = method if isinstance(method.beta, int | float) else _with_some_beta(method)
        self.method = method
        self.reward, self.rewarded = reward, self._reads_shapes(reward)
        self._resting = resting_encoders(config, self.model, device)
        self.decode_batch = decode_batch
        with Shapes() as shapes:
            self.model.condition(["a"])  # embedded once, and kept
        self._embedding = shapes.peak
        self.core = Update(method, self._networks())

    def _networks(self) -> Networks:
        reward = self.reward if self.rewarded else NamedReward(self.reward.name, _mean)
        flow, target = (
            None if self.flow is None else network_without_data(self.flow) for _ in range(2)
        )
        steps, fit = self.model.process.steps, None
        if self.method.needs_log_flow:
            with Shapes():  # its size is told by a pass of the denoiser
                fit = LogFlowFit.unfitted(make_log_flow(self.model, 0), steps)
        gamma, decode = torch.ones(steps + 1), self.decode_batch
        return Networks(self.model, reward, flow, target, gamma, decode_batch=decode, log_flow=fit)

    def _reads_shapes(self, reward: NamedReward) -> bool:
        """Whether a reward runs on shapes; one that leaves torch does not."""
        try:
            with Shapes():
                images = torch.zeros(1, 3, *self.model.image_size, device=META, requires_grad=True)
                reward(images, ["a"]).sum().backward()
        except Exception:  # whatever a user's function does with what has no data
            return False
        return True

    def needs(self) -> Needs:
        config, model, flow, estimator = self.config, self.model, self.flow, self.core.estimator
        old_policy = self.core.networks.old_policy is not None
        return Needs(
            weights=weights_held(model, flow, self._resting),
            trained=trained_held(config, model, flow, self.shares, old_policy=old_policy),
            kept=self._kept(),
            rollout=_line(self._predict),
            decode=_line(self._decode),
            estimate=None if estimator is None else _line(self._estimate),
            loss=_line(self._loss),
            rehearsal=self._rehearsal(),
            fit=self._fit(),
            encoders=encoders_held(model),
            rest=bool(self._resting),
            saved=self._saved(),
            rewarded=self.rewarded,
        )

    # --- what is kept of a rollout ----------------------------------------------------------------

    def _kept(self) -> int:
        """x_0 and what it is conditioned on, and four tensors of each transition.

        Every state where a method or its estimator reads them, for each transition of a method.
        """
        states, trained = self.model.process.steps + 1, self._draw(1).shape[1]
        held = states * self.core.keeps_states + states * trained * self.method.needs_states
        # A batch has the x_0 of each transition's own trajectory besides.
        rows = FLOAT * math.prod(self.model.state_shape) * (1 + 5 * trained + held)
        return rows + self.model.condition(["a"]).bytes()

    def _draw(self, n: int) -> Int[Tensor, "trajectory transition"]:
        generator = torch.Generator().manual_seed(0)
        return self.method.draw(n, self.model.process, self.config.strata, generator)

    # --- what is done -----------------------------------------------------------------------------

    def _empty(self, rows: int) -> Tensor:
        return torch.zeros(rows, *self.model.state_shape, device=META)

    def _path(self, n: int) -> Path:
        """Trajectories of the rollout, at the steps that cost the most."""
        keep = self._draw(n)
        k = keep.flatten()
        if isinstance(self.method, StepwiseMethod):
            k = torch.full_like(k, max(2, self.model.process.steps // 2))
        rows, owner = len(k), torch.arange(n).repeat_interleave(keep.shape[1])
        x, x_next, epsilon, mean = (self._empty(rows) for _ in range(4))
        levels = self.model.process.steps + 1
        states = torch.zeros(levels, n, *self.model.state_shape, device=META)
        return Path(
            x0=self._empty(n),
            states=states if self.core.keeps_states else None,
            condition=self.model.condition(["a"] * n),
            prompts=["a"] * n,
            transitions=Transitions(x, x_next, k, epsilon, owner, mean),
            log_prob=torch.zeros(n, device=META),
            levels=self.method.value_step(self.model.process).level,
        )

    @contextmanager
    def _counting(self) -> Iterator[Shapes]:
        self.core.objective.zero_grad(set_to_none=True)
        with Shapes() as shapes:
            yield shapes

    @torch.no_grad()
    def _predict(self, n: int) -> int:
        with self._counting() as shapes:
            k = torch.full((n,), self.model.process.steps)
            self.model.predict(self._empty(n), k, self.model.condition(["a"] * n))
        return shapes.peak

    def _rehearsal(self) -> int:
        """An image by a stock pipeline's call, in float32 (`nablaflow.models.same_image`)."""
        encoders = sum(encoders_held(self.model).values()) if self._resting else 0
        with computing_in_float32(self.model.network):
            drawn = self._predict(1)
        stages = encoders + self._embedding, drawn, self._decode(1, self.model.decode)
        return stocks_own(self.model) + max(stages)

    def _fit(self) -> int | None:
        fit, samples = self.core.networks.log_flow, self.config.training.value_samples
        return None if fit is None else fit_takes(self.model, fit.network, samples)

    @torch.no_grad()
    def _decode(self, n: int, decode: Callable[[Latents], Images] | None = None) -> int:
        decode = decode or self.model.decode_in_training
        with self._counting() as shapes:
            self.core.networks.reward(decode(self._empty(n)), ["a"] * n)
        return shapes.peak

    def _estimate(self, n: int) -> int:
        with self._counting() as shapes:
            self.core.estimates(self._path(n))
        return shapes.peak

    def _batch(self, rows: int) -> TrainingBatch:
        path = self._path(rows)
        credits = torch.ones(rows) if self.method.credit_group is not None else None
        batch = path.batch(credits, with_states=self.method.needs_states)
        if self.core.estimator is not None:
            estimate = self.core.estimates(path)
            batch = TrainingBatch(**{**vars(batch), "estimate": estimate})
        return batch[:rows]

    def _loss(self, rows: int) -> int:
        with self._counting() as shapes:
            batch = self._batch(rows)
            shapes.peak = shapes.now  # the estimates are a stage of their own
            loss, _ = self.core.objective(batch)
            loss.backward()
        return shapes.peak

    def _saved(self) -> dict[str, int]:
        """For backward by each network, one transition."""
        k = torch.full((1,), max(2, self.model.process.steps // 2))

        def held(work: Callable[[], Any]) -> int:
            with self._counting() as shapes:
                result = work()
                held = shapes.now
                del result
            return held

        def predicted() -> Any:
            condition = self.model.condition(["a"])
            return self.model.predict(self._empty(1).requires_grad_(), k, condition)

        def of_reference() -> Any:
            with self.model.reference():
                return predicted()

        return {
            "reference": held(of_reference),
            "policy": held(predicted),
            "decoder": held(
                lambda: self.model.decode_for_gradient(self._empty(1).requires_grad_())
            ),
        }


def _mean(images: Images, prompts: list[str]) -> Batch:
    return images.flatten(1).mean(1)


def _with_some_beta(method: Method) -> Method:
    """Where the run has yet to find it: no memory depends on it."""
    return method.model_copy(update={"beta": 1.0})


def _line(work: Callable[[int], int]) -> Line:
    one, two = work(1), work(2)
    return Line(one - (two - one), two - one)
