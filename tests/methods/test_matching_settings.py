"""Settings of value-gradient matching: what does not fit, and which estimator a name means."""

import pytest
import torch

from nablaflow.diffusion import ReverseProcess, build_process
from nablaflow.errors import UserError
from nablaflow.estimators import (
    Adjoint,
    ForwardLooking,
    ForwardLookingFlow,
    NStep,
    TemporalDifference,
    Terminal,
)
from nablaflow.methods import AdjointMatching, NablaTD, TerminalMatching
from nablaflow.methods.matching import Matching, ValueMatching
from tests.support.paths import bent_problem
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
    batch = bent.random_path([[5, 1], [2, 4]]).training_batch(estimator, bent.networks, 1.0)
    found, expected = (part.losses(batch, bent.networks).total for part in (named, method))
    assert torch.equal(found, expected)
