"""An image that there is no room to decode is refused in one line, before any work."""

from pathlib import Path

import pytest
import torch

from nablaflow.errors import UserError
from nablaflow.models import AdapterSettings, SamplerSettings, load_model, load_pipeline
from nablaflow.models.pipelines import PipelineModel
from nablaflow.runs import checks
from nablaflow.runs.sample import sample_images

FAMILIES = ["sd", "sdxl", "sd3", "flux-dev", "klein", "z-image", "qwen-image"]


def model_of(folder: Path, **size: int) -> PipelineModel:
    steps, cpu = SamplerSettings(steps=3, **size), torch.device("cpu")
    return load_model(load_pipeline(str(folder)), steps, AdapterSettings(), cpu)


@pytest.mark.parametrize("family", FAMILIES)
@torch.no_grad()
def test_the_least_is_what_the_last_layer_reads_and_what_that_was_made_of(
    folders: dict[str, Path], family: str
) -> None:
    model = model_of(folders[family], height=32, width=32)
    read: list[int] = []
    last = model.pipeline.vae.decoder.conv_out
    last.register_forward_pre_hook(lambda _, given: read.append(given[0].numel()))
    model.decode(torch.zeros(1, *model.state_shape))
    assert [2 * numbers for numbers in read] == [model.decoded_floats]


@pytest.mark.parametrize("family", ["sd", "ddpm"])
def test_an_image_without_room_is_refused(
    folders: dict[str, Path], family: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    needed = 4 * model_of(folders[family]).decoded_floats
    monkeypatch.setattr(checks, "device_memory", lambda device: needed)
    images, _ = sample_images(str(folders[family]), [], 1, 0)
    assert len(images) == 1
    monkeypatch.setattr(checks, "device_memory", lambda device: needed - 1)
    with pytest.raises(UserError, match=r"^--height: to decode one image .* smaller"):
        sample_images(str(folders[family]), [], 1, 0)
