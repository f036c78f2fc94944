"""A resumed run is, bit for bit on the processor, the run that was never interrupted."""

from __future__ import annotations

import os
import signal
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch

from nablaflow.config.recipe import Config
from nablaflow.errors import UserError
from nablaflow.rewards import NamedReward, load
from nablaflow.runs import align
from nablaflow.storage.checkpoint import Checkpoint, load_checkpoint
from nablaflow.storage.manifest import list_checkpoints
from tests.support.loras import stock_lora
from tests.support.run_folders import records

pytestmark = pytest.mark.usefixtures("train_only")

MakeConfig = Callable[..., Config]
COSINE = "optimizer.schedule=cosine"


@pytest.fixture(scope="module")
def made() -> dict[tuple[str, ...], Path]:
    """The folders of `straight`."""
    return {}


@pytest.fixture
def straight(
    make_config: MakeConfig,
    made: dict[tuple[str, ...], Path],
    tmp_path_factory: pytest.TempPathFactory,
) -> Callable[..., Path]:
    """``straight("seed=1")``: a run that nothing interrupts, made once for all that read it."""

    def folder(*overrides: str) -> Path:
        if overrides not in made:
            run = tmp_path_factory.mktemp("straight") / "run"
            align.run(make_config(f"output_dir={run}", *overrides))
            made[overrides] = run
        return made[overrides]

    return folder


def assert_equal(found: Any, wanted: Any, place: str = "") -> None:
    """Bit for bit, through mappings and lists."""
    if isinstance(wanted, torch.Tensor):
        assert torch.equal(found, wanted), place
    elif isinstance(wanted, dict):
        assert found.keys() == wanted.keys(), place
        for key, value in wanted.items():
            assert_equal(found[key], value, f"{place}/{key}")
    elif isinstance(wanted, list | tuple):
        assert len(found) == len(wanted), place
        for index, value in enumerate(wanted):
            assert_equal(found[index], value, f"{place}/{index}")
    else:
        assert found == wanted, place


def last(run: Path) -> Checkpoint:
    return load_checkpoint(list_checkpoints(run)[-1])


def assert_same_run(found: Path, wanted: Path) -> None:
    assert [record["update"] for record in records(wanted)] == [1, 2, 3, 4]
    assert records(found) == records(wanted)
    first, second = last(found), last(wanted)
    assert first.update == second.update == 4
    assert_equal(first.tensors, second.tensors)
    assert_equal(first.state, second.state)
    groups = {"policy", "policy_average", "flow", "flow_target"}
    assert set(first.tensors) - {"gamma"} == groups


def press_ctrl_c_after(update: int, patch: pytest.MonkeyPatch) -> None:
    append = align.append_record

    def press(run: Path, record: dict[str, Any]) -> None:
        append(run, record)
        if record["update"] == update:
            os.kill(os.getpid(), signal.SIGINT)

    patch.setattr(align, "append_record", press)


@pytest.mark.parametrize(
    "chosen",
    [
        ["training.data=on-policy"],
        ["training.data=previous-rollout"],
        ["training.data=previous-rollout", "method=nabla-td", "training.estimate_batch=3"],
    ],
    ids=["on-policy", "previous-rollout", "states of the previous rollout"],
)
def test_after_ctrl_c(
    make_config: MakeConfig,
    straight: Callable[..., Path],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    chosen: list[str],
):
    overrides, stopped = (*chosen, COSINE), tmp_path / "stopped"
    with monkeypatch.context() as patch:
        press_ctrl_c_after(2, patch)
        with pytest.raises(align.Interrupted, match=r"after update 2.*--resume"):
            align.run(make_config(f"output_dir={stopped}", *overrides))
    assert [path.name for path in list_checkpoints(stopped)] == ["step-000002"]
    align.run(make_config(f"output_dir={stopped}", *overrides), resume=True)
    assert_same_run(stopped, straight(*overrides))


def test_a_launcher_may_repeat_the_signal(
    make_config: MakeConfig, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    """As torchrun does where all of a job's processes were told, itself among them."""
    append = align.append_record

    def end_all(run: Path, record: dict[str, Any]) -> None:
        append(run, record)
        for _ in range(2):
            os.kill(os.getpid(), signal.SIGTERM)

    monkeypatch.setattr(align, "append_record", end_all)
    config = make_config(f"output_dir={tmp_path}/run")
    with pytest.raises(KeyboardInterrupt):
        align.run(config)
    assert list_checkpoints(tmp_path / "run") == []
    monkeypatch.setenv("TORCHELASTIC_RUN_ID", "job")
    with pytest.raises(align.Interrupted, match="after update 1"):
        align.run(config, resume=True)
    assert [path.name for path in list_checkpoints(tmp_path / "run")] == ["step-000001"]


@pytest.mark.parametrize(
    ("chosen", "kept"),
    [
        (["adapter.dora=true"], "lora_magnitude_vector"),
        (["method={name: diffusion-nft, beta: 1.0}"], "lora_A"),
    ],
    ids=["DoRA", "an old policy"],
)
def test_with_what_else_trains_or_samples(
    make_config: MakeConfig,
    straight: Callable[..., Path],
    tmp_path: Path,
    chosen: list[str],
    kept: str,
):
    halves, wanted = tmp_path / "halves", straight(*chosen)
    align.run(make_config(f"output_dir={halves}", *chosen, "training.updates=2"))
    align.run(make_config(f"output_dir={halves}", *chosen), resume=True)
    assert records(halves) == records(wanted)
    assert_equal(last(halves).tensors, last(wanted).tensors)
    assert_equal(last(halves).state, last(wanted).state)
    group = last(wanted).tensors.get("old_policy", last(wanted).tensors["policy"])
    assert any(kept in name for name in group)
    assert ("old_policy" in last(wanted).tensors) == ("diffusion-nft" in chosen[0])


@pytest.mark.parametrize("data", ["on-policy", "previous-rollout"])
def test_after_a_reward_that_failed(
    make_config: MakeConfig, straight: Callable[..., Path], tmp_path: Path, data: str
):
    of_figures, failed = (f"training.data={data}", COSINE), tmp_path / "failed"
    chosen = (*of_figures, "training.checkpoint_every=50")
    warmth = load("warmth")

    def judge(images: torch.Tensor, prompts: list[str]) -> torch.Tensor:
        if (failed / "metrics.jsonl").is_file() and len(records(failed)) == 3:
            raise UserError("the judge is down")
        return warmth(images, prompts)

    with pytest.raises(UserError, match="the judge is down"):
        align.run(make_config(f"output_dir={failed}", *chosen), reward=NamedReward("warmth", judge))
    assert [path.name for path in list_checkpoints(failed)] == ["step-000003"]
    align.run(make_config(f"output_dir={failed}", *chosen), resume=True)
    assert_same_run(failed, straight(*of_figures))


def test_after_a_held_out_reward_that_failed(make_config: MakeConfig, tmp_path: Path):
    """The update before the look is kept, and the look is made up for."""
    failed, down = tmp_path / "failed", tmp_path / "down"
    (tmp_path / "judge.py").write_text(
        "from pathlib import Path\n"
        "def held_out(images, prompts):\n"
        f"    begun = Path({str(failed / 'metrics.jsonl')!r}).exists()\n"
        f"    if begun and Path({str(down)!r}).exists():\n"
        "        raise KeyError('the judge is down')\n"
        "    return images.mean((1, 2, 3))\n"
    )
    judge = f"{tmp_path / 'judge.py'}:held_out"
    chosen = (f"guard={{every: 3, n: 6, held_out: {{reward: '{judge}'}}, action: warn}}", COSINE)
    align.run(make_config(f"output_dir={tmp_path / 'whole'}", *chosen))
    down.touch()
    with pytest.raises(KeyError, match="the judge is down"):
        align.run(make_config(f"output_dir={failed}", *chosen))
    assert [path.name for path in list_checkpoints(failed)] == ["step-000003"]
    down.unlink()
    align.run(make_config(f"output_dir={failed}", *chosen), resume=True)
    assert "guard_held_out" in records(failed)[2]
    assert_same_run(failed, tmp_path / "whole")


def test_with_more_updates(make_config: MakeConfig, straight: Callable[..., Path], tmp_path: Path):
    longer = tmp_path / "longer"
    align.run(make_config(f"output_dir={longer}", "training.updates=2"))
    align.run(make_config(f"output_dir={longer}"), resume=True)
    assert_same_run(longer, straight())


GUARD = "guard={every: 1, n: 6, max_kl: 1e-9}"


@pytest.mark.parametrize(
    ("begun", "resumed", "told"),
    [
        ("training.updates=2", "training.updates=2", "training.updates: 2 updates are made, of 2;"),
        ("training.updates=2", "training.updates=1", "training.updates: 2 updates are made, of 1;"),
        ("training.minutes=1e-6", "training.minutes=1e-6", "training.minutes: "),
        (GUARD, GUARD, "guard: a budget of it ended the run after update 1;"),
    ],
    ids=["all", "fewer", "time", "guard"],
)
def test_a_run_that_is_at_its_end_says_that_nothing_is_trained(
    make_config: MakeConfig,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
    begun: str,
    resumed: str,
    told: str,
):
    gamma = "method.gamma=1"  # measuring it would take the time that there is
    align.run(make_config(f"output_dir={tmp_path}/run", gamma, begun))
    assert "nothing is trained" not in capsys.readouterr().err
    made = records(tmp_path / "run")
    align.run(make_config(f"output_dir={tmp_path}/run", gamma, resumed), resume=True)
    (line,) = [line for line in capsys.readouterr().err.splitlines() if line.startswith(told)]
    assert "nothing is trained, and the policy is measured as it is" in line
    assert records(tmp_path / "run") == made


def test_after_a_crash_the_updates_since_the_checkpoint_are_done_again(
    make_config: MakeConfig,
    straight: Callable[..., Path],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
):
    crashed, often = tmp_path / "crashed", "training.checkpoint_every=2"
    append = align.append_record

    def pull_the_plug(run: Path, record: dict[str, Any]) -> None:
        append(run, record)
        if record["update"] == 3:
            raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr(align, "append_record", pull_the_plug)
        with pytest.raises(KeyboardInterrupt):
            align.run(make_config(f"output_dir={crashed}", often))
    assert len(records(crashed)) == 3
    with (crashed / "metrics.jsonl").open("a") as file:
        file.write('{"update": 4, "reward_me')
    align.run(make_config(f"output_dir={crashed}", often), resume=True)
    assert_same_run(crashed, straight())


@pytest.mark.parametrize("setting", ["adapter.start", "model_lora"])
def test_with_a_lora_of_the_users(
    make_config: MakeConfig,
    straight: Callable[..., Path],
    tiny_model: Path,
    tmp_path: Path,
    setting: str,
):
    lora, halves = stock_lora(tiny_model, tmp_path / "lora"), tmp_path / "halves"
    rank = ("adapter.rank=4", "adapter.alpha=6.0")
    chosen = (f"{setting}={lora}", *rank)
    align.run(make_config(f"output_dir={halves}", *chosen, "training.updates=2"))
    align.run(make_config(f"output_dir={halves}", *chosen), resume=True)
    assert_same_run(halves, straight(*chosen))
    with_it, without = (last(straight(*own)).tensors["policy"] for own in (chosen, rank))
    assert any(not torch.equal(without[name], value) for name, value in with_it.items())


def test_with_a_base_in_four_bits(
    make_config: MakeConfig, straight: Callable[..., Path], tmp_path: Path
):
    """By the published step, which asks for second derivatives."""
    pytest.importorskip("bitsandbytes")
    chosen, halves = "model_quantization=nf4", tmp_path / "halves"
    align.run(make_config(f"output_dir={halves}", chosen, "training.updates=2"))
    with pytest.raises(UserError, match="model_quantization: the run to resume has another value"):
        align.run(make_config(f"output_dir={halves}"), resume=True)
    align.run(make_config(f"output_dir={halves}", chosen), resume=True)
    assert_same_run(halves, straight(chosen))
    with_it, without = (last(straight(*own)).tensors["policy"] for own in ((chosen,), ()))
    assert with_it.keys() == without.keys()
    assert any(not torch.equal(without[name], value) for name, value in with_it.items())


def test_without_a_checkpoint_it_starts_again(
    make_config: MakeConfig, straight: Callable[..., Path], tmp_path: Path
):
    run = tmp_path / "run"
    align.run(make_config(f"output_dir={run}", "training.updates=1"))
    for folder in list_checkpoints(run):
        folder.rename(run / folder.name)
    align.run(make_config(f"output_dir={run}"), resume=True)
    assert_same_run(run, straight())


def test_checkpoints_come_at_the_interval_and_at_the_end(make_config: MakeConfig, tmp_path: Path):
    run = tmp_path / "run"
    align.run(
        make_config(
            "training.updates=5", "training.checkpoint_every=2", "training.keep_checkpoints=9"
        )
    )
    names = [path.name for path in list_checkpoints(run)]
    assert names == ["step-000002", "step-000004", "step-000005"]
