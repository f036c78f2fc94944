"""A method and its estimator as settings: by name, by mapping, as themselves."""

from typing import Any

import pytest
import yaml

from nablaflow.config.overrides import dump_config, load_config
from nablaflow.estimators import NStep, TemporalDifference
from nablaflow.methods import METHODS, AdjointMatching, Losses, Method, ValueMatching
from nablaflow.settings import named_kinds
from tests.support.recipes import Second, load, refusal

pytestmark = pytest.mark.usefixtures("two_methods")


def test_a_method_by_name_by_mapping_and_as_itself():
    assert load("method=second").method == Second(beta=2.0)
    assert load(method={"name": "second", "beta": 1, "clip": 2.0}).method == Second(beta=1, clip=2)
    assert load(method=Second(beta=3)).method == Second(beta=3)
    assert load("method.beta=4", method=Second(beta=3)).method == Second(beta=4)


def test_another_method_keeps_the_settings_it_shares():
    method = {"name": "first", "beta": 7.0, "flow_weight": 2.0}
    assert load("method.name=second", method=method).method == Second(beta=7.0)
    assert load("method.clip=1", "method.name=second", method=method).method.clip == 1.0


def test_a_setting_of_another_method_is_named():
    line = "method.flow_weight: a setting of first, not of second; leave it out or set"
    assert refusal("method.flow_weight=1", "method.name=second").startswith(line)
    assert refusal("method.name=second", "method.flow_weight=1").startswith(line)


@pytest.mark.parametrize(
    ("override", "line"),
    [
        ("method.name=frist", "method.name: no method 'frist'; did you mean first?"),
        ("method.gama=one", "method.gama: unknown key for first; did you mean gamma?"),
        ("method.gamma=alpha", "method.gamma: 'alpha' is not a choice; did you mean alpha_bar?"),
        ("method.beta=-1", "method.beta: must be greater than or equal to 0, not -1"),
        ("method.beta=much", "method.beta: must be a valid number"),
        ("method=[1]", "method.name: missing; choose one of first, second"),
    ],
)
def test_a_wrong_method_is_one_line(override, line):
    assert refusal(override).startswith(line)


def test_a_method_that_is_not_registered_is_refused():
    class Third(Method):
        needs_reward_gradient = False

        def losses(self, batch: Any, networks: Any) -> Losses:
            return Losses({})

    assert "Third has no name" in refusal(method=Third(beta=1.0))


# --- estimators -----------------------------------------------------------------------------------


@pytest.fixture
def _all_methods(monkeypatch):
    monkeypatch.setattr("nablaflow.methods.METHODS", METHODS)


N_STEP = {"name": "value-matching", "beta": 1.0, "estimator": {"name": "n-step", "n": 3}}


@pytest.mark.usefixtures("_all_methods")
@pytest.mark.parametrize(
    "overrides",
    [
        ["method={name: value-matching, beta: 1, estimator: {name: n-step, n: 3}}"],
        ["method=value-matching", "method.estimator.name=n-step", "method.estimator.n=3"],
        ["method.estimator.n=3", "method.estimator.name=n-step", "method.name=value-matching"],
        ["method=value-matching", "method.estimator=n-step", "method.estimator.n=3"],
        ["method=value-matching", "method.estimator={name: n-step, n: 3}"],
    ],
)
def test_an_estimator_by_name_and_by_mapping(overrides):
    method = load(*overrides, "method.beta=1").method
    assert method == ValueMatching(beta=1.0, estimator=NStep(n=3))


@pytest.mark.usefixtures("_all_methods")
@pytest.mark.parametrize("estimator", [N_STEP["estimator"], NStep(n=3)], ids=["mapping", "itself"])
def test_another_estimator_keeps_the_settings_it_shares(estimator):
    method = {**N_STEP, "estimator": estimator}
    assert load(method=method).method.estimator == NStep(n=3)
    assert load("method.estimator.n=7", method=method).method.estimator == NStep(n=7)
    method["estimator"] = {**N_STEP["estimator"], "gamma": "one"}
    other = load("method.estimator.name=nabla-td", method=method).method
    assert other == ValueMatching(beta=1.0, estimator=TemporalDifference(gamma="one"))
    assert load("method=adjoint-matching", method=method).method == AdjointMatching(beta=1.0)


@pytest.mark.usefixtures("_all_methods")
@pytest.mark.parametrize("estimator", named_kinds(ValueMatching, "estimator"))
def test_a_saved_estimator_reads_back_equal(estimator, tmp_path):
    config = load(method={**N_STEP, "estimator": estimator})
    saved = tmp_path / "config.yaml"
    saved.write_text(dump_config(config), encoding="utf-8")
    assert load_config(saved, [], {}) == config
    assert yaml.safe_load(saved.read_text())["method"]["estimator"]["name"] == estimator


@pytest.mark.usefixtures("_all_methods")
@pytest.mark.parametrize(
    ("override", "line"),
    [
        ("method.estimator.name=n-stp", "method.estimator.name: no estimator 'n-stp'; did you mea"),
        ("method.estimator=null", "method.estimator.name: missing; choose one of adjoint, "),
        ("method.estimator=[n-step]", "method.estimator.name: missing; choose one of adjoint, "),
        ("method.estimator.m=1", "method.estimator.m: unknown key for n-step; "),
        (
            "method.estimator.gama=one",
            "method.estimator.gama: unknown key for n-step; did you mean",
        ),
        ("method.estimator.stride=2", "method.estimator.stride: a setting of adjoint, not of n-st"),
        ("method.estimator.n=x", "method.estimator.n: must be a valid integer, not 'x'"),
        ("method.estimator.n=-1", "method.estimator.n: must be greater than or equal to 0, not -1"),
        ("method.estimator.n.x=1", "method.estimator.n: must be a valid integer, not {'x': 1}"),
        ("method.estimator.n=.inf", "method.estimator.n: must be a finite number, not inf"),
        ("method.estimator.gamma=on", "method.estimator.gamma: 'on' is not a choice; did you mea"),
        ("method.estmator=adjoint", "method.estmator: unknown key for value-matching; did you mea"),
        ("method.n=1", "method.n: unknown key for value-matching; "),
        ("td_lambda=1", "td_lambda: unknown key; did you mean method.td_lambda?"),
        ("n=1", "n: unknown key; did you mean method.estimator.n?"),
    ],
)
def test_a_wrong_estimator_is_one_line(override, line):
    assert refusal(override, method=N_STEP).startswith(line)


@pytest.mark.usefixtures("_all_methods")
def test_a_method_without_use_for_a_flow_network_has_none(tmp_path):
    shared = {"channels": [8, 16]}
    for method, there in (("terminal", False), ("adjoint-matching", False), ("nabla-td", True)):
        config = load(f"method={method}", flow=shared)
        assert (config.flow is not None) == there
        saved = tmp_path / f"{method}.yaml"
        saved.write_text(dump_config(config), encoding="utf-8")
        assert load_config(saved, [], {}) == config
        assert (load(f"method={method}").flow is not None) == there, "with the defaults"
    estimator = "method={name: value-matching, beta: 1, estimator: adjoint}"
    assert load(estimator, flow=shared).flow is None
    assert load("method=terminal", "flow=null").flow is None
    line = "flow.channels: terminal has no use for a flow network; leave it out"
    assert refusal("flow.channels=[8]", "method=terminal") == line
    mistake = refusal("method=terminal", flow={"chanels": [8]})
    assert mistake.startswith("flow.chanels: unknown key; did you mean channels?")
