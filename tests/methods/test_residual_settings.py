"""Settings of residual nabla-DB and nabla-DB by which nothing is trained, or nothing right."""

from typing import Any

import pytest
import torch

from nablaflow.errors import UserError
from nablaflow.methods import Method, NablaDB, Networks, ResidualNablaDB, TrainingBatch
from tests.support.bent import STEPS
from tests.support.paper import paper

BETA = 1.5
METHODS = [paper, NablaDB]


def test_settings_that_would_train_nothing_are_refused(networks: Networks) -> None:
    process = networks.model.process

    def check(flow: bool, on_policy: bool = True, **settings: Any) -> None:
        paper(beta=BETA, **settings).check(process, flow=flow, on_policy=on_policy)

    check(flow=True)
    check(flow=False, reverse_weight=0.0)
    check(flow=False, reverse_policy_graph=True)
    check(flow=True, reverse_weight=0.0, forward_flow="attached")
    check(flow=True, on_policy=False, output_regularization=1.0)
    with pytest.raises(UserError, match=r"method\.reverse_weight: without a flow network"):
        check(flow=False)
    assert not paper(beta=BETA, reverse_weight=0.0).uses_flow  # nothing would train it
    with pytest.raises(UserError, match=r"method\.output_regularization: on-policy"):
        check(flow=True, output_regularization=1.0)


@pytest.mark.parametrize(
    ("settings", "counts"),
    [
        ({"step": "exact", "reverse_weight": 0.0}, False),
        ({"reverse_weight": 1.0, "forward_weight": 0.0, "reverse_policy_graph": True}, False),
        ({"reverse_weight": 0.0}, True),
        ({"reverse_weight": 1.0}, True),
    ],
)
def test_a_gamma_of_0_is_refused_where_the_loss_then_has_no_reward_in_it(
    settings: dict[str, Any], counts: bool, networks: Networks, batch: TrainingBatch
) -> None:
    for gamma in (0.0, [1.0, *[0.0] * STEPS]):
        methods = [paper(beta=beta, gamma=gamma, **settings) for beta in (0.0, BETA)]
        without, with_reward = (method.losses(batch, networks).total for method in methods)
        assert torch.equal(without, with_reward) != counts
        if counts:
            methods[1].check(networks.model.process, flow=True, on_policy=True)
            continue
        with pytest.raises(UserError, match=r"^method\.gamma: 0 at every step"):
            methods[1].check(networks.model.process, flow=True, on_policy=True)


@pytest.mark.parametrize(
    ("settings", "name"),
    [
        ({"reverse_weight": 1.0}, "reverse_weight"),
        ({"reverse_weight": 0.0, "forward_flow": "attached"}, "forward_flow"),
        ({"reverse_weight": 1.0, "reverse_policy_graph": True}, "reverse_weight"),
    ],
)
def test_by_the_exact_step_a_flow_network_is_refused(
    settings: dict[str, Any], name: str, networks: Networks
) -> None:
    """Its reverse condition makes grad V_k (c_k / sigma_k^2) J^T grad V_k: only 0 fits."""
    method = ResidualNablaDB(beta=BETA, **settings)
    with pytest.raises(UserError, match=rf"^method\.{name}: .*method\.step=published"):
        method.check(networks.model.process, flow=True, on_policy=True)
    published = method.model_copy(update={"step": "published"})
    published.check(networks.model.process, flow=True, on_policy=True)


@pytest.mark.parametrize("kind", METHODS)
def test_weights_that_leave_the_policy_untrained_are_refused(
    kind: type[Method], networks: Networks
) -> None:
    process = networks.model.process

    def check(**settings: Any) -> None:
        kind(beta=BETA, **settings).check(process, flow=True, on_policy=True)

    check(forward_weight=0.0, reverse_weight=1.0, reverse_policy_graph=True)
    for reverse in (0.0, 1.0):
        with pytest.raises(UserError, match=r"method\.forward_weight: without .* nothing trains"):
            check(forward_weight=0.0, reverse_weight=reverse)
    with pytest.raises(UserError, match=r"method\.reverse_policy_graph: there is no reverse"):
        check(reverse_weight=0.0, reverse_policy_graph=True)


@pytest.mark.parametrize("kind", METHODS)
def test_a_negative_tilt_and_an_unknown_setting_are_refused(kind: type[Method]) -> None:
    with pytest.raises(UserError, match="beta"):
        kind(beta=-0.1)
    with pytest.raises(UserError, match="gama"):
        kind(beta=1.0, gama="one")
