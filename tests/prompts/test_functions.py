"""Prompts that a function draws, and the metadata beside prompts."""

import json
import random

import numpy as np
import pytest
import torch

from nablaflow.config.parse import parse_config
from nablaflow.errors import UserError
from nablaflow.prompts.sets import find_prompts, load_prompts, prompt_metadata
from nablaflow.prompts.source import absolute
from nablaflow.runs.trust import asked_for
from tests.prompts.test_sources import MINIMAL

SOURCE = """
import itertools
import random

import numpy as np
import torch

ANIMALS = ["cat", "dog", "horse", "monkey"]
own = random.Random()
numbers = itertools.count()


def by_numpy():
    return np.random.choice(ANIMALS), {}


def by_random():
    return random.choice(ANIMALS), {"legs": 4}


def by_torch():
    return ANIMALS[torch.randint(4, ()).item()], {}


def by_its_own():
    return str(own.random()), {}


def by_count():
    return ANIMALS[next(numbers) % 4], {}


def bare():
    return random.choice(ANIMALS)


def number():
    return 3, {}


def broken():
    raise KeyError("animals")


def undecided():
    return "cat", {"legs": random.random()}
"""


@pytest.fixture
def file(tmp_path):
    path = tmp_path / "mine.py"
    path.write_text(SOURCE)
    return path


def _numpys():
    return np.random.get_state()[1].tolist()  # noqa: NPY002


@pytest.mark.parametrize("name", ["by_numpy", "by_random", "by_torch", "bare"])
def test_the_seed_decides_and_the_global_generators_stay_where_they_were(file, name):
    value = {"source": f"trl:{file}:{name}", "count": 50}
    before = random.getstate(), _numpys(), torch.get_rng_state()
    first = load_prompts(value, file.parent, 0)
    random.random()
    assert load_prompts(value, file.parent, 0) == first
    assert load_prompts(value, file.parent, 1) != first
    random.setstate(before[0])
    assert _numpys() == before[1]
    assert torch.equal(torch.get_rng_state(), before[2])
    assert len(first) == 50
    assert set(first) == {"cat", "dog", "horse", "monkey"}
    assert {type(text) for text in first} == {str}


def test_the_draws_are_those_of_the_seeded_function(file):
    """With random seeded the same way by hand."""
    from nablaflow.seeds import stream

    drawn = load_prompts({"source": f"trl:{file}:bare", "count": 5}, file.parent, 3)
    draw = random.Random(stream(3, "prompts") % 2**32).choice
    assert drawn == [draw(["cat", "dog", "horse", "monkey"]) for _ in range(5)]


def test_a_note_says_how_many_were_drawn(file):
    note = find_prompts(f"trl:{file}:by_random", file.parent, 7).note()
    assert note == f"prompts: trl:{file}:by_random drew 256 by seed 7, 4 different ones"


@pytest.mark.parametrize(
    ("name", "words"),
    [
        ("by_its_own", "draws other prompts with the same seed; let it draw by random"),
        ("by_count", "draws other prompts with the same seed"),
        ("number", r"returned tuple; it must return \(prompt, metadata\)"),
        ("broken", r"fails \(KeyError: 'animals'\); it must take no arguments"),
        ("absent", "has no absent"),
    ],
)
def test_a_mistake_is_one_line(file, name, words):
    with pytest.raises(UserError, match=words) as caught:
        find_prompts({"source": f"trl:{file}:{name}", "count": 5}, file.parent)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    ("value", "words"),
    [
        ({"source": "trl:a.py:f", "count": 0}, "count must be a whole number from 1 to 100000"),
        ({"source": "trl:a.py:f", "count": True}, "count must be a whole number"),
        ({"source": "trl:a.py:f", "column": "x"}, "prompts.column: trl:a.py:f is a function"),
        ({"source": "p.txt", "count": 3}, "prompts.count: p.txt is no function"),
        (
            {"source": "a.py:f", "count": 3},
            "prompts: a.py:f is a function's place; write trl: before its path",
        ),
        ("/x/a.py:f", "prompts: a.py:f is a function's place; write trl: before its path"),
        (lambda: ("a", {}), "prompts: a function goes in by its place, {source: trl:path/to/file"),
    ],
)
def test_settings_that_do_not_fit_are_refused(tmp_path, value, words):
    with pytest.raises(UserError, match=words):
        find_prompts(parse_config({**MINIMAL, "prompts": value}).prompts, tmp_path)


def test_a_relative_path_starts_at_the_recipe(file):
    source = absolute("trl:mine.py:by_random", file.parent)
    assert source == f"trl:{file}:by_random"
    assert len(load_prompts(source, file.parent / "elsewhere")) == 256


def test_it_is_code_that_needs_the_users_word(file):
    prompts = {"source": f"trl:{file}:by_random", "count": 8}
    (found,) = asked_for(parse_config({**MINIMAL, "prompts": prompts}))
    assert str(found) == f"code {file}:by_random"
    assert found.path == file.resolve()


# --- metadata -------------------------------------------------------------------------------------


def test_what_stands_beside_a_prompt_is_its_metadata(tmp_path, file):
    rows = [{"prompt": "a cat", "legs": 4}, {"prompt": "a bird", "legs": 2, "wings": True}]
    (tmp_path / "p.jsonl").write_text("\n".join(map(json.dumps, rows)))
    (tmp_path / "p.csv").write_text("prompt,legs\na fly,6\n")
    sources = (str(tmp_path / "p.jsonl"), str(tmp_path / "p.csv"), f"trl:{file}:by_random", None)
    table = prompt_metadata(*sources, seed=0)
    assert table["a cat"] == {"legs": 4}
    assert table["a bird"] == {"legs": 2, "wings": True}
    assert table["a fly"] == {"legs": "6"}
    assert table["dog"] == {"legs": 4}
    assert prompt_metadata(["a cat"], seed=0) == {}


def test_one_text_with_two_metadata_is_refused(tmp_path, file):
    (tmp_path / "p.jsonl").write_text('{"prompt": "a", "id": 1}\n{"prompt": "a", "id": 2}\n')
    assert load_prompts(str(tmp_path / "p.jsonl"), tmp_path) == ["a", "a"]
    for source in (str(tmp_path / "p.jsonl"), f"trl:{file}:undecided"):
        with pytest.raises(UserError, match="two different metadata"):
            prompt_metadata(source, seed=0)
