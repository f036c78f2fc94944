"""Trajectories as estimators see them, batches of their transitions, and value gradients there."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from itertools import accumulate

import torch
from jaxtyping import Float, Int
from torch import Tensor

from nablaflow.diffusion import Transitions
from nablaflow.models import Condition
from nablaflow.typing import Batch, Latents, Steps


@dataclass(frozen=True)
class ValueGradients:
    """Estimates at a flat batch of transitions, detached.

    Attributes:
        target: of grad V at the states that `Path.state` names: what the shift of the kernel's mean
            over `ValueStep.scale` should be.
        flow: of what g_phi(x_k, k) should be, where the estimator trains the flow network.
    """

    target: Latents
    flow: Latents | None = None

    def __getitem__(self, index: slice | Tensor) -> ValueGradients:
        flow = None if self.flow is None else self.flow[index]
        return ValueGradients(self.target[index], flow)

    @staticmethod
    def concatenate(parts: Sequence[ValueGradients]) -> ValueGradients:
        flows = [part.flow for part in parts if part.flow is not None]
        target = torch.cat([part.target for part in parts])
        return ValueGradients(target, torch.cat(flows) if flows else None)


@dataclass(frozen=True)
class TrainingBatch:
    """A flat batch of transitions with what each one is conditioned on.

    Attributes:
        conditions: one row for each trajectory that the transitions count; embeddings are large,
            so those of a transition are copied when it is trained.
        prompts: the prompt of each transition's own trajectory.
        estimate: value gradients that were found along whole trajectories, for methods with an
            estimator.
        credit: what each transition's own trajectory is worth, for methods that weigh by it.
        states: x_k by k of each transition's own trajectory, for methods that replay it.
        levels: as in `Path`.
        x0: the clean state of each transition's own trajectory.
    """

    transitions: Transitions
    conditions: Condition
    prompts: list[str]
    estimate: ValueGradients | None = None
    credit: Float[Tensor, "batch"] | None = None
    states: Float[Tensor, "levels batch channel h w"] | None = None
    levels: Int[Tensor, "levels"] | None = None
    x0: Latents | None = None

    def __len__(self) -> int:
        return len(self.transitions)

    @property
    def condition(self) -> Condition:
        """That of each transition's own trajectory."""
        return self.conditions[self.transitions.trajectory]

    @property
    def level(self) -> Steps:
        """Of `state`."""
        return level_at(self.transitions, self.levels)

    @property
    def state(self) -> Latents:
        """The states at which value gradients are estimated: x_k or x_{k-1}, see `ValueStep`."""
        return state_at(self.transitions, self.levels)

    def split(self, parts: int) -> list[TrainingBatch]:
        """The trajectories dealt out to ``parts`` batches, each with all its transitions."""
        if parts == 1:
            return [self]
        turn = self.transitions.trajectory % parts
        return [self[(turn == part).nonzero()[:, 0]] for part in range(parts)]

    def __getitem__(self, rows: slice | Tensor) -> TrainingBatch:
        index = range(len(self))[rows] if isinstance(rows, slice) else rows.tolist()
        return TrainingBatch(
            self.transitions[rows],
            self.conditions,
            [self.prompts[row] for row in index],
            None if self.estimate is None else self.estimate[rows],
            None if self.credit is None else self.credit[rows],
            None if self.states is None else self.states[:, rows],
            self.levels,
            None if self.x0 is None else self.x0[rows],
        )


@dataclass(frozen=True)
class Path:
    """Some trajectories, as an estimator sees them.

    Attributes:
        x0: clean states, one for each trajectory.
        states: x_k by k, for estimators that need them.
        condition: one row for each trajectory, as are ``prompts``.
        transitions: those that are trained; ``trajectory`` counts the rows here.
        log_prob: see `nablaflow.diffusion.Trajectories`.
        levels: `ValueStep.level` of the rule that the kernels follow; None: the published one's.
    """

    x0: Latents
    states: Float[Tensor, "levels batch channel h w"] | None
    condition: Condition
    prompts: list[str]
    transitions: Transitions
    log_prob: Batch | None = None
    levels: Int[Tensor, "levels"] | None = None

    def __len__(self) -> int:
        return len(self.x0)

    @property
    def level(self) -> Steps:
        """Of the state whose value gradient each transition needs."""
        return level_at(self.transitions, self.levels)

    def batch(
        self, credits: Float[Tensor, "trajectory"] | None = None, *, with_states: bool = False
    ) -> TrainingBatch:
        """The transitions with the condition and the prompt of each one's own trajectory.

        Args:
            credits: of each trajectory.
            with_states: whether all its states come along too.
        """
        rows = self.transitions.trajectory
        assert self.states is not None or not with_states
        return TrainingBatch(
            self.transitions,
            self.condition,
            [self.prompts[row] for row in rows.tolist()],
            credit=None if credits is None else credits.to(rows.device)[rows],
            states=self.states[:, rows] if with_states and self.states is not None else None,
            levels=self.levels,
            x0=self.x0[rows],
        )

    def parts(self) -> Iterator[TrainingBatch]:
        """The same, as many at once as there are trajectories, so that memory is bounded."""
        whole = self.batch()
        for start in range(0, len(whole), max(1, len(self))):
            yield whole[start : start + len(self)]

    def pieces(self, size: int | None) -> Iterator[Path]:
        """The same trajectories with their transitions, ``size`` at a time; None: all at once."""
        size = size or len(self)
        for start in range(0, len(self), size):
            yield self.piece(start, min(start + size, len(self)))

    def piece(self, start: int, stop: int) -> Path:
        """Trajectories ``start`` to ``stop`` with their transitions."""
        rows, owner = slice(start, stop), self.transitions.trajectory
        own = self.transitions[((owner >= start) & (owner < stop)).nonzero()[:, 0]]
        return Path(
            x0=self.x0[rows],
            states=None if self.states is None else self.states[:, rows],
            condition=self.condition[rows],
            prompts=self.prompts[rows],
            transitions=replace(own, trajectory=own.trajectory - start),
            log_prob=None if self.log_prob is None else self.log_prob[rows],
            levels=self.levels,
        )

    @staticmethod
    def concatenate(parts: Sequence[Path]) -> Path:
        """The trajectories of several, of the same levels, one part behind the other."""
        starts = accumulate((len(part) for part in parts), initial=0)
        states = [part.states for part in parts if part.states is not None]
        densities = [part.log_prob for part in parts if part.log_prob is not None]
        return Path(
            x0=torch.cat([part.x0 for part in parts]),
            states=torch.cat(states, dim=1) if states else None,
            condition=Condition.concatenate([part.condition for part in parts]),
            prompts=[prompt for part in parts for prompt in part.prompts],
            transitions=Transitions.concatenate(
                [
                    replace(part.transitions, trajectory=part.transitions.trajectory + start)
                    for part, start in zip(parts, starts, strict=False)
                ]
            ),
            log_prob=torch.cat(densities) if densities else None,
            levels=parts[0].levels,
        )

    def states_at(self, rows: Tensor, k: Steps) -> Latents:
        """x_k of the trajectories ``rows``, a k for each."""
        assert self.states is not None
        return self.states[k, rows]


def level_at(transitions: Transitions, levels: Int[Tensor, "levels"] | None) -> Steps:
    """The level of the state whose value gradient each transition needs."""
    k = transitions.k
    return k - 1 if levels is None else levels.to(k.device)[k]


def state_at(transitions: Transitions, levels: Int[Tensor, "levels"] | None) -> Latents:
    """The states of these levels."""
    here = level_at(transitions, levels) == transitions.k
    return torch.where(
        here.reshape(-1, *[1] * (transitions.x.ndim - 1)), transitions.x, transitions.x_next
    )
