"""A run folder is data: what it asks for outside itself needs the user's word, for each command."""

from __future__ import annotations

from pathlib import Path

import pytest

from nablaflow.config.parse import parse_config
from nablaflow.config.recipe import Config
from nablaflow.errors import UserError
from nablaflow.rewards.references import Reference, references
from nablaflow.runs import trust
from nablaflow.runs.trust import check_recipe, check_trusted, parts_of_run, remember


@pytest.fixture(autouse=True)
def _no_word_yet(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setenv("XDG_STATE_HOME", str(tmp_path / "state"))


@pytest.fixture
def run(tmp_path: Path) -> Path:
    folder = tmp_path / "run"
    folder.mkdir()
    (folder / "score.py").write_text("def f(images, prompts): ...")
    (folder / "prompts.txt").write_text("a circle")
    (tmp_path / "key").write_text("secret")
    return folder


def config(run: Path, **values: object) -> Config:
    own = {
        "reward": "warmth",
        "prompts": ["a circle"],
        "output_dir": str(run),
        "method": {"name": "ddpo", "beta": 1.0},
        "training": {
            "updates": 1,
            "prompts_per_update": 1,
            "images_per_prompt": 2,
            "transition_fraction": 0.5,
        },
    }
    return parse_config({**own, **values})


REMOTE = {"name": "remote", "url": "http://me:word@judge.org/s?key=k", "token_variable": "HF_TOKEN"}
SPECS = {
    "warmth": set(),
    "warmth + 0.5*symmetry": set(),
    "a.py:f": {"code a.py:f"},
    "warmth + 2*b/a.py:f - c.py:g": {"code b/a.py:f", "code c.py:g"},
    "fit.safetensors": {"file fit.safetensors"},
}


@pytest.mark.parametrize("spec", SPECS)
def test_what_a_text_reaches_for(spec: str):
    found = {str(part) for part in references(spec)}
    assert {text for text in found if spec not in text or "+" not in spec} == SPECS[spec]


def test_what_settings_reach_for_at_any_depth():
    spec = {"name": "minimum", "of": [{"name": "cap", "of": REMOTE, "at": 1.0}, "a.py:f"]}
    assert sorted(map(str, references(spec))) == [
        "code a.py:f",
        "environment variable HF_TOKEN",
        "host http://***@judge.org/s?***",
    ]


def test_weights_on_disk_are_files_and_those_of_the_hub_are_not(tmp_path: Path):
    here = {"name": "aesthetic", "weights": str(tmp_path)}
    assert list(references(here)) == [Reference("file", str(tmp_path))]
    assert list(references({"name": "aesthetic", "weights": "owner/name"})) == []


ASKS = {
    "code": {"reward": "score.py:f"},
    "host": {"reward": {"name": "remote", "url": "http://judge.org/"}},
    "HF_TOKEN": {"reward": REMOTE},
    "/key": {"prompts": "key"},
    "/key ": {"evaluation": {"prompts": "key"}},
    "file ": {"model": "key"},
}


@pytest.mark.parametrize("word", ASKS)
def test_each_is_refused_by_name_until_the_user_says_so(
    run: Path, tmp_path: Path, word: str, capsys: pytest.CaptureFixture[str]
):
    values = {
        name: str(tmp_path / "key") if value == "key" else value
        for name, value in ASKS[word].items()
    }
    if "evaluation" in values:
        values["evaluation"] = {"prompts": str(tmp_path / "key")}
    asking = config(run, **values)
    with pytest.raises(UserError, match=word.strip()) as caught:
        check_trusted(asking, run)
    assert "--trust-run" in str(caught.value)
    assert "word@" not in str(caught.value)
    check_trusted(asking, run, trusted=True)
    assert word.strip() in capsys.readouterr().err


def test_a_named_reward_and_the_runs_own_files_need_no_word(
    run: Path, capsys: pytest.CaptureFixture[str]
):
    """So nothing is said of them with the user's word either."""
    own = config(run, prompts=str(run / "prompts.txt"))
    for trusted in (False, True):
        check_trusted(own, run, trusted=trusted)
    assert capsys.readouterr().err == ""


def test_code_inside_the_run_needs_it(run: Path):
    with pytest.raises(UserError, match="code"):
        check_trusted(config(run, reward=f"{run}/score.py:f"), run)


def test_a_link_inside_the_run_to_a_file_outside_needs_it(run: Path, tmp_path: Path):
    (run / "linked.txt").symlink_to(tmp_path / "key")
    with pytest.raises(UserError, match="file"):
        check_trusted(config(run, prompts=str(run / "linked.txt")), run)


def test_what_was_trained_here_is_remembered_as_long_as_the_code_is_the_same(run: Path):
    asking = config(run, reward=f"{run}/score.py:f")
    remember(asking)
    check_trusted(asking, run)
    (run / "score.py").write_text("import os")
    with pytest.raises(UserError, match="code"):
        check_trusted(asking, run)


def test_words_for_two_runs_do_not_add_up(run: Path):
    """Each was for its own purpose: a host that was trusted gets no token that was not its own."""
    remember(config(run, reward={"name": "remote", "url": "http://judge.org/"}))
    own = {"name": "remote", "url": "http://own.org/", "token_variable": "HF_TOKEN"}
    remember(config(run, reward=own))
    check_trusted(config(run, reward=own), run)
    with pytest.raises(UserError, match="HF_TOKEN"):
        check_trusted(config(run, reward={**own, "url": "http://judge.org/"}), run)


def test_nothing_is_remembered_of_a_named_reward(run: Path):
    remember(config(run))
    assert not trust._words().exists()


def test_a_recipe_is_the_users_word_and_a_runs_config_is_not(run: Path, tmp_path: Path):
    asking = config(run, reward="score.py:f")
    check_recipe(tmp_path / "recipe.yaml", asking, [], trusted=False)
    check_recipe(None, asking, [], trusted=False)
    (run / "metrics.jsonl").touch()
    with pytest.raises(UserError, match="code"):
        check_recipe(run / "config.yaml", asking, [], trusted=False)
    check_recipe(run / "config.yaml", asking, ["reward=score.py:f"], trusted=False)
    check_recipe(run / "config.yaml", asking, [], trusted=True)


@pytest.mark.parametrize(
    ("given", "asked"),
    [
        ([], {"lora", "start"}),
        (["model=nano"], {"lora", "start"}),
        (["model_lora=mine.safetensors"], {"start"}),
        (["adapter.start=mine.safetensors"], {"lora"}),
        (["adapter={rank: 2}"], {"lora"}),
        (["adapter.rank=2", "model_lora_scale=0.5"], {"lora", "start"}),
    ],
)
def test_a_setting_of_the_users_is_the_word_for_what_it_replaces_alone(
    run: Path, tmp_path: Path, given: list[str], asked: set[str]
):
    (run / "metrics.jsonl").touch()
    places = {name: str(tmp_path / f"{name}.safetensors") for name in ("lora", "start")}
    reaching = config(run, model_lora=places["lora"], adapter={"start": places["start"]})
    with pytest.raises(UserError) as caught:
        check_recipe(run / "config.yaml", reaching, given, trusted=False)
    assert {name for name, place in places.items() if place in str(caught.value)} == asked


def test_the_users_own_reward_is_the_word_for_it_and_for_nothing_else(run: Path, tmp_path: Path):
    asking = config(run, reward="score.py:f", prompts=str(tmp_path / "key"))
    with pytest.raises(UserError, match="/key") as caught:
        check_trusted(asking, run, parts_of_run(["reward=score.py:f"]))
    assert "score.py" not in str(caught.value)
    with pytest.raises(UserError, match=r"method\.beta"):
        parts_of_run(["method.beta=2"])


def test_what_is_measured_is_changed_by_resuming():
    with pytest.raises(UserError, match=r"train it with --resume evaluation\.bank=9 to measure"):
        parts_of_run(["evaluation.bank=9"])
    with pytest.raises(UserError, match=r"the rest is its own$"):
        parts_of_run(["evaluation.hold_out=0.5"])
