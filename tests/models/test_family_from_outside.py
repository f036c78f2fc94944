"""A family is one file and one line: here in a folder that the package knows nothing of."""

import importlib.util
from pathlib import Path
from typing import Any

import pytest
import torch
from diffusers import DDPMScheduler, UNet2DModel

from nablaflow.errors import UserError
from nablaflow.models import AdapterSettings, SamplerSettings, load, load_model, load_pipeline
from nablaflow.models.export import save_policy
from nablaflow.models.rehearsal import rehearse
from tests.support.pipelines import perturb
from tests.support.schedules import DDPM

FAMILY = '''
"""Its network is called `halves`, and its pipeline's call has a brightness."""

from typing import Any, ClassVar

import torch
from diffusers import DiffusionPipeline

from nablaflow.models.condition import Condition
from nablaflow.models.pipelines import PipelineModel


class HalvesPipeline(DiffusionPipeline):
    def __init__(self, halves, scheduler):
        super().__init__()
        self.register_modules(halves=halves, scheduler=scheduler)

    @torch.no_grad()
    def __call__(self, num_inference_steps, generator, brightness, output_type, return_dict):
        x = torch.randn(1, 3, 8, 8, generator=generator)
        self.scheduler.set_timesteps(num_inference_steps)
        for t in self.scheduler.timesteps:
            x = self.scheduler.step(self.halves(x, t).sample, t, x, generator=generator).prev_sample
        return (x + brightness,)


class Halves(PipelineModel):
    serves = (HalvesPipeline,)
    denoiser = "halves"
    call_defaults: ClassVar[dict[str, Any]] = {"steps": 10}
    takes_prompts = False

    def __init__(self, pipeline, sampler, adapter, device):
        super().__init__(pipeline, sampler, adapter, device)
        self.image_size = self.state_shape[1:]

    @staticmethod
    def shape_of_states(pipeline, sampler):
        return 3, 8, 8

    @staticmethod
    def lora_targets(network):
        return ["to_q"]

    def condition(self, prompts):
        return Condition()

    def forward(self, x, timestep, condition):
        return self.adapter.active()(x, timestep).sample

    def decode(self, x0):
        return (x0 / 2 + 0.5).clamp(0, 1)

    def stock_call(self, prompt):
        return {"brightness": 0.1}
'''


@pytest.fixture
def outside(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Any:
    """The file, and the line that lists it."""
    path = tmp_path / "halves.py"
    path.write_text(FAMILY)
    spec: Any = importlib.util.spec_from_file_location("halves", path)
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    monkeypatch.setattr(load, "FAMILIES", [*load.FAMILIES, module.Halves])
    return module


@pytest.fixture
def folder(outside: Any, tmp_path: Path) -> str:
    torch.manual_seed(0)
    network = UNet2DModel(
        sample_size=8,
        down_block_types=("DownBlock2D", "AttnDownBlock2D"),
        up_block_types=("AttnUpBlock2D", "UpBlock2D"),
        block_out_channels=(8, 16),
        layers_per_block=1,
        attention_head_dim=8,
        norm_num_groups=4,
    )
    outside.HalvesPipeline(network, DDPMScheduler(**DDPM)).save_pretrained(tmp_path / "model")
    return str(tmp_path / "model")


def test_it_is_loaded_checked_and_saved(folder: str, tmp_path: Path) -> None:
    pipeline = load_pipeline(folder)
    sampler = SamplerSettings(steps=4)
    model = load_model(pipeline, sampler, AdapterSettings(rank=2), torch.device("cpu"))
    assert list(model.adapter.coverage.layers) == ["to_q"]
    perturb(model.network)
    x, k = torch.randn(2, *model.state_shape), torch.tensor([4, 1])
    aligned = model.predict(x, k, model.condition(["", ""]))
    assert rehearse(model, folder, tmp_path) is None
    saved = save_policy(model, folder, tmp_path / "run")
    assert (saved / "halves").is_dir()
    again = load_model(
        load_pipeline(str(saved)), sampler, AdapterSettings(rank=2), torch.device("cpu")
    )
    found = again.predict(x, k, again.condition(["", ""]))
    torch.testing.assert_close(found.x0_hat, aligned.x0_hat, rtol=1e-4, atol=1e-4)


def test_it_is_named_among_those_that_are_served(folder: str) -> None:
    with pytest.raises(UserError, match=r"DDPMPipeline, .*HalvesPipeline"):
        load_model(object(), SamplerSettings(), AdapterSettings(), torch.device("cpu"))
