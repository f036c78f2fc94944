"""Settings of value-gradient matching: what does not fit, and which estimator a name means."""

from dataclasses import replace

import pytest
import torch

from nablaflow.diffusion import ReverseProcess, build_process
from nablaflow.errors import UserError
from nablaflow.estimators import (
    Adjoint,
    DenoisingAdjoint,
    Estimator,
    ForwardLooking,
    ForwardLookingFlow,
    NStep,
    TemporalDifference,
    Terminal,
)
from nablaflow.methods import AdjointMatching, NablaTD, PathWeightedMatching, TerminalMatching
from nablaflow.methods.matching import Matching, ValueMatching
from tests.support.paths import bent_problem, training_batch
from tests.support.schedules import STABLE_DIFFUSION


@pytest.fixture
def process() -> ReverseProcess:
    return build_process(STABLE_DIFFUSION, "ddim", 6, 1.0, sigma_floor=0.01)


METHODS: list[Matching] = [
    AdjointMatching(beta=1.0),
    NablaTD(beta=1.0),
    TerminalMatching(beta=1.0),
    ValueMatching(beta=1.0, estimator=ForwardLooking()),
    ValueMatching(beta=1.0, estimator=ForwardLookingFlow()),
    ValueMatching(beta=1.0, estimator=NStep()),
]


@pytest.mark.parametrize("method", METHODS, ids=repr)
def test_output_regularization_is_refused_on_policy(
    method: Matching, process: ReverseProcess
) -> None:
    changed = method.model_copy(update={"output_regularization": 0.1})
    with pytest.raises(UserError, match=r"^method\.output_regularization: [^\n]*$"):
        changed.check(process, flow=True, on_policy=True)
    changed.check(process, flow=True, on_policy=False)
    method.check(process, flow=True, on_policy=True)


@pytest.mark.parametrize("method", METHODS, ids=repr)
def test_a_flow_network_that_is_missing_is_refused_in_one_line(
    method: Matching, process: ReverseProcess
) -> None:
    assert method.uses_flow == method.value_estimator().uses_flow
    if not method.uses_flow:
        method.check(process, flow=False, on_policy=True)
        return
    with pytest.raises(UserError, match=rf"^flow: {method.name} [^\n]*$"):
        method.check(process, flow=False, on_policy=True)


def test_a_gamma_that_does_not_fit_the_sampler_is_refused(process: ReverseProcess) -> None:
    method = NablaTD(beta=1.0, gamma=[1.0, 0.5])
    with pytest.raises(UserError, match=r"^method\.gamma: 2 values for 7 levels[^\n]*$"):
        method.check(process, flow=True, on_policy=True)


@pytest.mark.parametrize(
    ("method", "estimator"),
    [
        (AdjointMatching(beta=1.0, stride=3), Adjoint(stride=3)),
        (
            NablaTD(beta=1.0, td_lambda=0.3, gamma="one"),
            TemporalDifference(td_lambda=0.3, gamma="one"),
        ),
        (TerminalMatching(beta=1.0, scale="sigma"), Terminal(scale="sigma")),
    ],
    ids=lambda part: part.name,
)
def test_named_methods_are_value_matching_with_an_estimator(
    method: Matching, estimator: Adjoint
) -> None:
    assert method.value_estimator() == estimator
    named = ValueMatching.model_validate({"beta": 1.0, "estimator": estimator.model_dump()})
    assert named.value_estimator() == estimator
    bent = bent_problem()
    batch = training_batch(bent.random_path([[5, 1], [2, 4]]), estimator, bent.networks, 1.0)
    found, expected = (part.losses(batch, bent.networks).total for part in (named, method))
    assert torch.equal(found, expected)


@pytest.mark.parametrize(
    ("estimator", "step", "setting"),
    [
        (ForwardLooking(gamma=0.0), "exact", "gamma"),
        (ForwardLooking(gamma=0.0), "published", None),
        (ForwardLooking(gamma=[1.0, 0.0, 0.0, 0.0, 0.0, 0.5]), "exact", None),
        (ForwardLookingFlow(gamma=0.0), "published", None),
        (TemporalDifference(gamma=0.0, td_lambda=0.0), "exact", None),
        (NStep(gamma=0.0), "exact", None),
        (DenoisingAdjoint(adjoint_above=1.0), "published", "adjoint_above"),
        (DenoisingAdjoint(adjoint_above=1.0), "exact", "adjoint_above"),
        (DenoisingAdjoint(), "exact", None),
    ],
    ids=repr,
)
def test_estimates_without_the_reward_are_refused(
    estimator: Estimator, step: str, setting: str | None
) -> None:
    bent = bent_problem()
    process = bent.networks.model.process
    path = bent.random_path([list(range(1, process.steps + 1))] * 2)
    method = ValueMatching(beta=1.0, estimator=estimator, step=step)  # pyright: ignore
    path = replace(path, levels=method.value_step(process).level)
    parts = [estimator.estimate(path, bent.networks, beta) for beta in (0.0, 1.0)]
    without, with_reward = (
        torch.cat([part.target, part.target if part.flow is None else part.flow]) for part in parts
    )
    assert torch.equal(without, with_reward) == (setting is not None)
    if setting is None:
        method.check(process, flow=True, on_policy=True)
        return
    with pytest.raises(UserError, match=rf"^method\.estimator\.{setting}: [^\n]* set method\.est"):
        method.check(process, flow=True, on_policy=True)


def test_weights_have_the_reward_where_no_estimate_has_it(process: ReverseProcess) -> None:
    method = PathWeightedMatching(beta=1.0, adjoint_above=1.0)
    method.check(process, flow=False, on_policy=True)
    alike = method.model_copy(update={"effective_share": 1.0})
    (named,) = (
        word for word in refused(alike, process).split() if word.startswith("method.adjoint_above=")
    )
    mended = alike.model_copy(update={"adjoint_above": float(named.partition("=")[2])})
    mended.check(process, flow=False, on_policy=True)


def refused(method: Matching, process: ReverseProcess) -> str:
    with pytest.raises(UserError) as caught:
        method.check(process, flow=False, on_policy=True)
    return str(caught.value)


def test_a_flow_network_that_learns_from_the_kernels_is_refused_by_the_exact_step(
    process: ReverseProcess,
) -> None:
    """Its target is grad V_k where the kernels are moved by sigma_k^2 grad V_{k-1} alone."""
    method = ValueMatching(beta=1.0, estimator=ForwardLookingFlow(), step="exact")
    with pytest.raises(UserError, match=r"^method\.step: .*set method\.step=published"):
        method.check(process, flow=True, on_policy=True)
    ValueMatching(beta=1.0, estimator=ForwardLookingFlow()).check(
        process, flow=True, on_policy=True
    )
