"""`nablaflow.align`, as a notebook calls it."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import jaxtyping
import numpy as np
import pytest
import torch
import yaml
from accelerate.state import AcceleratorState

import nablaflow as nf
from nablaflow.config.recipe import Config
from nablaflow.errors import UserError
from nablaflow.runs.evaluate import evaluate_run

pytestmark = pytest.mark.usefixtures("lean_runs")


def redness(images: torch.Tensor, prompts: list[str]) -> torch.Tensor:
    return images[:, 0].mean((1, 2))


@pytest.fixture
def arguments(tiny_model: Path, tmp_path: Path) -> dict[str, Any]:
    return {
        "model": str(tiny_model),
        "reward": "brightness",
        "prompts": ["a circle", "a star"],
        "method": nf.ResidualNablaDB(beta=10.0, reverse_weight=0.0),
        "flow": None,
        "sampler": {"steps": 4},
        "adapter": {"rank": 2},
        "evaluation": {"n": 4, "batch": 4},
        "output_dir": tmp_path / "run",
    }


def _not_run(seen: list[Config]) -> Any:
    """In place of `nablaflow.runs.align.run`: keeps the configuration."""

    def run(config: Config, **given: Any) -> nf.Run:
        seen.append(config)
        return nf.Run(config.output_dir, config, {}, config.output_dir)

    return run


SMALL = {
    "prompts_per_update": 1,
    "images_per_prompt": 2,
    "transition_fraction": 0.5,
    "trackers": [],
    "device": "cpu",
}


def test_the_number_of_updates_is_said_once(arguments: dict[str, Any]):
    run = nf.align(**arguments, training={**SMALL, "updates": 2})
    assert run.summary["updates"] == 2
    for training in ({**SMALL, "updates": 2}, nf.TrainingSettings(updates=2)):
        with pytest.raises(UserError, match=r"^updates: training has them as well"):
            nf.align(**arguments, updates=3, training=training)


def test_the_older_name_of_updates_is_read_and_told(
    arguments: dict[str, Any], capsys: pytest.CaptureFixture[str]
):
    run = nf.align(**arguments, steps=1, training=nf.TrainingSettings(**SMALL))
    assert run.summary["updates"] == 1
    assert "steps: is called updates now" in capsys.readouterr().err
    with pytest.raises(UserError, match=r"^steps: the older name of updates, which is given as"):
        nf.align(**arguments, steps=1, updates=1)


def test_a_group_as_an_object_is_taken_as_it_is_and_a_mapping_changes_the_defaults(
    arguments: dict[str, Any], monkeypatch: pytest.MonkeyPatch
):
    seen: list[Config] = []
    monkeypatch.setattr("nablaflow.api.align.run", _not_run(seen))
    whole = nf.OptimizerSettings(learning_rate=0.5)
    nf.align(**arguments, optimizer=whole, updates=7, training=nf.TrainingSettings(device="cpu"))
    nf.align(**arguments, optimizer={"learning_rate": 0.5})
    assert seen[0].optimizer == whole
    assert seen[0].training == nf.TrainingSettings(device="cpu", updates=7)
    assert (seen[1].optimizer.learning_rate, seen[1].optimizer.schedule) == (0.5, "cosine")
    assert seen[1].training == nf.TrainingSettings()


@pytest.mark.parametrize(
    ("word", "hint"),
    [
        ("update", r"did you mean updates\?"),
        ("samplers", r"did you mean sampler\?"),
        ("learning_rate", r"did you mean optimizer\.learning_rate\?"),
    ],
)
def test_an_unknown_argument_is_one_line(arguments: dict[str, Any], word: str, hint: str):
    with pytest.raises(
        UserError, match=rf"^{word}: nablaflow\.align has no such argument; {hint}$"
    ):
        nf.align(**arguments, **{word: 1})


def test_a_group_of_another_kind_is_one_line(arguments: dict[str, Any]):
    with pytest.raises(UserError, match=r"^optimizer\.steps: unknown key"):
        nf.align(**arguments, optimizer={"steps": 3})


def test_a_path_is_a_model_from_anywhere(
    arguments: dict[str, Any], tiny_model: Path, monkeypatch: pytest.MonkeyPatch
):
    seen: list[Config] = []
    monkeypatch.setattr("nablaflow.api.align.run", _not_run(seen))
    monkeypatch.chdir(tiny_model.parent)
    nf.align(**{**arguments, "model": Path(tiny_model.name)})
    assert seen[0].model == str(tiny_model)


def test_runs_of_other_precision_follow_each_other(arguments: dict[str, Any]):
    """Each has its own, although accelerate keeps the first one's for the process."""
    for precision in ("bf16", "float32"):
        run = nf.align(
            **arguments, updates=1, overwrite=True, training={**SMALL, "precision": precision}
        )
        saved = yaml.safe_load((run.folder / "config.yaml").read_text())
        assert saved["training"]["precision"] == precision
        assert AcceleratorState._shared_state == {}


def test_a_function_of_ones_own_is_not_taken_for_a_built_in_one(
    arguments: dict[str, Any], tmp_path: Path
):
    redness.__name__ = "brightness"
    nf.align(**{**arguments, "reward": redness}, updates=1, training=SMALL)
    saved = yaml.safe_load((tmp_path / "run" / "config.yaml").read_text())
    assert saved["reward"] == "python:brightness"
    with pytest.raises(UserError, match="put it in a file"):
        evaluate_run(tmp_path / "run", None)


def test_a_run_is_measured_by_its_own_reward_as_its_folder_is(arguments: dict[str, Any]):
    """The session has the reward itself, which was taken for another in its place."""
    run = nf.align(**arguments, updates=1, training=SMALL)
    found, expected = (nf.evaluate(of, n=6, only_last=True) for of in (run, run.folder))
    assert found == expected
    assert found["fit"] is not None
    assert found["bank_for_tilt"]
    other = nf.evaluate(run, n=6, only_last=True, reward="brightness")
    assert other["fit"] is None


def test_functions_may_be_parts_of_a_reward(arguments: dict[str, Any]):
    def blueness(images: Any, prompts: list[str]) -> Any:
        return images[:, 2].mean((1, 2))

    parts = [redness, {"name": "normalized", "of": blueness}]
    arguments["reward"] = {"name": "minimum", "of": parts}
    run = nf.align(**arguments, updates=1, training=SMALL)
    saved = yaml.safe_load((run.folder / "config.yaml").read_text())["reward"]
    named = [f"python:{redness.__name__}", {"name": "normalized", "of": "python:blueness"}]
    assert saved == {"name": "minimum", "of": named}
    assert nf.evaluate(run, n=6, only_last=True)["fit"] is not None
    cap = {"name": "cap", "of": blueness, "at": 0.4, "softness": 0.1}
    assert nf.evaluate(run, n=6, only_last=True, reward=cap)["policy"]["reward_mean"] < 0.4
    with pytest.raises(UserError, match="put it in a file"):
        evaluate_run(run.folder, 6)


def test_prompts_from_a_file_are_found_from_anywhere(
    arguments: dict[str, Any], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    (tmp_path / "prompts.txt").write_text("a circle\na star\n")
    monkeypatch.chdir(tmp_path)
    nf.align(**{**arguments, "prompts": "prompts.txt"}, updates=1, training=SMALL)
    monkeypatch.chdir("/")
    assert evaluate_run(tmp_path / "run", 6)["policy"]["n"] == 6


def test_a_run_without_a_bank_says_what_measures_the_exact_tilt(
    arguments: dict[str, Any], capsys: pytest.CaptureFixture[str]
):
    arguments["evaluation"]["batch"] = 128
    run = nf.align(**arguments, updates=1, training=SMALL)
    line = f"--resume evaluation.bank={run.summary['bank_for_tilt']}"
    assert run.summary["exact_tilt"] is None
    told = (capsys.readouterr().err, (run.folder / "log.txt").read_text(), run.report.read_text())
    assert all(line in text for text in told)
    assert evaluate_run(run.folder, 6)["bank_for_tilt"]
    assert "bank_for_tilt" not in evaluate_run(run.folder, 6, prompts=["a star"])
    bank = {"bank": run.summary["bank_for_tilt"], **arguments.pop("evaluation")}
    again = nf.align(**arguments, updates=1, training=SMALL, evaluation=bank, resume=True)
    assert again.summary["exact_tilt"] is not None
    assert line not in capsys.readouterr().err


@pytest.fixture
def unchecked(monkeypatch: pytest.MonkeyPatch) -> None:
    """As in a notebook, where nothing holds the arguments against the annotations."""
    monkeypatch.setattr(jaxtyping.config, "jaxtyping_disable", True)


@pytest.mark.usefixtures("unchecked")
@pytest.mark.parametrize(
    ("given", "line"),
    [
        ({"prompts": {"a star"}}, "prompts: a set has another order in every session"),
        ({"prompts": 3}, "prompts: must be a list of texts or the path of a text file, not 3"),
        ({"prompts": b"a fox"}, "prompts: must be a list of texts or the path of a text file, not"),
        ({"prompts": Path("none.txt")}, "prompts: no file .*none.txt"),
        ({"output_dir": None}, "output_dir: must be a path, not null$"),
        ({"output_dir": 3}, "output_dir: must be a path, not 3$"),
        ({"output_dir": ""}, "output_dir: is empty; give a path$"),
        ({"model_lora": 3}, "model_lora: must be a valid string, not 3$"),
        ({"training": None, "updates": 1}, "training: must hold settings of its own, .* not null$"),
        ({"training": 3, "updates": 1}, "training: must hold settings of its own, .* not 3$"),
        ({"method": nf.ResidualNablaDB}, "method: ResidualNablaDB is a class; make one, Residual"),
        ({"method": nf.BestOfN()}, "method: BestOfN trains nothing; give a method to train by$"),
        ({"resume": True, "overwrite": True}, "overwrite=True: it replaces the run that resume=T"),
    ],
    ids=str,
)
def test_what_is_of_another_kind_is_one_line(
    arguments: dict[str, Any], given: dict[str, Any], line: str
):
    with pytest.raises(UserError, match=f"^{line}") as caught:
        nf.align(**{**arguments, **given})
    assert "\n" not in str(caught.value)


def test_prompts_may_be_a_file_or_anything_that_gives_them(
    arguments: dict[str, Any], monkeypatch: pytest.MonkeyPatch, tmp_path: Path
):
    seen: list[Config] = []
    monkeypatch.setattr("nablaflow.api.align.run", _not_run(seen))
    file = tmp_path / "prompts.txt"
    both = ["a", "b"]
    for prompts in (file, (name for name in both), np.array(both), dict.fromkeys(both).keys()):
        nf.align(**{**arguments, "prompts": prompts})
    assert [config.prompts for config in seen] == [str(file), both, both, both]


@pytest.mark.usefixtures("unchecked")
def test_whole_numbers_of_numpy_are_numbers(
    arguments: dict[str, Any], monkeypatch: pytest.MonkeyPatch
):
    seen: list[Config] = []
    monkeypatch.setattr("nablaflow.api.align.run", _not_run(seen))
    sampler = nf.SamplerSettings(steps=np.int64(4))  # pyright: ignore[reportArgumentType]
    nf.align(
        **{**arguments, "sampler": sampler, "seed": np.uint8(3), "evaluation": {"n": np.int32(8)}},
        updates=np.int64(7),
    )
    (config,) = seen
    assert (config.seed, config.training.updates) == (3, 7)
    assert (config.sampler.steps, config.evaluation.n) == (4, 8)
    assert {type(config.seed), type(config.sampler.steps), type(config.evaluation.n)} == {int}
    with pytest.raises(UserError, match=r"^seed: must be a valid integer, not True$"):
        nf.align(**arguments, seed=np.bool_(True))
