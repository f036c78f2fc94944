"""Prompts from tables, sets by name and the hub; what is held out; what is reported."""

import sys
import types

import pytest
from hypothesis import given
from hypothesis import strategies as st

from nablaflow.config.overrides import load_config
from nablaflow.errors import UserError
from nablaflow.prompts import hub
from nablaflow.prompts.sets import find_prompts, load_prompts, prompt_sets, split_off

MINIMAL = {
    "reward": "warmth",
    "prompts": ["a circle"],
    "output_dir": "run",
    "method": {"name": "residual-nabla-db", "beta": 1.0},
    "training": {
        "updates": 1,
        "prompts_per_update": 1,
        "images_per_prompt": 2,
        "transition_fraction": 0.5,
    },
}


# --- files ----------------------------------------------------------------------------------------


def test_json_lines(tmp_path):
    path = tmp_path / "prompts.jsonl"
    path.write_text('{"prompt": "a cat", "id": 1}\n\n{"prompt": " un château "}\n')
    assert load_prompts("prompts.jsonl", tmp_path) == ["a cat", "un château"]


def test_a_table(tmp_path):
    path = tmp_path / "prompts.csv"
    path.write_text('id,caption\n1,"a cat, asleep"\n2,"a ""big"" dog"\n')
    value = {"source": str(path), "column": "caption"}
    assert load_prompts(value, tmp_path) == ["a cat, asleep", 'a "big" dog']
    path.write_text('id, caption\n1, "a cat, asleep"\n')
    assert load_prompts(value, tmp_path) == ["a cat, asleep"]


@pytest.mark.parametrize(
    ("name", "content"),
    [("P.CSV", "id,prompt\n1,a cat\n"), ("P.JSONL", '{"prompt": "a cat", "id": 1}\n')],
)
def test_the_case_of_a_files_ending_says_nothing(tmp_path, name, content):
    (tmp_path / name).write_text(content)
    assert load_prompts(name, tmp_path) == ["a cat"]


def test_a_file_of_code_is_not_read_as_prompts(tmp_path):
    (tmp_path / "p.py").write_text("def prompts():\n    return 'a cat'\n")
    with pytest.raises(UserError, match=r"p\.py is code.* is trl:.*p\.py:function"):
        load_prompts("p.py", tmp_path)


@pytest.mark.parametrize(
    "ending", ["json", "ndjson", "tsv", "yaml", "YML", "toml", "html", "ipynb"]
)
def test_a_file_whose_lines_are_no_prompts_is_not_read_as_such(tmp_path, ending):
    (tmp_path / f"p.{ending}").write_text('["a cat",\n"a dog"]\n')
    with pytest.raises(UserError, match=r"would be read as one prompt per line; save it as .jsonl"):
        load_prompts(f"p.{ending}", tmp_path)


@pytest.mark.parametrize(
    ("name", "content", "column", "words"),
    [
        ("p.csv", "caption\na cat\n", "captoin", r"no column 'captoin'; did you mean caption\?"),
        ("p.csv", "caption\na cat\n", None, "no column 'prompt'; choose one of caption"),
        ("p.csv", "", None, "holds no prompt"),
        ("p.csv", "prompt\na dog\na cat, asleep\n", None, "line 3 has more cells than .* quotes"),
        ("p.csv", "prompt,id\na cat, asleep,1\n", None, "line 2 has more cells than"),
        ("p.csv", "\nprompt\na cat\n", None, "first line is blank"),
        ("p.csv", "prompt,id,prompt\na,1,b\n", None, "column 'prompt' comes twice"),
        ("p.jsonl", '{"prompt": "a"}\nnot json\n', None, "line 2 is not JSON"),
        ("p.jsonl", '["a cat"]\n', None, "line 1 is no object with a 'prompt'"),
        ("p.jsonl", '{"prompt": 3}\n', None, "line 1 has no text in column 'prompt'"),
        ("p.txt", "a cat\n", "prompt", r"^prompts.column: .*plain text"),
    ],
)
def test_a_bad_table_is_one_line(tmp_path, name, content, column, words):
    (tmp_path / name).write_text(content)
    value = {"source": name} | ({"column": column} if column else {})
    with pytest.raises(UserError, match=words) as caught:
        load_prompts(value, tmp_path)
    assert "\n" not in str(caught.value)


def test_duplicates_and_empty_lines_are_counted_with_their_first_lines(tmp_path):
    (tmp_path / "p.txt").write_text("# animals\na cat\n\na dog\na cat\n\n\na cat\n")
    found = find_prompts("p.txt", tmp_path)
    assert list(found.texts) == ["a cat", "a dog", "a cat", "a cat"]
    note = found.note()
    assert note is not None
    assert "2 duplicates" in note
    assert "line 5 repeats line 2" in note
    assert "3 empty lines" in note
    assert "(line 3)" in note
    assert "\n" not in note


def test_a_clean_file_is_not_spoken_of(tmp_path):
    (tmp_path / "p.txt").write_text("# animals\na cat\na dog\n")
    assert find_prompts("p.txt", tmp_path).note() is None


# --- sets by name, and the hub --------------------------------------------------------------------


def test_the_animals_come_with_the_package(tmp_path):
    found = load_prompts("simple-animals", tmp_path)
    assert (len(found), len(set(found)), found[0], found[-1]) == (45, 45, "cat", "kangaroo")


def test_a_set_of_the_hub_is_a_list_of_texts(tmp_path, monkeypatch):
    file = tmp_path / "photo.json"
    file.write_text('["a cat", "a dog"]')
    asked = []

    def download(repo, name, *, repo_type, revision):
        asked.append((repo, name, repo_type, len(revision)))
        return str(file)

    monkeypatch.setattr(hub, "hf_hub_download", download)
    assert load_prompts("hpdv2-photo", tmp_path) == ["a cat", "a dog"]
    assert asked == [("ymhao/HPDv2", "benchmark/photo.json", "dataset", 40)]


def test_a_set_that_cannot_be_had_is_one_line(tmp_path, monkeypatch):
    def download(*args, **kwargs):
        raise ConnectionError("no\nnetwork")

    monkeypatch.setattr(hub, "hf_hub_download", download)
    with pytest.raises(UserError, match=r"drawbench .* could not be downloaded") as caught:
        load_prompts("drawbench", tmp_path)
    assert "\n" not in str(caught.value)


class _Rows(dict):
    column_names = ("text", "id")


def _datasets(load) -> types.ModuleType:
    module = types.ModuleType("datasets")
    module.load_dataset = load
    return module


def test_a_column_of_a_data_set(tmp_path, monkeypatch):
    asked = []

    def load(repo, *, split):
        asked.append((repo, split))
        return _Rows(text=["a cat", None, "a dog", "a cat"])

    monkeypatch.setitem(sys.modules, "datasets", _datasets(load))
    value = {"source": "hub:me/animals", "column": "text", "split": "test"}
    found = find_prompts(value, tmp_path)
    assert list(found.texts) == ["a cat", "a dog", "a cat"]
    assert asked == [("me/animals", "test")]
    assert "line 4 repeats line 1" in str(found.note())
    with pytest.raises(UserError, match="no column 'prompt'; choose one of id, text"):
        find_prompts("hub:me/animals", tmp_path)
    assert asked[-1] == ("me/animals", "train")


@pytest.mark.parametrize("cell", [0, 3, ["a cat", "an animal"], {"text": "a cat"}])
def test_a_column_of_a_data_set_that_is_no_text_is_refused(tmp_path, monkeypatch, cell):
    rows = _Rows(text=["a dog", cell])
    monkeypatch.setitem(sys.modules, "datasets", _datasets(lambda repo, *, split: rows))
    with pytest.raises(UserError, match="me/animals, row 2 has no text in column 'text'"):
        find_prompts({"source": "hub:me/animals", "column": "text"}, tmp_path)


def test_a_data_set_that_cannot_be_had_is_one_line(tmp_path, monkeypatch):
    def load(repo, *, split):
        raise ConnectionError("Couldn't reach the hub\nat all")

    monkeypatch.setitem(sys.modules, "datasets", _datasets(load))
    with pytest.raises(
        UserError, match="me/animals, split train, could not be downloaded"
    ) as caught:
        load_prompts("hub:me/animals", tmp_path)
    assert "\n" not in str(caught.value)


def test_without_the_package_the_extra_is_named(tmp_path, monkeypatch):
    monkeypatch.setitem(sys.modules, "datasets", None)
    with pytest.raises(UserError, match=r"pip install '\.\[datasets\]' in the checkout"):
        load_prompts("hub:me/animals", tmp_path)


# --- the settings ---------------------------------------------------------------------------------


def test_names_and_hub_ids_stay_as_they_are_and_paths_become_absolute(tmp_path):
    recipe = tmp_path / "recipe.yaml"
    for written, kept in (
        ("simple-animals", "simple-animals"),
        ("hub:me/animals", "hub:me/animals"),
        ("./drawbench", str(tmp_path / "drawbench")),
        (
            "{source: p.csv, column: caption}",
            {"source": str(tmp_path / "p.csv"), "column": "caption"},
        ),
    ):
        recipe.write_text(f"prompts: {written}\nevaluation: {{prompts: {written}}}\n")
        config = load_config(recipe, [], MINIMAL)
        assert config.prompts == config.evaluation.prompts == kept


@pytest.mark.parametrize(
    ("override", "words"),
    [
        ("prompts={colum: a}", r"prompts: unknown key colum; did you mean column\?"),
        ("prompts={column: a}", "prompts: source is missing"),
        ("prompts={source: 3}", "prompts: source must be a text"),
        ("evaluation.prompts=[]", "evaluation.prompts: the list is empty"),
        ("evaluation.hold_out=1", "evaluation.hold_out"),
    ],
)
def test_a_bad_source_is_one_line_that_names_the_key(override, words):
    with pytest.raises(UserError, match=words):
        load_config(None, [override], MINIMAL)


def test_two_ways_to_hold_out_are_refused():
    given = ["evaluation.prompts=[a star]", "evaluation.hold_out=0.5"]
    with pytest.raises(UserError, match="leave one out"):
        load_config(None, given, MINIMAL)


# --- training and evaluation ----------------------------------------------------------------------


@given(st.lists(st.text(max_size=3), min_size=2), st.floats(0.01, 0.9), st.integers(0, 99))
def test_a_text_is_never_on_both_sides(prompts, fraction, seed):
    texts = set(prompts)
    if max(1, round(fraction * len(texts))) >= len(texts):
        with pytest.raises(UserError, match=r"evaluation\.hold_out"):
            split_off(prompts, fraction, seed)
        return
    training, evaluation = split_off(prompts, fraction, seed)
    assert not set(training) & set(evaluation)
    assert set(training) | set(evaluation) == texts
    assert len(training) == sum(text in set(training) for text in prompts)
    assert len(evaluation) == len(set(evaluation)) == max(1, round(fraction * len(texts)))
    assert split_off(prompts, fraction, seed) == (training, evaluation)


def test_the_seed_decides_what_is_held_out():
    texts = [f"prompt {i}" for i in range(40)]
    _, first = split_off(texts, 0.25, 0)
    _, other = split_off(texts, 0.25, 1)
    assert len(first) == 10
    assert first != other


def test_what_a_run_trains_on_and_is_measured_on():
    def sets(*overrides: str):
        config = load_config(None, overrides, MINIMAL)
        measured = config.evaluation
        return prompt_sets(
            config.prompts,
            evaluation=measured.prompts,
            hold_out=measured.hold_out,
            seed=config.seed,
        )

    same = sets("prompts=[a, b, a]")
    assert (same.training, same.evaluation) == (["a", "b", "a"], ["a", "b"])
    assert len(same.notes) == 1
    apart = sets("prompts=[a, b]", "evaluation.prompts=[c, c]")
    assert (apart.training, apart.evaluation) == (["a", "b"], ["c"])
    held = sets("prompts=[a, b, c, d]", "evaluation.hold_out=0.25")
    assert (len(held.training), len(held.evaluation)) == (3, 1)
