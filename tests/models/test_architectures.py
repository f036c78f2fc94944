"""Models at their published size, without their weights: what fits, what trains, what it takes."""

from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor

from nablaflow.models import AdapterSettings, SamplerSettings, load_model
from nablaflow.models.export import lora_layers
from nablaflow.models.pipelines import PipelineModel
from nablaflow.runs.doctor import NEEDS
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


def saved_for_backward(networks: list[Any], work: Callable[[], Tensor]) -> int:
    """Bytes that a forward pass keeps besides the networks' own parameters."""
    own = {p.untyped_storage()._cdata for network in networks for p in network.parameters()}
    kept: dict[int, Tensor] = {}

    def keep(value: Tensor) -> Tensor:
        kept[value.untyped_storage()._cdata] = value
        return value

    with torch.autograd.graph.saved_tensors_hooks(keep, lambda value: value):
        result = work()
    assert result.requires_grad
    return sum(v.untyped_storage().nbytes() for key, v in kept.items() if key not in own)


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


@pytest.mark.slow
def test_what_sdxl_needs_is_what_the_doctor_says() -> None:
    """Weights, the decoder under a reward gradient, and the checkpointed denoiser."""
    model = load_model(
        full_stable_diffusion_xl(), SamplerSettings(steps=50), AdapterSettings(rank=8), META
    )
    denoiser, vae = model.network.to(torch.bfloat16), model.pipeline.vae
    encoders = [model.pipeline.text_encoder, model.pipeline.text_encoder_2]
    weights = 4 * parameters(vae) + 2 * sum(map(parameters, [denoiser, *encoders]))
    x0 = torch.empty(1, *model.state_shape, device=META, requires_grad=True)
    decoder = saved_for_backward([vae], lambda: vae.decode(x0, return_dict=False)[0])
    network: Any = denoiser
    network.enable_gradient_checkpointing()
    x = torch.empty(2, *model.state_shape, device=META, dtype=torch.bfloat16)
    condition = model.encode("a cat").expand(2)  # type: ignore[attr-defined]
    timestep = torch.zeros(2, dtype=torch.long, device=META)
    kept = saved_for_backward([network], lambda: model.forward(x, timestep, condition))
    assert decoder / 2**30 == pytest.approx(23.2, abs=0.1)
    assert kept / 2**30 == pytest.approx(0.9, abs=0.1)
    needed = NEEDS["Stable Diffusion XL (1024), bf16, gradient checkpointing"].memory * 2**30
    assert 0.8 * needed < weights + decoder + kept < needed
