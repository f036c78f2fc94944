"""The guard: its figures, its budgets, what it ends, and what it keeps."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any
from unittest.mock import Mock

import pytest
import torch

from nablaflow.config.parse import parse_config
from nablaflow.config.recipe import Config
from nablaflow.errors import UserError
from nablaflow.evaluation.guard import Look
from nablaflow.metrics.diversity import diversity
from nablaflow.models import DiffusionModel
from nablaflow.runs import align
from nablaflow.runs.setup import Parts
from nablaflow.storage.checkpoint import Checkpoint, load_checkpoint, save_best, save_checkpoint
from nablaflow.storage.manifest import list_checkpoints
from nablaflow.storage.records import read_records

pytestmark = pytest.mark.usefixtures("lean_runs")

MakeConfig = Callable[..., Config]
MakeParts = Callable[..., Parts]
GUARD = ("guard.every=1", "guard.n=6", "guard.held_out.reward=contrast")
# One update at this rate takes the tiny model far from its reference.
FAST = "optimizer.learning_rate=0.3"


def nothing(done: int) -> None:
    pass


def looks(folder: Path) -> list[dict[str, Any]]:
    return [
        {key: value for key, value in record.items() if not key.endswith("seconds")}
        for record in read_records(folder)
    ]


def summary_of(folder: Path) -> dict[str, Any]:
    return json.loads((folder / "summary.json").read_text())["guard"]


# --- the figures ----------------------------------------------------------------------------------


def test_an_untrained_policy_is_the_reference(make_parts: MakeParts):
    guard = make_parts(*GUARD).trainer.guard
    assert guard is not None
    guard.begin(nothing)
    look = guard.look(1, nothing)
    assert look.kl == 0.0
    assert look.diversity == pytest.approx(1.0, abs=1e-9)
    assert guard.reference is not None
    assert look.reward == pytest.approx(guard.reference["reward"], abs=1e-6)
    assert look.held_out == pytest.approx(guard.reference["held_out"], abs=1e-6)


def test_the_figures_are_those_of_the_images(
    make_parts: MakeParts, monkeypatch: pytest.MonkeyPatch
):
    parts = make_parts(*GUARD, "evaluation.batch=4")
    images = []
    decode = type(parts.model).decode

    def watch(model: Any, x0: torch.Tensor) -> torch.Tensor:
        images.append(decode(model, x0))
        return images[-1]

    guard = parts.trainer.guard
    assert guard is not None
    monkeypatch.setattr(type(parts.model), "decode", watch)
    guard.begin(nothing)
    pictures = torch.cat(images)  # decoded once for both rewards
    assert guard.reference is not None
    luma = (pictures * torch.tensor([0.2126, 0.7152, 0.0722])[:, None, None]).sum(1)
    assert guard.reference["held_out"] == pytest.approx(
        luma.flatten(1).std(1, correction=0).mean().item(), rel=1e-3
    )
    # The prompts come in turns, so each has two images, three apart.
    cells = torch.nn.functional.avg_pool2d(pictures, 2).flatten(1)
    between = (cells[:3] - cells[3:]).norm(dim=1).mean().item()
    assert guard.reference["diversity"] == pytest.approx(between, rel=1e-4)
    assert between == pytest.approx(diversity(cells, torch.arange(6) % 3).value, rel=1e-4)


@pytest.mark.usefixtures("train_only")
def test_it_looks_at_intervals_and_at_the_end(make_config: MakeConfig, tmp_path: Path):
    align.run(make_config(*GUARD, "guard.every=3"))
    found = [record["update"] for record in looks(tmp_path / "run") if "guard_kl" in record]
    assert found == [3, 4]


# --- budgets --------------------------------------------------------------------------------------


def look(update: int, **changes: float) -> Look:
    return Look(
        **{"update": update, "kl": 1.0, "diversity": 0.9, "reward": 0.0, "held_out": 0.5, **changes}
    )


@pytest.mark.parametrize(
    ("found", "metric"),
    [
        ({}, None),
        ({"kl": 2.0}, None),
        ({"kl": 2.1}, "kl"),
        ({"kl": float("nan")}, "kl"),
        ({"diversity": 0.79}, "diversity"),
        ({"held_out": 0.39}, "held_out"),
    ],
)
def test_what_exceeds_a_budget(make_parts: MakeParts, found: dict[str, float], metric: str | None):
    budgets = ("guard.max_kl=2.0", "guard.min_diversity=0.8", "guard.held_out.min=0.4")
    guard = make_parts(*GUARD, *budgets).trainer.guard
    assert guard is not None
    guard.judge(look(7, **found))
    assert (guard.trip and guard.trip.metric) == metric
    if guard.trip is not None:
        assert guard.trip.update == 7


def test_the_best_has_the_most_reward_of_those_within_the_budgets(make_parts: MakeParts):
    guard = make_parts(*GUARD, "guard.max_kl=2.0").trainer.guard
    assert guard is not None
    better = [
        guard.judge(look(update, reward=reward, kl=kl))
        for update, (reward, kl) in enumerate([(0.1, 1.0), (0.3, 1.5), (0.2, 1.5), (0.9, 3.0)])
    ]
    assert better == [True, True, False, False]
    assert guard.best is not None
    assert guard.best.update == 1


# --- runs -----------------------------------------------------------------------------------------


def test_a_run_that_the_guard_stops(make_config: MakeConfig, tmp_path: Path):
    run = tmp_path / "run"
    align.run(make_config(*GUARD, FAST, "guard.max_kl=1e-3"))
    (record,) = looks(run)
    found = summary_of(run)
    assert found["tripped"] == {
        "metric": "kl",
        "value": record["guard_kl"],
        "limit": 1e-3,
        "update": 1,
    }
    assert record["guard_kl"] > 1e-3
    assert found["best_update"] == 0
    assert found["best_checkpoint"] == "checkpoints/best-000000"
    assert (run / found["best_checkpoint"] / "policy.safetensors").is_file()
    assert "The guard stopped the run after update 1" in (run / "report.html").read_text()


@pytest.mark.usefixtures("train_only")
def test_reward_backpropagation_without_a_prior_is_stopped_on_its_way(
    make_config: MakeConfig, tmp_path: Path
):
    draft = ("method={name: draft, beta: 100.0, k: 1}", "flow=null", "training.updates=20")
    rate, budget = "optimizer.learning_rate=0.005", "guard.max_kl=3.0"
    align.run(make_config(*GUARD, *draft, rate, budget))
    found = looks(tmp_path / "run")
    kl = [record["guard_kl"] for record in found]
    # It leaves the reference step by step, and the reward grows meanwhile.
    assert 2 < len(found) < 20
    assert kl == sorted(kl)
    assert kl[-1] > 3.0 >= kl[-2]
    assert found[-1]["guard_reward"] > found[0]["guard_reward"]
    best = [file.name for file in (tmp_path / "run/checkpoints").glob("best-*")]
    assert best == [f"best-{len(found) - 1:06d}"]


@pytest.mark.usefixtures("train_only")
def test_a_roll_back_ends_with_the_best_policy(make_config: MakeConfig, tmp_path: Path):
    run = tmp_path / "run"
    roll = ("guard.max_kl=1e-3", "guard.action=roll-back")
    align.run(make_config(*GUARD, FAST, *roll))
    ended = load_checkpoint(list_checkpoints(run)[-1])
    best = load_checkpoint(run / "checkpoints" / "best-000000")
    assert ended.update == 1
    for group, tensors in best.tensors.items():
        for name, value in tensors.items():
            assert torch.equal(ended.tensors[group][name], value)
    # What is resumed is over already.
    align.run(make_config(*GUARD, FAST, *roll), resume=True)
    assert len(looks(run)) == 1


@pytest.mark.usefixtures("train_only")
def test_a_resumed_run_has_the_same_looks_and_the_same_best(
    make_config: MakeConfig, tmp_path: Path
):
    straight, longer = tmp_path / "straight", tmp_path / "longer"
    align.run(make_config(*GUARD, f"output_dir={straight}"))
    align.run(make_config(*GUARD, f"output_dir={longer}", "training.updates=2"))
    align.run(make_config(*GUARD, f"output_dir={longer}"), resume=True)
    assert looks(longer) == looks(straight)
    first, second = (load_checkpoint(list_checkpoints(run)[-1]) for run in (straight, longer))
    assert first.state["guard"] == second.state["guard"]
    assert first.state["guard"]["last"]["update"] == 4


def test_pruning_keeps_the_best_of_every_checkpoint_that_is_kept(tmp_path: Path):
    def at(update: int) -> Checkpoint:
        return Checkpoint(update, 0.0, {"policy": {"a": torch.ones(1)}}, {})

    for update in range(1, 7):
        if update in (1, 2, 4):
            save_best(tmp_path, at(update))
        save_checkpoint(tmp_path, at(update), keep=2)
        kept = sorted(path.name for path in (tmp_path / "checkpoints").glob("best-*"))
        if update == 4:
            assert kept == ["best-000002", "best-000004"], "step 3 still goes back to 2"
    assert kept == ["best-000004"]


# --- mistakes -------------------------------------------------------------------------------------

MISTAKES = {
    "unknown metric": ("guard.max_fid=3", r"^guard\.max_fid: unknown key"),
    "nothing to trip": ("guard.action=roll-back", r"^guard: .*action asks for; set guard\.max_kl"),
    "unknown reward": ("guard.held_out.reward=contrst", r"^guard\.held_out\.reward: .*contrast\?"),
    "the trained reward": ("guard.held_out.reward=warmth", r"^guard\.held_out\.reward: warmth is"),
    "too few": ("guard.n=5", r"^guard\.n: .*use 6 or more"),
}


@pytest.mark.parametrize("case", MISTAKES)
def test_a_mistake_is_one_line(make_parts: MakeParts, case: str):
    override, words = MISTAKES[case]
    with pytest.raises(UserError, match=words) as caught:
        make_parts(*GUARD, override)
    assert "\n" not in str(caught.value)


def test_a_mistake_is_told_before_the_reference_is_sampled(
    make_parts: MakeParts, monkeypatch: pytest.MonkeyPatch
):
    work = Mock(side_effect=AssertionError)
    monkeypatch.setattr("nablaflow.runs.setup.find_kernels", work)
    monkeypatch.setattr("nablaflow.runs.choices.find_beta", work)
    with pytest.raises(UserError, match=r"^guard\.n: "):
        make_parts(*GUARD, "guard.n=5", "sampler.variance=analytic", "method.beta=auto")


def test_a_budget_that_the_reference_exceeds_leaves_nothing_behind(
    make_config: MakeConfig, tmp_path: Path
):
    with pytest.raises(UserError, match=r"^guard\.held_out\.min: the reference itself"):
        align.run(make_config(*GUARD, "guard.held_out.min=0.9"))
    assert not (tmp_path / "run").exists()


def test_without_a_guard_nothing_is_recorded(make_parts: MakeParts):
    assert make_parts().trainer.guard is None
    assert issubclass(type(make_parts().model), DiffusionModel)


# --- the one that nobody asked for ----------------------------------------------------------------


def test_without_a_word_about_it_there_is_a_guard_that_warns(settings: dict[str, Any]):
    del settings["guard"]
    guard = parse_config(settings).guard
    assert guard is not None
    assert guard.action == "warn"
    assert all(guard.limits[metric] is not None for metric in ("kl", "diversity"))


def test_it_names_what_happens_and_lets_the_run_end(
    make_config: MakeConfig, tmp_path: Path, capsys: pytest.CaptureFixture[str]
):
    warn = ("guard.every=auto", "guard.n=auto", "guard.max_kl=1e-3", "guard.action=warn")
    align.run(make_config(*warn, FAST))
    run = tmp_path / "run"
    found = looks(run)
    assert [record["update"] for record in found if "guard_kl" in record] == [1, 2, 3, 4]
    assert summary_of(run)["last"]["kl"] > 1e-3
    words = "more than 0.001: this run is leaving its prior"
    assert words in (run / "report.html").read_text()
    shown = " ".join(capsys.readouterr().err.split())
    assert shown.count("is leaving its prior") == 1
    assert "after update 1: divergence" in shown


AUTO = ("guard.every=auto", "guard.n=auto", "guard.action=warn", "training.minutes=1")


def ticking(parts: Parts, update: float) -> None:
    """A clock by which an update takes so many seconds, and a look none."""
    trainer = parts.trainer
    trainer.clock = lambda: update * trainer.update


@pytest.mark.parametrize(
    ("updates", "seconds", "expected"),
    [
        (1000, 7.0, [2, 4, 6, 7, 9]),  # 12, 24, 36, 48 seconds are behind, and all 60
        (1000, 40.0, [1, 2]),
        (10, 1.0, [2, 4, 6, 8, 10]),  # its updates end it
    ],
)
def test_a_run_by_time_is_looked_at_five_times(
    make_parts: MakeParts, tmp_path: Path, updates: int, seconds: float, expected: list[int]
):
    found = timed(make_parts(*AUTO, f"training.updates={updates}"), tmp_path, seconds)
    assert found == expected


def test_a_resumed_run_by_time_looks_when_it_would_have(make_parts: MakeParts, tmp_path: Path):
    parts = make_parts(*AUTO, "training.updates=1000")
    first = timed(parts, tmp_path, 7.0, until=5)
    again = make_parts(*AUTO, "training.updates=1000")
    again.trainer.restore(parts.trainer.checkpoint())
    assert not again.trainer.owed_look(tmp_path, nothing)
    assert [*first, *timed(again, tmp_path, 7.0)] == [2, 4, 6, 7, 9]
    more = make_parts(*AUTO, "training.updates=1000", "training.minutes=2")
    more.trainer.restore(again.trainer.checkpoint())
    assert timed(more, tmp_path, 7.0) == [11, 14, 18], "24 seconds apart, the last at the end"


def timed(parts: Parts, run: Path, seconds: float, until: int | None = None) -> list[int]:
    """The updates that the guard looked at, by a clock of so many seconds for each."""
    trainer, guard = parts.trainer, parts.trainer.guard
    assert guard is not None
    ticking(parts, seconds)
    trainer.begin_guard(nothing)
    found: list[int] = []

    def on_update(record: dict[str, Any]) -> bool:
        found.extend([record["update"]] * ("guard_diversity" in record))
        return record["update"] == until

    trainer.train(run, on_update, lambda: None)
    return found


def test_left_to_itself_it_looks_five_times_at_a_few_prompts(make_parts: MakeParts):
    prompts = json.dumps([f"shape {number}" for number in range(40)])
    auto = ("guard.every=auto", "guard.n=auto", f"prompts={prompts}", "evaluation.n=80")
    guard = make_parts(*auto, "training.updates=52").trainer.guard
    assert guard is not None
    assert (guard.n, len(guard.prompts), guard.every) == (32, 16, 11)
