"""Whatever a recipe or a setting holds, it is a configuration or one line, and nothing else."""

from __future__ import annotations

from pathlib import Path

import hypothesis
import pytest
from hypothesis import strategies as st

from nablaflow.config.defaults import demo_settings
from nablaflow.config.overrides import load_config
from nablaflow.config.recipe import Config
from nablaflow.errors import UserError
from nablaflow.rewards import load

RECIPE = (Path(__file__).parents[2] / "recipes" / "nano_warmth.yaml").read_text()
KEYS = (
    "adapter.rank",
    "adapter.targets",
    "evaluation.bank",
    "evaluation.n",
    "flow.channels",
    "guard.held_out.reward",
    "method",
    "method.beta",
    "model",
    "optimizer.betas",
    "optimizer.learning_rate",
    "output_dir",
    "prompts",
    "reward",
    "sampler.steps",
    "seed",
    "training.device",
    "training.minutes",
    "training.trackers",
    "training.updates",
)
VALUES = (
    "1e300",
    "-1e300",
    ".nan",
    "-.inf",
    "1" + "0" * 400,
    "1" + "0" * 5000,
    "&a [*a]",
    "{a: &a {b: *a}}",
    "[" * 2000,
    "[" * 100_000,
    '"\\ud800"',
    '"a\\0b"',
    "x" * 300,
    "x/" * 3000,
    "~nobody/x",
    "null",
    "{}",
    "[]",
    '""',
    "*a",
    "!!python/object/apply:os.system [true]",
    "2001-01-01",
    "0x10",
    "{name: }",
    "{? [a] : b}",
)


def outcome(recipe: Path | None, overrides: list[str]) -> Config | str:
    """The configuration that it is, or what the user is told."""
    defaults = demo_settings() if recipe is None else {}
    try:
        return load_config(recipe, overrides, defaults)
    except UserError as error:
        return str(error)


def is_one_line(found: Config | str) -> bool:
    return isinstance(found, str) and 0 < len(found) < 1000 and "\n" not in found


def is_either(found: Config | str) -> bool:
    return isinstance(found, Config) or is_one_line(found)


@pytest.mark.parametrize("value", VALUES, ids=range(len(VALUES)))
def test_a_strange_value_of_any_setting(value: str):
    for key in KEYS:
        assert is_either(outcome(None, [f"{key}={value}"]))


def test_a_sum_of_strange_names():
    names = " + ".join(["x" * 300] * 30)
    assert is_either(outcome(None, [f"reward={names}"]))
    with pytest.raises(UserError) as caught:
        load(names)
    assert is_one_line(str(caught.value))


def test_few_lines_that_stand_for_a_billion_values(tmp_path: Path):
    lines = ["a: &a [x, x, x, x, x, x, x, x, x]"]
    lines += [
        f"{new}: &{new} [{', '.join([f'*{old}'] * 9)}]"
        for old, new in zip("abcdefgh", "bcdefghi", strict=True)
    ]
    (tmp_path / "recipe.yaml").write_text("\n".join(lines))
    with pytest.raises(UserError, match="aliases"):
        load_config(tmp_path / "recipe.yaml", [], {})


def mutations(recipe: bytes) -> st.SearchStrategy[bytes]:
    """The recipe with a few of its bytes removed, doubled or replaced."""
    places = st.integers(0, len(recipe) - 1)
    pieces = st.sampled_from([b"", b"\0", b"\xff", b"&a ", b"*a", b"[", b"{", b": ", b"\n", b"- "])
    changes = st.lists(st.tuples(places, st.integers(0, 40), pieces), min_size=1, max_size=4)

    def apply(found: list[tuple[int, int, bytes]]) -> bytes:
        text = recipe
        for place, length, piece in found:
            text = text[:place] + piece + text[place + length :]
        return text

    return changes.map(apply)


RECIPES = mutations(RECIPE.encode())


@hypothesis.settings(max_examples=150)
@hypothesis.given(RECIPES)
def test_a_mutated_recipe(tmp_path_factory: pytest.TempPathFactory, content: bytes):
    assert is_either(mutated(tmp_path_factory, content))


@pytest.mark.slow
@hypothesis.settings(max_examples=5000)
@hypothesis.given(RECIPES)
def test_five_thousand_mutated_recipes(tmp_path_factory: pytest.TempPathFactory, content: bytes):
    assert is_either(mutated(tmp_path_factory, content))


def mutated(factory: pytest.TempPathFactory, content: bytes) -> Config | str:
    recipe = factory.getbasetemp() / "recipe.yaml"
    recipe.write_bytes(content)
    return outcome(recipe, [])


@pytest.mark.slow
@hypothesis.settings(max_examples=300)
@hypothesis.given(st.sampled_from(KEYS), st.text(max_size=40))
def test_three_hundred_settings(key: str, value: str):
    assert is_either(outcome(None, [f"{key}={value}"]))
