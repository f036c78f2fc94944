"""Two processes over gloo do what one does."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file

from nablaflow.config.overrides import dump_config
from nablaflow.config.recipe import Config
from nablaflow.diffusion import draw_transitions
from nablaflow.runs.align import run
from nablaflow.training.batches import RolloutPlan, Share

MakeConfig = Callable[..., Config]
SOURCE = Path(__file__).parents[2] / "src"


def records(folder: Path) -> list[dict[str, Any]]:
    lines = [json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines()]
    return [{k: v for k, v in r.items() if not k.endswith("seconds")} for r in lines]


def launch(recipe: Path, processes: int) -> subprocess.CompletedProcess[str]:
    """``nablaflow train RECIPE --json`` under torch's own launcher."""
    path = os.pathsep.join(filter(None, [str(SOURCE), os.environ.get("PYTHONPATH")]))
    return subprocess.run(
        [
            *(sys.executable, "-m", "torch.distributed.run", "--standalone"),
            *(f"--nproc-per-node={processes}", "-m", "nablaflow.cli", "train", str(recipe)),
            "--json",
        ],
        capture_output=True,
        text=True,
        env={**os.environ, "PYTHONPATH": path, "OMP_NUM_THREADS": "1", "ACCELERATE_USE_CPU": "1"},
        check=False,
    )


@pytest.mark.parametrize("method", ["residual-nabla-db", "nabla-td", "path-weighted-matching"])
def test_one_process_and_two_give_the_same_run(
    make_config: MakeConfig, tmp_path: Path, method: str
):
    # Two transitions at once: each process accumulates as well.
    overrides = (f"method={method}", "training.updates=3", "training.micro_batch=2")
    one, two = tmp_path / "one", tmp_path / "two"
    recipe = tmp_path / "recipe.yaml"
    recipe.write_text(dump_config(make_config(f"output_dir={two}", *overrides)))
    done = launch(recipe, processes=2)
    assert done.returncode == 0, done.stderr[-3000:]
    # One object, although two processes ran; gloo itself may greet on stdout.
    (printed,) = [line for line in done.stdout.splitlines() if not line.startswith("[Gloo]")]
    summary = json.loads(printed)
    assert summary["updates"] == 3

    run(make_config(f"output_dir={one}", *overrides))
    for found, wanted in zip(records(two), records(one), strict=True):
        assert found == pytest.approx(wanted, rel=1e-4, abs=1e-7)
    name = "lora/pytorch_lora_weights.safetensors"
    found, wanted = load_file(two / name), load_file(one / name)
    assert found.keys() == wanted.keys()
    # Adam makes full steps of gradients that are nothing but rounding, so not value by value.
    ours, theirs = (torch.cat([f[key].flatten() for key in wanted]) for f in (found, wanted))
    assert (ours - theirs).norm() < 0.01 * theirs.norm()


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
