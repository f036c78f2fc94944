"""Settings from recipes and the command line: what is read, what is saved, what is refused."""

import math
import re
from typing import Any, Literal

import pytest
import yaml
from hypothesis import given, settings
from hypothesis import strategies as st
from pydantic import BaseModel, Field

from nablaflow.config.overrides import dump_config, load_config, parse_override
from nablaflow.config.recipe import Config, parse_config
from nablaflow.errors import UserError
from nablaflow.estimators import NStep, TemporalDifference
from nablaflow.methods import METHODS, AdjointMatching, Losses, Method, ValueMatching
from nablaflow.settings import named_kinds

MINIMAL: dict[str, Any] = {
    "reward": "warmth",
    "prompts": ["a circle", "a square"],
    "output_dir": "runs/test",
    "method": {"name": "first", "beta": 2.0},
    "training": {
        "updates": 10,
        "prompts_per_update": 2,
        "images_per_prompt": 4,
        "transition_fraction": 0.25,
    },
}


class First(Method):
    name = "first"
    needs_reward_gradient = False

    beta: float = Field(ge=0)
    gamma: Literal["one", "alpha_bar"] = "one"
    flow_weight: float = 1.0

    def losses(self, batch: Any, networks: Any) -> Losses:
        raise NotImplementedError


class Second(Method):
    name = "second"
    needs_reward_gradient = False

    beta: float = Field(ge=0)
    clip: float = 5.0

    losses = First.losses


@pytest.fixture(autouse=True, scope="module")
def _two_methods():
    """Two small methods, so that little here depends on which methods there are."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("nablaflow.methods.METHODS", {"first": First, "second": Second})
        yield


def load(*overrides: str, **values: Any) -> Config:
    return load_config(None, overrides, {**MINIMAL, **values})


def problem(values: dict[str, Any]) -> str | None:
    try:
        parse_config(values)
    except UserError as error:
        return str(error)
    return None


def refusal(*overrides: str, **values: Any) -> str:
    with pytest.raises(UserError) as caught:
        load(*overrides, **values)
    assert "\n" not in str(caught.value)
    return str(caught.value)


# --- what is read ---------------------------------------------------------------------------------


def test_defaults():
    config = load()
    assert config.method == First(beta=2.0)
    assert (config.sampler.name, config.sampler.steps, config.sampler.eta) == ("ddim", 20, 1.0)
    assert config.adapter.rank == 8
    assert config.flow is not None
    assert config.flow.channels == "auto"
    assert config.optimizer.betas == (0.9, 0.95)
    assert config.training.trackers == ["tensorboard"]
    assert config.strata == 5


def test_a_configuration_does_not_change():
    with pytest.raises(ValueError, match="frozen"):
        load().seed = 1


def test_later_layers_win(tmp_path):
    recipe = tmp_path / "recipe.yaml"
    recipe.write_text("seed: 1\nsampler: {steps: 30, eta: 0.5}\noptimizer: {learning_rate: 3e-4}\n")
    defaults = {**MINIMAL, "seed": 9, "sampler": {"steps": 10, "guidance_scale": 3.0}}
    config = load_config(recipe, ["sampler.steps=40", "sampler.steps=50"], defaults)
    assert config.seed == 1
    assert config.sampler.model_dump(include={"steps", "eta", "guidance_scale"}) == {
        "steps": 50,
        "eta": 0.5,
        "guidance_scale": 3.0,
    }
    assert config.optimizer.learning_rate == 3e-4
    assert defaults["sampler"] == {"steps": 10, "guidance_scale": 3.0}


@pytest.mark.parametrize(
    ("text", "value"),
    [
        ("a.b=1", 1),
        ("a.b=1e-3", 0.001),
        ("a.b=1.5E+2", 150.0),
        ("a.b=-.5", -0.5),
        ("a.b=true", True),
        ("a.b=no", "no"),
        ("a.b=null", None),
        ("a.b=", ""),
        ("a.b=x=y", "x=y"),
        ("a.b=[a cat, no, 2]", ["a cat", "no", 2]),
        ("a.b={warmth: 1, contrast: -1e-1}", {"warmth": 1, "contrast": -0.1}),
        ("a.b=path/to/file.py:function", "path/to/file.py:function"),
        ("a.b=017", "017"),
        ("a.b=1:30", "1:30"),
        ("a.b=1:30.5", "1:30.5"),
        ("a.b=2001-01-01", "2001-01-01"),
        ("a.b=0", 0),
        ("a.b=-10", -10),
        ("a.b=1_000", 1000),
        ("a.b=0x1f", 31),
        ("a.b=5.", 5.0),
        ("a.b=.5", 0.5),
        ("a.b=-.inf", -math.inf),
    ],
)
def test_override_values_are_yaml(text, value):
    assert parse_override(text) == (("a", "b"), value)


@pytest.mark.parametrize("text", ["", "seed", "=1", "a..b=1", ".a=1", "a b=1", "--seed=1"])
def test_an_override_needs_a_key(text):
    with pytest.raises(UserError, match="write key=value"):
        parse_override(text)


def test_a_group_that_is_off_is_turned_on_by_a_setting():
    config = load("flow.channels=[8, 16]", flow=None)
    assert config.flow is not None
    assert config.flow.channels == [8, 16]
    assert load("flow=null", flow={"channels": [8]}).flow is None


def test_rewards_are_replaced_as_a_whole_or_weighted_one_by_one(tmp_path):
    recipe = tmp_path / "recipe.yaml"
    recipe.write_text("reward: {brightness: 1}\n")
    defaults = {**MINIMAL, "reward": {"warmth": 1.0}}
    assert load_config(recipe, [], defaults).reward == {"brightness": 1.0}
    both = load_config(recipe, ["reward.contrast=2"], defaults)
    assert both.reward == {"brightness": 1.0, "contrast": 2.0}
    assert load("reward={symmetry: 3}").reward == {"symmetry": 3.0}
    assert "reward.contrast: reward is 'warmth'" in refusal("reward.contrast=1")


def test_a_prompts_file_is_looked_for_beside_the_recipe(tmp_path, monkeypatch):
    recipe = tmp_path / "recipe.yaml"
    recipe.write_text("prompts: lists/animals.txt\n")
    assert load_config(recipe, [], MINIMAL).prompts == str(tmp_path / "lists/animals.txt")
    monkeypatch.chdir(tmp_path)
    assert load("prompts=animals.txt").prompts == str(tmp_path / "animals.txt")


# --- methods --------------------------------------------------------------------------------------


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


# --- what is refused ------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("override", "line"),
    [
        ("optimizer.lerning_rate=1", "optimizer.lerning_rate: unknown key; did you mean learning_"),
        ("optimiser.betas=1", "optimiser: unknown key; did you mean optimizer?"),
        ("learning_rate=1e-3", "learning_rate: unknown key; did you mean optimizer.learning_rate?"),
        ("beta=3", "beta: unknown key; did you mean method.beta?"),
        ("training.steps=3", "training.steps: unknown key; did you mean sampler.steps?"),
        ("zzz=3", "zzz: unknown key; choose one of adapter, "),
        ("training.updates=ten", "training.updates: must be a valid integer, not 'ten'"),
        ("training.updates=1.5", "training.updates: must be a valid integer, not 1.5"),
        ("training.updates=true", "training.updates: must be a valid integer, not True"),
        ("training.updates=0", "training.updates: must be greater than or equal to 1, not 0"),
        ("training.updates=null", "training.updates: must be a valid integer, not null"),
        ("training.trackers=[tensorbord]", "training.trackers[0]: 'tensorbord' is not a choice; "),
        ("training.precision=bf61", "training.precision: 'bf61' is not a choice; did you mean bf1"),
        ("sampler=ddim", "sampler: must hold settings of its own"),
        ("sampler.steps=1", "sampler.steps: must be greater than or equal to 2, not 1"),
        ("sampler.steps.x=1", "sampler.steps: must be a valid integer, not {'x': 1}"),
        ("sampler.eta=.nan", "sampler.eta: must be a finite number, not nan"),
        ("adapter.alpha=x", "adapter.alpha: must be a valid number, not 'x'"),
        ("optimizer.betas=[0.9]", "optimizer.betas[1]: missing"),
        ("optimizer.betas=[0.9, 1]", "optimizer.betas[1]: must be less than 1, not 1"),
        ("flow.layers_per_block=x", "flow.layers_per_block: must be a valid integer, not 'x'"),
        ("flow.channels=[]", "flow.channels: "),
        ("reward=[1]", "reward: must be a name, path/to/file.py:function or a mapping"),
        ("reward=", "reward: must be a name"),
        ("reward={}", "reward: must be a name"),
        ("reward={warmth: lots}", "reward: the weight of warmth must be a finite number, not 'lo"),
        ("reward={warmth: .inf}", "reward.warmth: must be a finite number, not inf"),
        ("reward={warmth: true}", "reward: the weight of warmth must be a finite number, not True"),
        ("sampler.guidance_scale=.inf", "sampler.guidance_scale: must be a finite number, not inf"),
        ("method.beta=.inf", "method.beta: must be a finite number, not inf"),
        ("prompts=[]", "prompts: the list is empty; give at least one prompt"),
        ("prompts=[a, 1]", "prompts: must be a list of texts or the path of a text file"),
        ("prompts=", "prompts: must be a list of texts or the path of a text file"),
        ("output_dir=3", "output_dir: "),
        ("seed=-1", "seed: must be greater than or equal to 0, not -1"),
        ("method.beta=[1", "method.beta: not valid YAML: "),
    ],
)
def test_a_mistake_is_one_line(override, line):
    assert refusal(override).startswith(line)


@pytest.mark.parametrize("key", ["reward", "prompts", "output_dir", "method", "training"])
def test_what_is_required_is_named(key):
    values = {k: v for k, v in MINIMAL.items() if k != key}
    with pytest.raises(UserError, match=rf"^{key}: missing; set {key}=… \(.+\)$"):
        parse_config(values)


def test_a_misspelt_key_counts_before_what_is_missing_for_it():
    training = {**MINIMAL["training"], "update": MINIMAL["training"]["updates"]}
    del training["updates"]
    assert "training.update: unknown key; did you mean updates?" in refusal(training=training)
    with pytest.raises(UserError, match="metod: unknown key; did you mean method"):
        parse_config({**{k: v for k, v in MINIMAL.items() if k != "method"}, "metod": {}})


def test_fewer_steps_than_a_stratum_names_both_keys():
    line = refusal("training.transition_fraction=0.01", "sampler.steps=20")
    assert line.startswith("training.transition_fraction: ")
    assert "sampler.steps=20" in line
    remedy = re.search(r"training\.transition_fraction=[\d.]+", line)
    assert remedy
    assert load(remedy[0], "sampler.steps=20").strata == 1


@pytest.mark.parametrize("name", ["ddpm", "sde-dpmsolver++"])
def test_eta_is_ddims_alone(name):
    assert refusal(f"sampler.name={name}", "sampler.eta=0.5").startswith("sampler.eta: ")
    assert load(f"sampler.name={name}").sampler.eta == 1.0


@pytest.mark.parametrize(
    ("content", "words"),
    [
        (b"seed: 1\nmethod: {name: first\n", r"line 3: not valid YAML"),
        (b"seed: 1\nsampler:\n  steps: 1\n  steps: 2\n", r"line 4: .*steps comes twice"),
        (b"seed: 1\n2: x\n", r"line 2: .*a key must be text"),
        (b"seed: !!python/object/apply:os.getcwd []\n", r"not valid YAML"),
        (b"seed: !!timestamp 2024-13-45\n", r"not valid YAML"),
        (b"- seed\n", r"no settings"),
        (b"# nothing\n", r"empty"),
        (b"\x89PNG\xff", r"not UTF-8 text"),
        (b"seed: \x01\n", r"not valid YAML"),
    ],
)
def test_a_bad_recipe_is_one_line_with_its_name(tmp_path, content, words):
    recipe = tmp_path / "recipe.yaml"
    recipe.write_bytes(content)
    with pytest.raises(UserError, match=words) as caught:
        load_config(recipe, [], MINIMAL)
    assert str(caught.value).startswith(str(recipe))
    assert "\n" not in str(caught.value)


def test_a_recipe_that_is_not_a_file(tmp_path):
    with pytest.raises(UserError, match="no such recipe"):
        load_config(tmp_path / "missing.yaml", [], MINIMAL)
    with pytest.raises(UserError, match="a folder, and no recipe"):
        load_config(tmp_path, [], MINIMAL)


json_like = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=8),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=8), inner),
    max_leaves=6,
)
keys = st.sampled_from(
    [
        *Config.model_fields,
        *("sampler." + key for key in Config.model_fields["sampler"].annotation.model_fields),
        *("training." + key for key in Config.model_fields["training"].annotation.model_fields),
        *("flow.channels", "optimizer.betas", "method.beta", "method.name", "reward.warmth"),
    ]
)


@settings(max_examples=50)
@given(key=keys, value=json_like)
def test_whatever_is_given_the_answer_is_a_configuration_or_one_line(key, value):
    group, _, setting = key.partition(".")
    old = MINIMAL.get(group)
    inner = {**(old if isinstance(old, dict) else {}), setting: value}
    line = problem({**MINIMAL, group: inner if setting else value})
    assert line is None or line.startswith((group, "training.transition_fraction"))
    assert "\n" not in (line or "")
    assert "pydantic" not in (line or "")


# --- what is saved --------------------------------------------------------------------------------

any_text = st.text(st.characters(codec="utf-8", exclude_characters="\0"), max_size=12)
positive = st.floats(min_value=1e-300, max_value=3e38)
configurations = st.fixed_dictionaries(
    {
        **{key: st.just(value) for key, value in MINIMAL.items()},
        "prompts": st.lists(any_text, min_size=1, max_size=4)
        | st.sampled_from(
            [["no", "1e-3", "~", "1_000", "0x1f", "12:30", "", "- a", "{b}", "é\n", "\x85x"]]
        ),
        "reward": st.dictionaries(any_text, st.floats(-1e9, 1e9), min_size=1, max_size=3),
        "output_dir": st.sampled_from(["runs/x", "/tmp/a b", "1e-3", "no"]),
        "seed": st.integers(0, 2**32 - 1),
        "method": st.fixed_dictionaries(
            {"name": st.sampled_from(["first", "second"]), "beta": positive}
        ),
        "flow": st.none() | st.just({"channels": [8, 16], "ema_decay": 0.5}),
        "optimizer": st.fixed_dictionaries({"learning_rate": positive, "max_grad_norm": positive}),
        "sampler": st.fixed_dictionaries(
            {"steps": st.integers(3, 100), "negative_prompt": any_text}
        ),
    }
)


@pytest.fixture(scope="module")
def saved(tmp_path_factory):
    return tmp_path_factory.mktemp("saved") / "config.yaml"


@settings(max_examples=50)
@given(values=configurations)
def test_a_saved_configuration_reads_back_equal(values, saved):
    config = parse_config(values)
    saved.write_text(dump_config(config), encoding="utf-8")
    assert load_config(saved, [], {}) == config


def test_a_saved_configuration_is_plain_yaml_that_says_everything():
    values = yaml.safe_load(dump_config(load()))
    assert list(values) == list(Config.model_fields)
    assert values["method"] == {"name": "first", "beta": 2.0, "gamma": "one", "flow_weight": 1.0}
    assert next(iter(values["method"])) == "name"
    assert values["optimizer"]["betas"] == [0.9, 0.95]


def test_every_setting_says_what_it_means():
    def fields(model):
        for name, field in model.model_fields.items():
            yield f"{model.__name__}.{name}", field.description
            if isinstance(field.annotation, type) and issubclass(field.annotation, BaseModel):
                yield from fields(field.annotation)

    assert [name for name, description in fields(Config) if not description] == []
