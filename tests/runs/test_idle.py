"""A setting that is given and that another one switches off is refused, and no default ever is."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

import nablaflow as nf
from nablaflow.config.defaults import demo_settings
from nablaflow.config.overrides import load_config
from nablaflow.config.parse import parse_config
from nablaflow.config.recipe import Config
from nablaflow.methods import METHODS
from nablaflow.methods.variants import VARIANTS
from nablaflow.runs.checks import idle_settings, refuse_idle

RECIPES = sorted((Path(__file__).parents[2] / "recipes").glob("*.yaml"))
GIVEN = ["reward=warmth", "prompts=[a cat]"]
RECIPE = {"reward": "warmth", "prompts": ["a cat"], "output_dir": "run", "training": {}}


def refused(name: str, settings: dict[str, Any], **groups: Any) -> str:
    method = {"name": name, "beta": 1.0, **settings}
    with pytest.raises(nf.UserError) as caught:
        refuse_idle(parse_config({**RECIPE, **_sampled(name), "method": method, **groups}))
    assert "\n" not in str(caught.value)
    return str(caught.value)


@pytest.mark.parametrize(
    ("method", "settings", "line"),
    [
        (
            "residual-nabla-db",
            {"reverse_last": False},
            "method.reverse_last: there is no reverse residual; set method.reverse_weight=1, or "
            "leave it at true",
        ),
        ("residual-nabla-db", {"terminal_weight": 2.0}, "method.terminal_weight: there is no flow"),
        (
            "residual-nabla-db",
            {
                "forward_flow": "attached",
                "forward_weight": 0.0,
                "reverse_weight": 1.0,
                "reverse_policy_graph": True,
            },
            "method.forward_flow: there is no forward residual",
        ),
        (
            "residual-nabla-db",
            {"step": "published", "gamma": 0.0, "forward_looking_predictor": "policy"},
            "method.forward_looking_predictor: nothing is looked ahead",
        ),
        (
            "nabla-db",
            {"forward_flow": "attached", "forward_weight": 0.0, "reverse_policy_graph": True},
            "method.forward_flow: there is no forward residual",
        ),
        ("ddpo", {"form": "score-function", "clip_range": 0.1}, "method.clip_range: there is no"),
        (
            "dag-db",
            {"gamma": 0.0, "forward_looking_predictor": "policy"},
            "method.forward_looking_predictor: nothing is looked ahead",
        ),
        (
            "diffusion-nft",
            {"decay_most": 0.0, "decay_flat": 75},
            "method.decay_flat: the old policy is the last one; set method.decay_most above 0",
        ),
        (
            "diffusion-nft",
            {"decay_rise": 0.0, "decay_most": 0.9},
            "method.decay_most: the old policy is the last one; set method.decay_rise above 0",
        ),
    ],
)
def test_a_setting_that_another_one_switches_off_is_refused(
    method: str, settings: dict[str, Any], line: str
):
    assert refused(method, settings).startswith(line)


@pytest.mark.parametrize(
    ("method", "settings", "name"),
    [
        ("residual-nabla-db", {"forward_flow": "attached"}, "forward_flow"),
        ("vgg-flow", {"terminal_weight": 1.0}, "terminal_weight"),
        ("vgg-flow", {"consistency_weight": 2.0}, "consistency_weight"),
    ],
)
def test_one_of_a_flow_network_is_refused_without_it(
    method: str, settings: dict[str, Any], name: str
):
    """Attached to a network that is off, updates would also no longer share a rollout."""
    line = refused(method, settings, flow=None)
    assert line.startswith(f"method.{name}: there is no flow network")


@pytest.mark.parametrize(
    ("name", "value", "default"),
    [("rank", 16, "8"), ("alpha", 4.0, "null"), ("targets", ["to_q"], "auto")],
)
def test_what_is_a_loras_alone_is_refused_where_every_weight_trains(
    name: str, value: Any, default: str
):
    assert refused("terminal", {}, adapter={"kind": "full", name: value}) == (
        f"adapter.{name}: every weight trains, and no LoRA; set adapter.kind=lora, or leave it at "
        f"{default}"
    )


def test_the_kind_takes_the_place_of_what_an_earlier_layer_says_of_the_other():
    """The demo's rank is its own, and no wish of whoever trains every weight of it."""
    config = load_config(None, ["adapter.kind=full"], demo_settings())
    assert config.adapter == nf.AdapterSettings(kind="full")
    recipe = next(path for path in RECIPES if path.stem == "sd15_fast")
    refuse_idle(load_config(recipe, [*GIVEN, "adapter.kind=full"], {}))
    both = load_config(recipe, [*GIVEN, "adapter.rank=4", "adapter.kind=full"], {})
    with pytest.raises(nf.UserError, match=r"^adapter\.rank: every weight trains"):
        refuse_idle(both)


@pytest.mark.parametrize("path", RECIPES, ids=lambda path: path.stem)
def test_no_recipe_holds_one(path: Path):
    assert list(idle_settings(load_config(path, GIVEN, {}))) == []


def test_no_default_is_one():
    given = {"value-matching": {"estimator": {"name": "adjoint"}}}
    methods = [make(1.0) for make in VARIANTS.values()]
    methods += [
        kind.model_validate({"beta": 1.0, **given.get(name, {})}) for name, kind in METHODS.items()
    ]
    for method in methods:
        config = parse_config({**RECIPE, **_sampled(method.name), "method": method})
        assert list(idle_settings(config)) == []


def _sampled(name: str) -> dict[str, Any]:
    return {"sampler": {"name": "euler"}} if name == "vgg-flow" else {}


def test_a_call_that_gives_a_flow_network_to_a_method_without_use_for_one_is_refused(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
):
    def not_run(config: Config, **_: Any) -> nf.Run:
        return nf.Run(config.output_dir, config, {}, config.output_dir)

    monkeypatch.setattr("nablaflow.api.align.run", not_run)
    asked: dict[str, Any] = {"reward": "warmth", "prompts": ["a cat"], "output_dir": tmp_path}
    method = nf.TerminalMatching(beta=1.0)
    cases: tuple[tuple[dict[str, Any], str], ...] = (
        ({"flow": {"channels": [8]}}, "flow"),
        ({"flow": nf.FlowSettings()}, "flow"),
        ({"optimizer": {"flow_learning_rate": 0.1}}, "optimizer.flow_learning_rate"),
        ({"optimizer": nf.OptimizerSettings(flow_weight_decay=0.0)}, "optimizer.flow_weight_decay"),
    )
    for given, place in cases:
        with pytest.raises(nf.UserError, match=rf"^{place}: terminal has no use for a flow"):
            nf.align(**asked, method=method, **given)
        nf.align(**asked, method=nf.NablaDB(beta=1.0), **given)
    nf.align(**asked, method=method, flow=None, optimizer=nf.OptimizerSettings())
