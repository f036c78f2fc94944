"""On a device of its own a run is what it is on the processor, and no operation mixes the two."""

from __future__ import annotations

import json
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from tests.support.flow_parts import PIXELS
from tests.support.flow_pipelines import FLOW_FAMILIES
from tests.support.pipelines import stable_diffusion, stable_diffusion_xl, unconditional

ROOT = Path(__file__).parents[2]
NAMES = ["nabla-db", "nabla-td", "terminal", "draft", "alignprop", "refl", "ddpo", "dag-db"]
NAMES += ["dag-kl", "reward-weighted-regression", "path-weighted-matching", "flow-grpo"]
FEW: list[dict[str, Any]] = [
    {"name": "residual-nabla-db", "beta": 100.0},
    {"name": "adjoint-matching", "beta": 10.0},
]
FITTED: dict[str, Any] = {"name": "residual-nabla-db", "beta": 100.0, "value": "contrastive"}
MANY: list[dict[str, Any]] = [
    {
        "name": "residual-nabla-db",
        "beta": 100.0,
        "step": "published",
        "reverse_weight": 1.0,
        "gamma": "measured",
    },
    FITTED,
    *({"name": name, "beta": 10.0} for name in [*NAMES, "diffusion-nft"]),
]
FAMILIES: dict[str, Callable[[], Any]] = {
    "v-prediction": lambda: stable_diffusion("v_prediction"),
    "sdxl": stable_diffusion_xl,
    "ddpm": unconditional,
    **FLOW_FAMILIES,
}
SAVING = ["training.gradient_checkpointing=true", "training.offload_encoders=true"]
RUNS = [
    ["guard.every=1", "guard.n=6", "evaluation.n=12", "evaluation.metrics=[vendi]"],
    ["reward={warmth: {weight: 1.0}, contrast: {weight: 0.1}}"],
    [*SAVING, "sampler.guidance_scale=2.0"],
]


@pytest.mark.parametrize("methods", [FEW, pytest.param(MANY, marks=pytest.mark.slow)])
def test_two_updates_are_the_processors(tiny_model: Path, methods: list[dict[str, Any]]):
    asked = [[f"method={json.dumps(method)}"] for method in methods]
    for method, (there, here) in zip(methods, both("updates", tiny_model, asked), strict=True):
        # A fit of hundreds of steps ends elsewhere by rounding: with two threads for one, too.
        assert differing(there, here, ["reward_mean"] if method is FITTED else None) == []


@pytest.mark.slow
@pytest.mark.parametrize("family", FAMILIES)
def test_each_familys_updates_are_the_processors(family: str, tmp_path: Path):
    FAMILIES[family]().save_pretrained(tmp_path / "model")
    plain, saving = [f"sampler.{side}={PIXELS}" for side in ("height", "width")], SAVING
    if family == "ddpm":  # without a size of one's own, and without encoders
        plain, saving = [], SAVING[:1]
    for there, here in both("updates", tmp_path / "model", [plain, plain + saving]):
        assert differing(there, here) == []


@pytest.mark.slow
@pytest.mark.parametrize("overrides", RUNS, ids=["looked-at", "sum", "saving"])
def test_a_resumed_and_measured_run_is_the_processors(tiny_model: Path, overrides: list[str]):
    ((there, here),) = both("run", tiny_model, [overrides])
    assert differing(there, here) == []


def test_a_rehearsal_needs_no_second_model(tmp_path: Path):
    """Nor one in float32: a model that fills half of a card could not begin to train on it."""
    large = stable_diffusion_xl(block_out_channels=(16, 256), transformer_layers_per_block=(1, 1))
    large.save_pretrained(tmp_path / "model")
    (found,) = memory(str(tmp_path / "model"), [["training.precision=bf16", *SAVING]])
    assert found["rehearsal"] < 1.5 * found["held"]
    assert found["merged export"] < 1.5 * found["held"]


@pytest.mark.slow
@pytest.mark.parametrize(("family", "side"), [("sdxl", 64), ("sd35", 32), ("flux", 64)])
@pytest.mark.parametrize("saving", [["training.gradient_checkpointing=false"], SAVING])
def test_the_plan_is_what_an_update_takes(family: str, side: int, saving: list[str]):
    asked = [f"sampler.{name}={side}" for name in ("height", "width")]
    asked += ["reward=brightness", "training.images_per_prompt=4", "training.micro_batch=8"]
    asked += saving
    (found,) = memory(f"random:{family}-small", [asked])
    assert found["planned update"] == pytest.approx(found["update"], rel=0.02)
    assert found["planned rehearsal"] == pytest.approx(found["rehearsal"], rel=0.05)


def memory(model: str, asked: list[list[str]]) -> list[dict[str, float]]:
    """Bytes that the device holds, for each list of overrides; in float32 those planned too."""
    return [found["card"][0] for found in on_device("memory", model, asked)]


def both(
    work: str, model: Path, asked: list[list[str]]
) -> Iterator[tuple[list[dict[str, float]], list[dict[str, float]]]]:
    """For each list of overrides the figures on the device, and on the processor."""
    for found in on_device(work, str(model), asked):
        yield found["card"], found["cpu"]


def on_device(work: str, model: str, asked: list[list[str]]) -> list[Any]:
    done = subprocess.run(
        [sys.executable, "-m", "tests.support.other_device", work, model, json.dumps(asked)],
        cwd=ROOT,
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr[-3000:]
    lines = [line for line in done.stdout.splitlines() if line.startswith("{")]
    assert len(lines) == len(asked)
    return [json.loads(line) for line in lines]


def differing(
    there: list[dict[str, float]], here: list[dict[str, float]], names: list[str] | None = None
) -> list[str]:
    """Figures that are not the same on the device; those that are there on one side alone, too."""
    assert len(there) == len(here) > 0
    return [
        name
        for found, wanted in zip(there, here, strict=True)
        for name in names or {**found, **wanted}
        if found.get(name) != pytest.approx(wanted.get(name), rel=1e-3, abs=1e-6)
    ]
