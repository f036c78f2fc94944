"""A run's batches from its memory: the plan against what was measured, and the refusals."""

from __future__ import annotations

import json
import re
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest
import yaml

from nablaflow.config.parse import parse_config
from nablaflow.config.recipe import Config
from nablaflow.errors import UserError
from nablaflow.runs import budget
from nablaflow.runs.budget import MOST, plan_for
from nablaflow.runs.choices import as_chosen
from nablaflow.runs.doctor_recipe import plan_of_recipe
from nablaflow.runs.folder import dump_config
from nablaflow.runs.setup import Parts, prepare
from nablaflow.training.memory_plan import GIB

MakeParts = Callable[..., Parts]
MakeConfig = Callable[..., Config]
PLAIN = ["method.step=exact", "method.reverse_weight=0", "method.gamma=one", "flow=null"]


def plan(parts: Parts, gib: float) -> dict[str, int | None]:
    config = parts.config
    found = plan_for(config, parts.model, parts.reward, parts.trainer.flow, gib * GIB)
    return found.batches


def test_more_memory_is_never_smaller_batches(make_parts: MakeParts):
    parts = make_parts(*PLAIN)
    little, some, much = (plan(parts, gib)["micro_batch"] for gib in (0.0, 100.0, 1000.0))
    assert (little, some, much) == (1, 8, 8), "one row at least, and no more than there are"


def test_what_the_processes_divide_is_planned_divided(make_parts: MakeParts):
    """docs/scaling.md: of 24 bytes a parameter 12 + 16 / P, of which reference and gradient are
    counted elsewhere.
    """
    parts = make_parts(*PLAIN, "adapter={kind: full, ema_decay: 0.9}")
    given = parts.config, parts.model, parts.reward, None, 1e12
    size = sum(p.numel() for p in parts.model.network.parameters() if p.requires_grad)
    whole = plan_for(*given, 4).parts["adapter and optimizer"]
    assert whole == 16 * size
    sharded = plan_for(*given, 4, sharded=True).parts["adapter and optimizer"]
    assert sharded == 4 * size + 16 * size // 4


@pytest.mark.parametrize("value", ["contrastive", "forward-looking"])
def test_the_fit_of_a_value_is_a_stage_where_there_is_one(make_parts: MakeParts, value: str):
    parts = make_parts(*PLAIN, f"method.value={value}")
    stages = plan_for(parts.config, parts.model, parts.reward, None, 1e12).stages
    assert ("fit of the value" in stages) == (value == "contrastive")


@pytest.mark.slow
def test_the_same_budget_is_the_same_batches(make_parts: MakeParts):
    first, again = (make_parts("training.memory_budget_gb=50").config for _ in range(2))
    assert first.training == again.training
    assert first.training.micro_batch == 8


def test_a_budget_that_nothing_fits_in_says_the_least_that_would(make_parts: MakeParts):
    line = (
        r"^training.memory_budget_gb: nothing fits in 0.01 GB, nine tenths of the budget; the "
        r"least that would is (.*) GB, with batches of 1; set training.memory_budget_gb=(.*) or "
        r"more, or "
    )
    with pytest.raises(UserError, match=line) as caught:
        make_parts(*PLAIN, "training.memory_budget_gb=0.01")
    said = str(caught.value)
    assert "smaller images than 16 x 16 (sampler.height, sampler.width)" in said
    least, asked = (float(value) for value in re.match(line, said).groups())  # type: ignore[union-attr]
    # Half a percent and half a hundredth more, and both are told to a hundredth.
    assert least - 0.01 <= 0.9 * asked <= 1.005 * least + 0.015
    assert make_parts(*PLAIN, f"training.memory_budget_gb={2 * asked}").config.training.micro_batch
    assert "0.00 GB" not in said, "what a setting of such a small model saves"
    assert "offload_encoders" not in said, "they would rest where they are"


def test_batches_that_are_given_and_do_not_fit_are_named(make_parts: MakeParts):
    words = r"training\.micro_batch=8 and .* leave training\.micro_batch to the plan"
    with pytest.raises(UserError, match=words):
        make_parts(*PLAIN, "training.memory_budget_gb=0.01", "training.micro_batch=8")


def test_a_budget_is_of_this_machine_where_the_plan_uses_it(
    make_parts: MakeParts, monkeypatch: pytest.MonkeyPatch
):
    monkeypatch.setattr(budget, "device_memory", lambda device: 2**20)
    words = r"training\.memory_budget_gb: .* GB are planned, and there are 0\.00; set"
    with pytest.raises(UserError, match=words):
        make_parts(*PLAIN, "training.memory_budget_gb=1e9")
    monkeypatch.setattr(budget, "device_memory", lambda device: 2**40)
    assert make_parts(*PLAIN, "training.memory_budget_gb=1e9").config.training.micro_batch == 8


def test_a_budget_and_a_card_of_as_many_gb_have_one_plan(recipe: Callable[..., Path]):
    plain, budgeted = recipe(*PLAIN), ["training.memory_budget_gb=24"]
    named = plan_of_recipe(plain, [], trusted=True, elsewhere="meta", memory=24)
    asked = plan_of_recipe(plain, budgeted, trusted=True, elsewhere="meta")
    assert named == asked
    assert named["budget_gib"] == 21.6


def test_what_makes_no_gradient_takes_no_more_memory_than_what_does(make_parts: MakeParts):
    parts = make_parts(*PLAIN, "training.images_per_prompt=40", "training.micro_batch=1")
    config, flow = parts.config, parts.trainer.flow
    left = config.model_copy(
        update={"training": config.training.model_copy(update={"rollout_batch": None})}
    )
    found = plan_for(left, parts.model, parts.reward, flow, 100 * GIB)
    assert found.stages["rollout"] <= max(
        value
        for name, value in found.stages.items()
        if name not in ("rollout", "decode and reward")
    )
    assert 1 <= (found.batches["rollout_batch"] or 0) < 80


def test_many_transitions_of_a_small_model_are_trained_in_parts_of_64(make_parts: MakeParts):
    parts = make_parts(*PLAIN, "training.images_per_prompt=40", "training.transition_fraction=1.0")
    assert parts.config.training.micro_batch == MOST == 64


def test_a_resumed_run_has_the_batches_that_it_was_begun_with(make_config: MakeConfig):
    config = make_config("training.micro_batch=3", "training.decode_batch=2")
    config.output_dir.mkdir(parents=True)
    (config.output_dir / "config.yaml").write_text(dump_config(config))
    assert as_chosen(make_config()).training.micro_batch == 3
    assert as_chosen(make_config()).training.decode_batch == 2
    assert as_chosen(make_config("training.micro_batch=5")).training.micro_batch == 5
    anew = as_chosen(make_config("training.memory_budget_gb=9"))
    assert anew.training.micro_batch is None, "another budget is a reason to choose anew"


@pytest.fixture
def recipe(make_config: MakeConfig, tmp_path: Path) -> Callable[..., Path]:
    def write(*overrides: str) -> Path:
        path = tmp_path / "recipe.yaml"
        path.write_text(dump_config(make_config(*overrides)))
        return path

    return write


def test_a_recipes_plan_adds_up(recipe: Callable[..., Path]):
    found = plan_of_recipe(recipe(*PLAIN), [], trusted=True)
    assert found["peak_gib"] == pytest.approx(sum(found["parts"].values()), abs=1e-3)
    assert found["fits"]
    assert set(found["saved_per_transition"]) == {"reference", "policy", "decoder"}


def test_the_plan_of_a_published_size_needs_no_weights(recipe: Callable[..., Path]):
    """Stable Diffusion 1.5's UNet, text encoder and decoder in float32: 4.3 GB and no more."""
    path = recipe(*PLAIN, "model=random:sd15", "sampler.height=64", "sampler.width=64")
    found = plan_of_recipe(path, [], trusted=True)
    assert found["parts"]["weights"] * GIB == pytest.approx(
        4 * (859.5e6 + 83.7e6 + 123e6), rel=0.01
    )


@pytest.fixture
def no_card(monkeypatch: pytest.MonkeyPatch) -> None:
    for module in ("nablaflow.devices", "nablaflow.runs.doctor_recipe"):
        monkeypatch.setattr(f"{module}.is_here", lambda device: device.type == "cpu")


@pytest.mark.usefixtures("no_card")
def test_a_plan_for_a_card_that_is_not_here(recipe: Callable[..., Path]):
    """Each byte counts once on a card, 1.4 times on a processor; nine tenths of it are allowed."""
    path = recipe(*PLAIN, "training.device=cuda")
    card = plan_of_recipe(path, [], trusted=True, elsewhere="cuda", memory=24)
    here = plan_of_recipe(path, ["training.device=cpu"], trusted=True, memory=24)
    assert (card["device"], here["device"]) == ("cuda", "cpu")
    assert card["budget_gib"] == here["budget_gib"] == 21.6
    for name in ("rollout", "losses and gradients"):
        assert here["stages"][name] == pytest.approx(1.4 * card["stages"][name], abs=2e-4)
    with pytest.raises(UserError, match=r"^training\.device: .*, or --for cuda --memory GB$"):
        plan_of_recipe(path, [], trusted=True)
    with pytest.raises(UserError, match=r"^--memory: there is no cuda here"):
        plan_of_recipe(path, [], trusted=True, elsewhere="cuda")
    with pytest.raises(UserError, match=r"^--memory: must be above 0, not nan$"):
        plan_of_recipe(path, [], trusted=True, elsewhere="cuda", memory=float("nan"))


@pytest.mark.usefixtures("no_card")
def test_a_budget_is_held_against_the_card_that_is_named(recipe: Callable[..., Path]):
    path = recipe(*PLAIN, "training.memory_budget_gb=50")
    assert plan_of_recipe(path, [], trusted=True, elsewhere="cuda")["budget_gib"] == 45
    with pytest.raises(UserError, match=r"are planned, and there are 0\.10; set"):
        plan_of_recipe(path, [], trusted=True, elsewhere="cuda", memory=0.1)


# GiB of weights in bf16, the autoencoder's in float32: denoiser, autoencoder, text encoders.
PLANS = {
    **{"ddpm": (0.212, 0, 0), "flux2-klein": (7.22, 0.313, 7.49), "sd35": (4.60, 0.312, 10.40)},
    **{"z-image": (11.46, 0.312, 7.49), "qwen-image": (38.05, 0.473, 15.45)},
    **{"chroma": (16.58, 0.312, 8.87), "flux": (22.17, 0.312, 9.10)},
}


@pytest.mark.slow
@pytest.mark.parametrize("name", PLANS)
def test_every_published_size_has_a_plan(
    recipe: Callable[..., Path], name: str, capfd: pytest.CaptureFixture[str]
):
    """The heavy text encoders of flow matching rest in the processor's memory, which is this."""
    own = [*PLAIN, f"model=random:{name}", "training.precision=bf16", "adapter.rank=8"]
    own += ["prompts=null", "evaluation.bank=0"] if name == "ddpm" else []
    own += [] if name == "ddpm" else ["sampler.height=256", "sampler.width=256"]
    found = plan_of_recipe(recipe(), own, trusted=True)
    assert found["parts"]["weights"] == pytest.approx(sum(PLANS[name]), rel=0.01)
    assert found["batches"]["micro_batch"] >= 1
    assert capfd.readouterr().err == ""


SLOW_KINDS = [
    {"name": "residual-nabla-db", "beta": 1.0, "step": "published", "reverse_weight": 1.0},
    {"name": "nabla-db", "beta": 1.0},
    {"name": "draft", "beta": 1.0},
    {"name": "ddpo", "beta": 1.0},
    {"name": "dag-db", "beta": 1.0},
    {"name": "nabla-td", "beta": 1.0},
]


@pytest.mark.parametrize(
    "method",
    [
        {"name": "adjoint-matching", "beta": 1.0},
        {"name": "path-weighted-matching", "beta": 1.0, "adjoint_above": 0.0},
        *(pytest.param(kind, marks=pytest.mark.slow) for kind in SLOW_KINDS),
    ],
)
def test_every_kind_of_method_has_a_plan(make_config: MakeConfig, method: dict[str, object]):
    values = yaml.safe_load(dump_config(make_config()))
    own = {"method": method, "training": {**values["training"], "memory_budget_gb": 50.0}}
    config = parse_config({**values, **own})
    parts = prepare(config, config.output_dir)
    assert parts.config.training.micro_batch is not None
    assert any(line.startswith("memory: ") for line in parts.choices)


MEASURE = r"""
import json, re, sys
from pathlib import Path
from nablaflow.config.defaults import demo_settings
from nablaflow.config.overrides import apply_overrides
from nablaflow.config.parse import parse_config
from nablaflow.runs import budget, setup

quiet = ["training.trackers=[]", "evaluation.bank=0", "guard=null", "output_dir=runs/x"]
config = parse_config(apply_overrides(demo_settings(), [*quiet, *sys.argv[3:]]))
parts = setup.prepare(config, config.output_dir)
found = {}
if sys.argv[1] == "plan":
    made = budget.plan_for(parts.config, parts.model, parts.reward, parts.trainer.flow, 2**40)
    found["plan"] = made.peak / 2**20
peaks = []
for _ in range(int(sys.argv[2])):
    parts.trainer.step()
    # Not ru_maxrss, which begins at what the process that started this one has had.
    status = Path("/proc/self/status").read_text()
    peaks.append(int(re.search(r"VmHWM:\s*(\d+) kB", status)[1]) / 1024)
print(json.dumps({**found, "peaks": peaks}))
"""


def measured(what: str, updates: int, *overrides: str) -> dict[str, object]:
    """Of a process of its own, MiB: its plan, or its peak after each update."""
    done = subprocess.run(
        [sys.executable, "-c", MEASURE, what, str(updates), *overrides],
        check=True,
        capture_output=True,
        text=True,
    )
    return json.loads(done.stdout.splitlines()[-1])


@pytest.mark.slow
@pytest.mark.parametrize("micro_batch", [16, 64])
def test_the_plan_is_within_15_percent_of_the_embedded_models_peak(micro_batch: int):
    setting = f"training.micro_batch={micro_batch}"
    said = measured("plan", 0, setting)["plan"]
    peak = measured("run", 2, setting)["peaks"][-1]  # type: ignore[index]
    assert said == pytest.approx(peak, rel=0.15)


@pytest.mark.slow
@pytest.mark.timeout(1800)
def test_memory_does_not_grow_with_the_number_of_steps():
    few, many = (
        measured("run", 1, f"sampler.steps={steps}")["peaks"][-1]  # type: ignore[index]
        for steps in (20, 100)
    )
    assert many < 1.15 * few


@pytest.mark.slow
@pytest.mark.timeout(3600)
def test_memory_is_flat_over_200_updates():
    small = ["training.images_per_prompt=1", "sampler.steps=5", "training.micro_batch=4"]
    peaks = measured("run", 200, *small)["peaks"]
    assert peaks[-1] < 1.05 * peaks[19]  # type: ignore[index]


@pytest.mark.usefixtures("no_card")
@pytest.mark.parametrize("precision", ["bf16", "fp16"])
def test_a_decoder_in_half_precision_keeps_half(recipe: Callable[..., Path], precision: str):
    """And is held beside the one in float32, which measures."""
    path = recipe(*PLAIN, "model=random:sd15", "sampler.height=64", "sampler.width=64")
    own, half = (
        plan_of_recipe(path, more, trusted=True, elsewhere="cuda", memory=24)
        for more in ([], [f"training.decoder_precision={precision}"])
    )
    saved = [plan["saved_per_transition"]["decoder"] for plan in (own, half)]
    assert saved[1] == pytest.approx(saved[0] / 2, rel=0.03)
    more = half["parts"]["weights"] - own["parts"]["weights"]
    assert more * GIB == pytest.approx(2 * 49.5e6, rel=0.01)  # of the decoder, no encoder
    stages = [plan["stages"] for plan in (own, half)]
    assert stages[1]["losses and gradients"] < stages[0]["losses and gradients"]
    assert stages[1]["decode and reward"] < stages[0]["decode and reward"]
    assert stages[1]["rehearsal"] == stages[0]["rehearsal"], "a stock image is compared in float32"
