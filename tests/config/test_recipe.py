"""Settings from recipes and the command line: what is read and what is saved."""

import math

import pytest
import yaml
from hypothesis import given, settings
from hypothesis import strategies as st
from pydantic import BaseModel

from nablaflow.config.overrides import dump_config, load_config, parse_override
from nablaflow.config.parse import parse_config
from nablaflow.config.recipe import Config
from nablaflow.config.settings import TrainingSettings
from nablaflow.errors import UserError
from tests.support.recipes import MINIMAL, First, load, refusal

pytestmark = pytest.mark.usefixtures("two_methods")


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


def test_the_loop_has_defaults():
    config = load_config(None, [], {key: MINIMAL[key] for key in MINIMAL if key != "training"})
    assert config.training == TrainingSettings()


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
        ("a.b=runs/mine #2", "runs/mine #2"),
        ("a.b=#2", "#2"),
        ("a.b=two\nlines", "two\nlines"),
        ("a.b='quoted' # and told", "quoted"),
        ("a.b=3 # and told", 3),
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
