"""The whole loop on models of flow matching: every method, saved and resumed."""

from __future__ import annotations

import copy
import math
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch

from nablaflow.config.recipe import Config
from nablaflow.diffusion import sample_trajectories, trajectory_noise
from nablaflow.errors import UserError
from nablaflow.methods import METHODS
from nablaflow.models import load_pipeline
from nablaflow.runs import align
from nablaflow.runs.policy import load_policy
from nablaflow.runs.sample import _sampler as settings_for
from nablaflow.runs.sample import sample_to_folder
from nablaflow.runs.setup import Parts
from nablaflow.training.loop import Trainer
from tests.support.flow_parts import SMALL
from tests.support.padded_pipelines import PADDED_FAMILIES

MakeParts = Callable[..., Parts]
KINDS = ["sd3", "flux-dev", "klein", *PADDED_FAMILIES]
EULER = {"sampler": "euler"}
RESUMED = "residual-nabla-db"
QUICK = ["nabla-td", "ddpo", "vgg-flow"]


def overrides(folder: Path, method: str) -> list[str]:
    size = [f"sampler.{name}={value}" for name, value in SMALL.items()]
    noise = METHODS[method].sampler_noise
    sampler = f"sampler.name={'euler' if noise == 'none' else 'memoryless'}"
    of_model = [f"model={folder}", "adapter.targets=auto", sampler, *size]
    extra = ["method.estimator=adjoint"] if method == "value-matching" else []
    return [*of_model, f"method={method}", *extra]


def assert_trains(trainer: Trainer) -> None:
    before = copy.deepcopy(trainer.checkpoint().tensors["policy"])
    record = trainer.step()
    after = trainer.checkpoint().tensors["policy"]
    assert all(math.isfinite(value) for value in record.values()), record
    assert any(not torch.equal(before[name], after[name]) for name in before)


@pytest.mark.parametrize("family", KINDS)
@pytest.mark.parametrize("method", QUICK)
def test_a_method_trains(
    make_parts: MakeParts, folders: dict[str, Path], family: str, method: str
) -> None:
    assert_trains(make_parts(*overrides(folders[family], method)).trainer)


@pytest.mark.parametrize("family", KINDS)
def test_it_trains_in_bf16(
    make_parts: MakeParts, folders: dict[str, Path], family: str, other_precision: None
) -> None:
    settings = overrides(folders[family], "residual-nabla-db")
    assert_trains(make_parts(*settings, "training.precision=bf16").trainer)


@pytest.mark.slow
@pytest.mark.parametrize("family", KINDS)
@pytest.mark.parametrize("method", [name for name in METHODS if name not in (*QUICK, RESUMED)])
def test_every_other_method_trains(
    make_parts: MakeParts, folders: dict[str, Path], family: str, method: str
) -> None:
    assert_trains(make_parts(*overrides(folders[family], method)).trainer)


def test_the_untouched_policy_is_the_reference_on_its_own_paths(
    make_parts: MakeParts, folders: dict[str, Path]
) -> None:
    trainer = make_parts(*overrides(folders["sd3"], "residual-nabla-db")).trainer
    record: dict[str, Any] = trainer.step()
    assert record["kl"] == pytest.approx(0.0, abs=1e-6)


@pytest.mark.parametrize("family", KINDS)
def test_a_resumed_run_goes_on_as_it_would_have(
    make_parts: MakeParts, folders: dict[str, Path], family: str
) -> None:
    given = overrides(folders[family], RESUMED)
    whole, first, second = (make_parts(*given).trainer for _ in range(3))
    assert_trains(whole)
    first.step()
    second.restore(first.checkpoint())
    whole.step()
    second.step()
    expected, found = (t.checkpoint().tensors["policy"] for t in (whole, second))
    assert all(torch.equal(expected[name], found[name]) for name in expected)


def test_the_exact_step_is_refused_under_noise_that_is_not_memoryless(
    make_parts: MakeParts, folders: dict[str, Path]
) -> None:
    given = overrides(folders["sd3"], "nabla-td")
    with pytest.raises(UserError, match=r"method\.step: .*flow-grpo"):
        make_parts(*given, "sampler.name=flow-grpo", "method.step=exact")
    assert_trains(make_parts(*given, "sampler.name=flow-grpo", "method.step=published").trainer)


@pytest.mark.slow
def test_a_run_is_saved_and_sampled_without_noise_as_the_stock_pipeline_does(
    make_config: Callable[..., Config], folders: dict[str, Path], tmp_path: Path
) -> None:
    """The Euler sampler on a policy that was trained under memoryless noise."""
    few = ["training.updates=1", "evaluation.n=6", "optimizer.learning_rate=0.05"]
    config = make_config(*overrides(folders["sd3"], "residual-nabla-db"), *few)
    run = align.run(config)
    model, *_ = load_policy(run.folder, sampler="euler")
    stock: Any = load_pipeline(str(folders["sd3"]))
    stock.load_lora_weights(run.folder / "lora")
    generator = torch.Generator().manual_seed(3)
    call = {"prompt": "a circle", **SMALL, "guidance_scale": 1.0}
    images = stock(**call, num_inference_steps=4, generator=generator, output_type="np").images
    expected = torch.from_numpy(images).permute(0, 3, 1, 2)
    condition = model.condition(["a circle"])
    with torch.no_grad():
        drawn = sample_trajectories(
            lambda x, k: model.predict(x, k, condition),
            model.process,
            model.state_shape,
            trajectory_noise([3]),
            model.device,
        )
        torch.testing.assert_close(model.decode(drawn.x0), expected, rtol=0, atol=1e-4)
    written = sample_to_folder(
        str(run.folder), ["a circle"], 1, tmp_path / "out", 0, overwrite=False, of_model=EULER
    )
    assert len(written.images) == 1
    with pytest.raises(UserError, match="a run is sampled as it was trained"):
        sample_to_folder(
            str(run.folder),
            [],
            1,
            tmp_path / "no",
            0,
            overwrite=False,
            of_model={"sampler": "ddim"},
        )


@pytest.mark.parametrize(
    ("family", "steps", "guidance"),
    [
        *(("sd3", 28, 7.0), ("flux-dev", 28, 3.5), ("klein", 50, 4.0)),
        *(("z-image", 50, 6.0), ("qwen-image", 50, 4.0), ("chroma", 35, 5.0)),
    ],
)
def test_a_folder_is_sampled_as_its_own_call_does(
    folders: dict[str, Path], tmp_path: Path, family: str, steps: int, guidance: float
) -> None:
    pipeline: Any = load_pipeline(str(folders[family]))
    found = settings_for(pipeline, str(folders[family]), {})[0]
    assert (found.name, found.steps, found.guidance_scale) == ("euler", steps, guidance)
    out = tmp_path / "out"
    sample_to_folder(str(folders[family]), ["a star"], 1, out, 0, overwrite=False, of_model=SMALL)
    assert len(list(out.glob("0000*.png"))) == 1


def test_the_samplers_noise_must_suit_the_method(
    make_parts: MakeParts, folders: dict[str, Path]
) -> None:
    def made(method: str, *more: str) -> Parts:
        return make_parts(*overrides(folders["sd3"], method), *more)

    with pytest.raises(UserError, match=r"sampler\.name: euler adds no noise"):
        made("ddpo", "sampler.name=euler")
    with pytest.raises(UserError, match=r"sampler\.name: vgg-flow controls the ODE.* use euler$"):
        made("vgg-flow", "sampler.name=memoryless")
    with pytest.raises(UserError, match=r"guard\.max_kl: without noise .*guard\.min_diversity"):
        made("vgg-flow", "guard={every: 1, max_kl: 3.0}")
    with pytest.raises(UserError, match=r"sampler\.variance: euler's steps have none"):
        made("vgg-flow", "sampler.variance=analytic")
    for sampler in ("memoryless", "flow-grpo", "euler"):
        assert_trains(made("diffusion-nft", f"sampler.name={sampler}").trainer)


def test_a_resumed_run_has_its_old_policy(make_parts: MakeParts, folders: dict[str, Path]) -> None:
    """It samples, and is another than the policy by then: the rewards would tell."""
    given = [*overrides(folders["sd3"], "diffusion-nft"), "optimizer.learning_rate=0.05"]
    given += ["method.decay_rise=0.3", "method.decay_most=0.9"]
    whole, first, second = (make_parts(*given).trainer for _ in range(3))
    for trainer in (whole, first):
        trainer.step()
        trainer.step()
    tensors = first.checkpoint().tensors
    assert any(not torch.equal(tensors["old_policy"][n], v) for n, v in tensors["policy"].items())
    second.restore(first.checkpoint())
    assert whole.step()["reward_mean"] == second.step()["reward_mean"]
    expected, found = (t.checkpoint().tensors for t in (whole, second))
    for group in ("policy", "old_policy"):
        assert all(torch.equal(expected[group][n], found[group][n]) for n in expected[group])
