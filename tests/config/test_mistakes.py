"""Mistakes in a recipe: each is one line that names the key."""

import re
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from nablaflow.config.overrides import load_config
from nablaflow.config.parse import parse_config
from nablaflow.config.recipe import Config
from nablaflow.errors import UserError
from tests.support.recipes import MINIMAL, load, refusal

pytestmark = pytest.mark.usefixtures("two_methods")


def problem(values: dict[str, Any]) -> str | None:
    try:
        parse_config(values)
    except UserError as error:
        return str(error)
    return None


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
        ("sampler.guidance_rescale=0.5", "sampler.guidance_rescale: there is no guidance"),
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


def test_bytes_that_the_locale_has_not_are_told_as_such(monkeypatch: pytest.MonkeyPatch):
    def line(text: str) -> str:
        with pytest.raises(UserError) as caught:
            load_config(None, [text], {})
        return str(caught.value)

    given = 'prompts=["gr\udcc3\udcbcn"]'
    assert line(given).startswith("prompts: holds half a character")
    monkeypatch.setattr("sys.getfilesystemencoding", lambda: "ascii")
    assert line(given) == (
        "prompts: the locale's encoding is ascii, and this text is not; set LC_ALL=C.UTF-8"
    )
    assert line("prompts=[a \ud800]").startswith("prompts: holds half a character")


@pytest.mark.parametrize("key", ["reward", "prompts", "output_dir", "method"])
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
