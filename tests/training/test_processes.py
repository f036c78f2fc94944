"""Several processes over gloo do what one does, whole (DDP) or divided (FSDP2)."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from diffusers import StableDiffusionPipeline
from safetensors.torch import load_file

from nablaflow.config.overrides import dump_config
from nablaflow.config.recipe import Config
from nablaflow.diffusion import draw_transitions
from nablaflow.runs.align import run
from nablaflow.storage.checkpoint import load_checkpoint
from nablaflow.storage.manifest import list_checkpoints
from nablaflow.training.batches import RolloutPlan, Share
from tests.support.run_folders import records

MakeConfig = Callable[..., Config]
SOURCE = Path(__file__).parents[2] / "src"
FORKED = Path(__file__).parents[1] / "support" / "forked.py"


CPU = {"OMP_NUM_THREADS": "1", "CUDA_VISIBLE_DEVICES": ""}
FSDP2 = {"ACCELERATE_USE_FSDP": "true", "FSDP_VERSION": "2"}
ENGINES = {"ddp": {}, "fsdp2": FSDP2}
FULL = (
    *("adapter.kind=full", "adapter.ema_decay=0.9", "optimizer.learning_rate=1e-4"),
    # The published step makes more of where gathered weights lie in memory: see docs/scaling.md.
    *("method.step=exact", "method.reverse_weight=0", "flow=null"),
)


def launch(
    recipe: Path,
    processes: int,
    *more: str,
    env: dict[str, str] | None = None,
    restarts: int = 0,
    forked: bool = False,
) -> subprocess.CompletedProcess[str]:
    """``nablaflow train RECIPE --json`` under torch's own launcher.

    Args:
        forked: in its place as processes of one that has imported the libraries, which is most of
            what each of them would do.
    """
    path = os.pathsep.join(filter(None, [str(SOURCE), os.environ.get("PYTHONPATH")]))
    start = (
        [str(FORKED), str(processes)]
        if forked
        else [
            *("-m", "torch.distributed.run", "--standalone"),
            *(f"--nproc-per-node={processes}", f"--max-restarts={restarts}"),
            *("-m", "nablaflow"),
        ]
    )
    return subprocess.run(
        [sys.executable, *start, "train", str(recipe), "--json", *more],
        capture_output=True,
        text=True,
        env={**os.environ, "PYTHONPATH": path, **CPU, **(env or {})},
        check=False,
    )


def measured(folder: Path) -> dict[str, float]:
    """The policy's figures at the end, those that there are."""
    policy = json.loads((folder / "summary.json").read_text())["policy"]
    return {name: value for name, value in policy.items() if value is not None}


def assert_same_figures(found: Path, wanted: Path) -> None:
    """Of every update, of the guard's looks and at the end."""
    for ours, theirs in zip(records(found), records(wanted), strict=True):
        if theirs["mean_shift"] == 0.0:  # weights of the same values in another layout round apart
            ours, theirs = (r | {"mean_shift": 0.0, "kl": 0.0} for r in (ours, theirs))
        assert ours == pytest.approx(theirs, rel=1e-4, abs=1e-7)
    ours, theirs = (measured(run) for run in (found, wanted))
    assert ours == pytest.approx(theirs, rel=1e-4)
    name = "policy.safetensors"
    ours, theirs = (load_file(list_checkpoints(run)[-1] / name) for run in (found, wanted))
    assert ours.keys() == theirs.keys()
    # Adam makes full steps of gradients that are nothing but rounding, so not value by value.
    ours, theirs = (torch.cat([f[key].flatten() for key in theirs]) for f in (ours, theirs))
    assert (ours - theirs).norm() < 0.01 * theirs.norm()


def trained_twice(
    make_config: MakeConfig,
    tmp_path: Path,
    processes: int,
    engine: str,
    *overrides: str,
    forked: bool = False,
) -> tuple[Path, Path]:
    """Runs of the same recipe by several processes and by this one."""
    one, many = tmp_path / "one", tmp_path / "many"
    recipe = tmp_path / "recipe.yaml"
    # Where nothing else is, the processes find the CPU by themselves.
    recipe.write_text(
        dump_config(make_config(f"output_dir={many}", "training.device=auto", *overrides))
    )
    done = launch(recipe, processes, env=ENGINES[engine], forked=forked)
    assert done.returncode == 0, done.stderr[-3000:]
    # One object, although several processes ran; gloo itself may greet on stdout.
    (printed,) = [line for line in done.stdout.splitlines() if not line.startswith("[Gloo]")]
    assert json.loads(printed)["updates"] == 3
    run(make_config(f"output_dir={one}", *overrides))
    return many, one


# Two transitions at once: each process accumulates as well.
SHORT = ("training.updates=3", "training.micro_batch=2")
GUARD = 'guard={"every": 2, "n": 7, "held_out": {"reward": "contrast"}}'


def test_two_processes_with_a_guard_give_the_run_of_one(make_config: MakeConfig, tmp_path: Path):
    many, one = trained_twice(make_config, tmp_path, 2, "ddp", *SHORT, GUARD)
    assert_same_figures(many, one)
    assert [r["update"] for r in records(many) if "guard_kl" in r] == [2, 3]


def test_two_processes_that_divide_all_weights_give_the_run_of_one(
    make_config: MakeConfig, tmp_path: Path
):
    many, one = trained_twice(make_config, tmp_path, 2, "fsdp2", *SHORT, *FULL, forked=True)
    assert_same_figures(many, one)
    # What was saved is whole, and a stock pipeline of its own.
    for saved in (many / "model", many / "ema" / "model"):
        pipeline = StableDiffusionPipeline.from_pretrained(saved)
        assert type(pipeline.unet).__name__ == "UNet2DConditionModel"
        config = json.loads((saved / "unet" / "config.json").read_text())
        assert config["_class_name"] == "UNet2DConditionModel"


@pytest.mark.slow
@pytest.mark.timeout(1800)
@pytest.mark.parametrize("method", ["nabla-td", "path-weighted-matching"])
def test_other_methods_too(make_config: MakeConfig, tmp_path: Path, method: str):
    overrides = (*SHORT, f"method={method}")
    many, one = trained_twice(make_config, tmp_path, 2, "ddp", *overrides, forked=True)
    assert_same_figures(many, one)


TO_A_TILT = (
    *("method.gamma=one", "method.step=exact", "method.reverse_weight=0", "flow=null"),
    *("method.value=contrastive", "method.beta=25.0", "training.value_samples=64"),
    *("evaluation.bank=8192", "evaluation.n=24", "training.calibrate=true"),
)


@pytest.mark.slow
@pytest.mark.timeout(1800)
def test_a_value_that_is_fitted_together_and_a_strength_that_is_found_together(
    make_config: MakeConfig, tmp_path: Path
):
    """Samples, scores, bank and tries are shared; what the main process fits, all have."""
    overrides = (*SHORT, *TO_A_TILT)
    many, one = trained_twice(make_config, tmp_path, 2, "ddp", *overrides, forked=True)
    assert_same_figures(many, one)
    ours, theirs = (json.loads((run / "summary.json").read_text()) for run in (many, one))
    assert ours["exact_tilt"]["reward_mean"] == pytest.approx(
        theirs["exact_tilt"]["reward_mean"], rel=1e-4
    )
    found, wanted = ours["calibrated"], theirs["calibrated"]
    assert found.keys() == wanted.keys()
    assert [found[name] for name in wanted] == pytest.approx(list(wanted.values()), rel=1e-4)


@pytest.mark.slow
@pytest.mark.timeout(1800)
@pytest.mark.parametrize("adapter", ["lora", "full"])
@pytest.mark.parametrize("engine", ["ddp", "fsdp2"])
def test_four_processes_give_the_run_of_one(
    make_config: MakeConfig, tmp_path: Path, engine: str, adapter: str
):
    full = FULL if adapter == "full" else ()
    overrides = (*SHORT, GUARD, *full)
    many, one = trained_twice(make_config, tmp_path, 4, engine, *overrides, forked=True)
    assert_same_figures(many, one)


@pytest.mark.slow
@pytest.mark.timeout(1800)
@pytest.mark.parametrize("engine", ["ddp", "fsdp2"])
def test_another_number_of_processes_goes_on(make_config: MakeConfig, tmp_path: Path, engine: str):
    """Two processes begin, one goes on, four end it, by either engine."""
    straight, parted = tmp_path / "straight", tmp_path / "parted"
    recipe = tmp_path / "recipe.yaml"
    overrides = (*SHORT, *FULL, "training.checkpoint_every=1")
    run(make_config(f"output_dir={straight}", *overrides))
    recipe.write_text(dump_config(make_config(f"output_dir={parted}", *overrides)))
    for updates, processes in ((1, 2), (2, 1), (3, 4)):
        resume = ["--resume"] if updates > 1 else []
        env = ENGINES[engine] if processes > 1 else {}
        more = [f"training.updates={updates}", *resume]
        done = launch(recipe, processes, *more, env=env, forked=True)
        assert done.returncode == 0, done.stderr[-3000:]
    assert_same_figures(parted, straight)


@pytest.mark.slow
@pytest.mark.timeout(1800)
def test_a_worker_that_is_killed_in_mid_update_changes_no_bit(
    make_config: MakeConfig, tmp_path: Path
):
    """Torchrun starts both again; they go on with their own run and end as an undisturbed one."""
    reward = tmp_path / "deadly.py"
    reward.write_text(DEADLY)
    recipe = tmp_path / "recipe.yaml"
    straight, killed = tmp_path / "straight", tmp_path / "killed"
    overrides = ("training.updates=4", "training.checkpoint_every=1", f"reward={reward}:score")
    for folder in (straight, killed):
        recipe.write_text(dump_config(make_config(f"output_dir={folder}", *overrides)))
        env = {"KILL_IN": str(killed / "metrics.jsonl")}
        done = launch(recipe, 2, env=env, restarts=1)
        assert done.returncode == 0, done.stderr[-3000:]
        assert ("killed in update 3" in done.stderr) == (folder == killed)
    assert records(killed) == records(straight)
    ours, theirs = (load_checkpoint(list_checkpoints(run)[-1]) for run in (killed, straight))
    for group, tensors in theirs.tensors.items():
        for name, value in tensors.items():
            assert torch.equal(ours.tensors[group][name], value), (group, name)


DEADLY = """
import os, signal

def score(images, prompts):
    first = os.environ.get("TORCHELASTIC_RESTART_COUNT") == "0"
    path = os.environ["KILL_IN"]
    # Its gradient is asked for between a rollout and the step.
    if first and images.requires_grad and os.environ.get("RANK") == "1" and os.path.exists(path):
        if len(open(path).readlines()) == 2:
            os.write(2, b"killed in update 3\\n")
            os.kill(os.getpid(), signal.SIGKILL)
    return images.mean((1, 2, 3))
"""


@pytest.mark.slow
@pytest.mark.timeout(1800)
@pytest.mark.parametrize(
    ("options", "words"),
    [
        (["--num_processes", "2"], "launch: accelerate launch was asked for several"),
        (
            ["--num_processes", "2", "--use_fsdp", "--fsdp_version", "1"],
            "FSDP_VERSION: FSDP is served as version 2 alone",
        ),
    ],
)
def test_accelerate_launch_is_refused_before_a_folder_is_touched(
    make_config: MakeConfig, tmp_path: Path, options: list[str], words: str
):
    recipe = tmp_path / "recipe.yaml"
    recipe.write_text(dump_config(make_config(f"output_dir={tmp_path}/run")))
    done = subprocess.run(
        [
            *(sys.executable, "-m", "accelerate.commands.launch", *options),
            *("-m", "nablaflow", "train", str(recipe)),
        ],
        capture_output=True,
        text=True,
        env={**os.environ, "PYTHONPATH": str(SOURCE), **CPU},
        check=False,
    )
    assert done.returncode != 0
    assert f"nablaflow: {words}" in done.stderr
    assert not (tmp_path / "run").exists()


def draw(trajectories: int, generator: torch.Generator) -> torch.Tensor:
    return draw_transitions(trajectories, 9, 4, generator, always_last=True)


def plan(share: Share) -> RolloutPlan:
    prompts = [f"prompt {i}" for i in range(share.total)]
    return RolloutPlan.draw(prompts, seed=3, update=5, draw=draw, share=share)


@pytest.mark.parametrize("processes", [2, 3, 6])
def test_what_is_drawn_for_a_rollout_does_not_depend_on_the_processes(processes: int):
    whole = plan(Share.of(12, 0, 1))
    parts = [plan(Share.of(12, process, processes)) for process in range(processes)]
    assert [prompt for part in parts for prompt in part.prompts] == whole.prompts
    assert [seed for part in parts for seed in part.seeds] == whole.seeds
    assert [row for part in parts for row in part.keep.tolist()] == whole.keep.tolist()
    assert len(set(whole.seeds)) == 12
