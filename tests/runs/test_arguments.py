"""`nf.evaluate`, `nf.sample`, `nf.compare`, `nf.Run.open` with arguments that a command refuses."""

from __future__ import annotations

import copy
import os
import pickle
from collections.abc import Callable
from pathlib import Path
from typing import Any

import jaxtyping
import numpy as np
import pytest
import torch

import nablaflow as nf
from nablaflow.comparison.asked import compare_asked
from nablaflow.config.arguments import CompareArguments, SampleArguments, checked, place, texts
from nablaflow.methods import DDPO, RewardWeightedRegression
from nablaflow.runs.checks import check_group
from tests.support.tiny_run import MakeConfig


@pytest.fixture(autouse=True)
def unchecked(monkeypatch: pytest.MonkeyPatch) -> None:
    """As in a notebook, where nothing holds the arguments against the annotations."""
    monkeypatch.setattr(jaxtyping.config, "jaxtyping_disable", True)


@pytest.mark.parametrize(
    ("given", "line"),
    [
        ({"n": 0}, "n: must be greater than or equal to 1, not 0"),
        ({"n": 2.5}, "n: must be a valid integer, not 2.5"),
        ({"n": None}, "n: must be a valid integer, not null"),
        ({"seed": -1}, "seed: must be greater than or equal to 0, not -1"),
        ({"seed": 2**64}, "seed: must be less than 4294967296"),
        ({"seed": None}, "seed: must be a valid integer, not null"),
        ({"checkpoint": 1}, "checkpoint: must be a valid string, not 1"),
        ({"strength": "1"}, "strength: must be a valid number, not '1'"),
        ({"strength": float("nan")}, "strength: must be "),
        ({"height": 0}, "height: must be greater than or equal to 1, not 0"),
        ({"prompts": [1]}, r"prompts: must be a text or a list of texts, not \[1\]"),
        ({"prompts": 3}, "prompts: must be a text or a list of texts, not 3"),
        ({"prompts": {"a": 1}}, "prompts: must be a text or a list of texts, not "),
    ],
    ids=str,
)
def test_sample_refuses_in_one_line(given: dict[str, Any], line: str, tmp_path: Path):
    with pytest.raises(nf.UserError, match=f"^{line}") as caught:
        nf.sample("nano", **given)
    assert "\n" not in str(caught.value)


def test_what_is_meant_is_taken():
    asked: dict[str, Any] = {"checkpoint": None, "strength": 2, "sampler": None, "width": None}
    found = checked(SampleArguments, n=np.int64(3), seed=np.uint8(1), height=np.int32(8), **asked)
    assert (found.n, found.seed, found.height, found.strength) == (3, 1, 8, 2.0)
    assert texts(None) == []
    assert texts("a fox") == ["a fox"]
    assert texts(word for word in ("a", "b")) == ["a", "b"]


@pytest.mark.parametrize(
    ("given", "line"),
    [
        ({"n": True}, "n: must be a valid integer, not True"),
        ({"n": 4.0}, "n: must be a valid integer, not 4.0"),
        ({"features": None}, "features: must be a valid string, not null"),
        ({"metrics": 3}, "metrics: must be a valid list, not 3"),
    ],
    ids=str,
)
def test_evaluate_refuses_in_one_line(given: dict[str, Any], line: str, tmp_path: Path):
    with pytest.raises(nf.UserError, match=f"^{line}"):
        nf.evaluate(tmp_path, **given)


@pytest.mark.parametrize(
    ("given", "line"),
    [
        ({"seeds": 1.5}, "seeds: must be a valid integer, not 1.5"),
        ({"seeds": True}, "seeds: must be a valid integer, not True"),
        ({"minutes": 0}, "minutes: must be greater than 0, not 0"),
        ({"beta": -1.0}, "beta: must be greater than 0, not -1.0"),
        ({"n": "8"}, "n: must be a valid integer, not '8'"),
        ({"methods": 3}, "methods: must be a valid list, not 3"),
        ({"calibrate": 1}, "calibrate: must be a valid boolean, not 1"),
    ],
    ids=str,
)
def test_compare_refuses_in_one_line(given: dict[str, Any], line: str, tmp_path: Path):
    with pytest.raises(nf.UserError, match=f"^{line}"):
        nf.compare(**{"methods": "ddpo", "out": tmp_path, **given})
    assert set(given) <= set(CompareArguments.model_fields)


@pytest.mark.parametrize("value", [3, ["a"], b"a"], ids=str)
def test_what_is_no_place_is_one_line(value: Any):
    with pytest.raises(nf.UserError, match=r"^out: must be a path, not "):
        nf.sample("nano", "a circle", n=1, out=value)
    with pytest.raises(nf.UserError, match=r"^out: must be a path, not "):
        nf.compare(methods="ddpo", out=value)


def test_whatever_knows_its_path_is_one(tmp_path: Path):
    (tmp_path / "in").mkdir()
    with os.scandir(tmp_path) as found:
        assert [place("out", entry) for entry in found] == [tmp_path / "in"]


def test_the_class_of_a_run_names_what_opens_one(tmp_path: Path):
    with pytest.raises(nf.UserError, match=r"^Run: .* nf\.Run\.open\(folder\)"):
        nf.Run(str(tmp_path))  # pyright: ignore[reportCallIssue]


def a_run(folder: Path, make_config: MakeConfig) -> nf.Run:
    """Nobody trained it: only its arguments are looked at."""
    return nf.Run(folder, make_config(), {}, folder / "lora")


def test_other_ways_to_call_the_class_name_it_too(tmp_path: Path, make_config: MakeConfig):
    with pytest.raises(nf.UserError, match=r"^Run: .* nf\.Run\.open\(folder\)"):
        nf.Run(folder=tmp_path)  # pyright: ignore[reportCallIssue]
    run = a_run(tmp_path, make_config)
    assert pickle.loads(pickle.dumps(run)) == copy.deepcopy(run) == run
    assert {run: 1}[copy.copy(run)] == 1  # its settings have lists, which have no hash


@pytest.mark.parametrize("dtype", ["float16", np.float32, torch.int8], ids=str)
def test_a_dtype_is_torchs(dtype: Any, tmp_path: Path, make_config: MakeConfig):
    """A name of one was taken for float32."""
    with pytest.raises(nf.UserError, match=r"^dtype: must be one of torch's, such as torch\.float"):
        a_run(tmp_path, make_config).pipeline(dtype)


@pytest.mark.parametrize(
    ("given", "line"),
    [
        ({"form": None}, "form: must be a valid string, not null"),
        ({"form": ["kohya"]}, r"form: must be a valid string, not \['kohya'\]"),
        ({"dtype": torch.float16}, "dtype: must be a valid string, not torch.float16"),
        ({"checkpoint": 3}, "checkpoint: must be a valid string, not 3"),
    ],
    ids=str,
)
def test_export_refuses_in_one_line(
    given: dict[str, Any], line: str, tmp_path: Path, make_config: MakeConfig
):
    with pytest.raises(nf.UserError, match=f"^{line}"):
        a_run(tmp_path, make_config).export(**{"form": "kohya", **given})


@pytest.mark.parametrize("value", [None, 3, ["a", "b"]])
def test_what_is_no_run_is_one_line(value: Any):
    for function in (nf.Run.open, nf.evaluate, nf.compare):
        with pytest.raises(nf.UserError, match=r"^run: must be a run or the folder of one, not "):
            function(value)


def test_overwrite_of_runs_is_named_for_what_it_is(tmp_path: Path):
    with pytest.raises(nf.UserError, match=r"^--overwrite: it is for methods"):
        compare_asked([tmp_path], [], [], tmp_path, training={}, overwrite=True)


def test_a_method_that_compares_an_updates_images_needs_two(make_config: MakeConfig):
    one = ["training.prompts_per_update=1", "training.images_per_prompt=1"]
    for method in (
        DDPO(beta=1.0, advantage="batch"),
        RewardWeightedRegression(beta=1.0, normalization="batch"),
    ):
        check_group(method, make_config(one[0]))
        with pytest.raises(nf.UserError, match=r"^training\.images_per_prompt: .* of an update"):
            check_group(method, make_config(*one))


@pytest.mark.parametrize(
    "ask",
    [
        lambda run: run.metrics,
        lambda run: run.pipeline(),
        lambda run: run.export("diffusers"),
        lambda run: nf.evaluate(run),
        lambda run: nf.sample(run),
        lambda run: nf.compare(run),
    ],
    ids=["metrics", "pipeline", "export", "evaluate", "sample", "compare"],
)
def test_a_run_whose_folder_has_moved_says_so(
    ask: Callable[[nf.Run], Any], tmp_path: Path, make_config: MakeConfig
):
    """No update is a figure too."""
    run = nf.Run(tmp_path / "gone", make_config(), {}, tmp_path / "gone" / "lora")
    with pytest.raises(
        nf.UserError, match=r"^run: [^\n]*gone is not there any more; open the run wher"
    ):
        ask(run)
