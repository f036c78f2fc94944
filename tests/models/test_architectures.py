"""Models at their published size, without their weights: what fits, what trains, what it takes."""

from typing import Any

import pytest
import torch

from nablaflow.models import AdapterSettings, SamplerSettings, load_model
from nablaflow.models.export import lora_layers
from nablaflow.models.pipelines import PipelineModel
from tests.support.architectures import full_stable_diffusion_xl

META = torch.device("meta")


@pytest.fixture(scope="module")
def xl() -> PipelineModel:
    return load_model(
        full_stable_diffusion_xl(),
        SamplerSettings(steps=50, guidance_scale=5.0),
        AdapterSettings(rank=8),
        META,
    )


def parameters(network: Any) -> int:
    return sum(p.numel() for name, p in network.named_parameters() if ".lora_" not in name)


def test_sdxl_has_the_published_size(xl: PipelineModel) -> None:
    """arXiv 2307.01952, table 1: 2.6 G in the UNet, 817 M in the text encoders."""
    assert parameters(xl.network) == 2_567_463_684
    encoders = [xl.pipeline.text_encoder, xl.pipeline.text_encoder_2]
    assert sum(map(parameters, encoders)) == pytest.approx(817e6, rel=2e-3)
    assert (xl.state_shape, xl.image_size) == ((4, 128, 128), (1024, 1024))
    assert xl.process.timestep[[50, 49, 1]].tolist() == [981, 961, 1]


def test_a_lora_of_sdxl_is_on_all_attention_and_nowhere_else(xl: PipelineModel) -> None:
    """70 transformer blocks with two attentions of four projections, by the published names."""
    names = {name.split(".lora_")[0] for name in lora_layers(xl)}
    assert len(names) == 70 * 2 * 4
    place = "up_blocks.0.attentions.2.transformer_blocks.9.attn2.to_out.0"
    assert place in names
    assert all(".transformer_blocks." in name for name in names)
    coverage = xl.adapter.coverage
    assert coverage.adapted / coverage.total == pytest.approx(0.37, abs=0.01)


def test_sdxl_predicts_a_guided_batch_of_its_own_states(xl: PipelineModel) -> None:
    """The shapes of a whole step: two embeddings side by side, the pooled one, six sizes."""
    x = torch.empty(2, *xl.state_shape, device=META)
    timestep = torch.zeros(2, dtype=torch.long, device=META)
    condition = xl.encode("a cat")  # type: ignore[attr-defined]
    assert condition.hidden.shape[2] == 2048
    assert condition.pooled.shape == (1, 1280)
    assert xl.forward(x, timestep, condition.expand(2)).shape == x.shape
