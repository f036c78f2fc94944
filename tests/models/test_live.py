"""A pipeline that the user holds: what is made of it, and that it stays as it was."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from diffusers import StableDiffusionImg2ImgPipeline, StableDiffusionPipeline

from nablaflow.errors import UserError
from nablaflow.models import AdapterSettings, SamplerSettings, hand_over, load_model, load_pipeline
from tests.support.flow_pipelines import flux, sd3
from tests.support.pipelines import stable_diffusion, unconditional

CPU = torch.device("cpu")


def storages(pipeline: Any) -> set[int]:
    """Where the weights lie in memory."""
    parts = [part for part in pipeline.components.values() if isinstance(part, torch.nn.Module)]
    return {p.untyped_storage().data_ptr() for part in parts for p in part.parameters()}


def weights(pipeline: Any) -> dict[str, torch.Tensor]:
    return {name: value.clone() for name, value in pipeline.unet.state_dict().items()}


def train_a_little(pipeline: Any, adapter: AdapterSettings) -> None:
    """Move whatever trains, in place, as an optimizer does."""
    model = load_model(pipeline, SamplerSettings(steps=4), adapter, CPU)
    trained = [p for p in model.network.parameters() if p.requires_grad]
    assert trained
    with torch.no_grad():
        for parameter in trained:
            parameter.add_(1.0)


@pytest.mark.parametrize("kind", ["lora", "full"])
@pytest.mark.parametrize("make", [stable_diffusion, unconditional])
def test_training_what_is_borrowed_leaves_the_pipeline_alone(make: Callable[..., Any], kind: Any):
    pipeline = make()
    pipeline.unet.train()
    before, scheduler = weights(pipeline), dict(pipeline.scheduler.config)
    names = [name for name, _ in pipeline.unet.named_modules()]
    train_a_little(hand_over(pipeline).borrow(torch.float32), AdapterSettings(kind=kind, rank=2))
    after = pipeline.unet.state_dict()
    assert before.keys() == after.keys()
    assert all(torch.equal(before[name], after[name]) for name in before)
    assert [name for name, _ in pipeline.unet.named_modules()] == names
    assert pipeline.unet.training
    assert all(p.requires_grad and p.is_contiguous() for p in pipeline.unet.parameters())
    assert dict(pipeline.scheduler.config) == scheduler


def test_what_is_borrowed_takes_no_memory_of_its_own_and_a_copy_shares_none():
    pipeline = stable_diffusion()
    live = hand_over(pipeline)
    assert storages(live.borrow(torch.float32)) == storages(pipeline)
    assert not storages(live.copy()) & storages(pipeline)


def test_another_precision_is_the_copys_alone():
    pipeline = stable_diffusion()
    borrowed = hand_over(pipeline).borrow(torch.bfloat16)
    assert borrowed.unet.dtype == borrowed.vae.dtype == torch.bfloat16
    assert pipeline.unet.dtype == pipeline.vae.dtype == torch.float32


def test_half_precision_weights_stay_so():
    pipeline = stable_diffusion().to(torch.float16)
    train_a_little(hand_over(pipeline).borrow(torch.float32), AdapterSettings(rank=2))
    assert pipeline.unet.dtype == pipeline.vae.dtype == torch.float16


@pytest.mark.parametrize("make", [stable_diffusion, unconditional, flux])
def test_what_is_made_of_it_drops_nothing_out_and_the_pipeline_keeps_its_mode(
    make: Callable[..., Any],
):
    pipeline = make()
    parts = [part for part in pipeline.components.values() if isinstance(part, torch.nn.Module)]
    for part in parts:
        part.train()
    live = hand_over(pipeline)
    for made in (live.borrow(torch.float32), live.copy()):
        found = [part for part in made.components.values() if isinstance(part, torch.nn.Module)]
        assert len(found) == len(parts)
        assert not any(module.training for part in found for module in part.modules())
    assert all(module.training for part in parts for module in part.modules())


def test_its_name_is_its_folder_or_none(folders: dict[str, Path]):
    loaded = StableDiffusionPipeline.from_pretrained(folders["sd"])
    assert hand_over(loaded).name == str(folders["sd"])
    assert hand_over(stable_diffusion()).name == "python:StableDiffusionPipeline"
    with pytest.raises(UserError, match=r"handed to nablaflow\.align; give it again"):
        load_pipeline("python:StableDiffusionPipeline")


def with_a_lora() -> Any:
    from peft import LoraConfig

    pipeline = stable_diffusion()
    pipeline.unet.add_adapter(LoraConfig(r=2, target_modules=["to_q"]))
    return pipeline


def with_a_lora_on_the_text_encoder() -> Any:
    from peft import LoraConfig

    pipeline = stable_diffusion()
    pipeline.text_encoder.add_adapter(LoraConfig(r=2, target_modules=["q_proj"]))
    return pipeline


def offloaded() -> Any:
    from accelerate.hooks import ModelHook, add_hook_to_module

    pipeline = stable_diffusion()
    add_hook_to_module(pipeline.unet, ModelHook())
    return pipeline


def with_fused_projections() -> Any:
    pipeline = stable_diffusion()
    pipeline.fuse_qkv_projections()
    return pipeline


def made_for_inference() -> Any:
    with torch.inference_mode():
        return stable_diffusion()


def wrapped() -> Any:
    pipeline = stable_diffusion()
    pipeline.unet = torch.nn.DataParallel(pipeline.unet)
    return pipeline


def cast_by_layer() -> Any:
    pipeline = stable_diffusion()
    pipeline.unet.enable_layerwise_casting(torch.float16, torch.float32)
    return pipeline


def without_its_text_encoder() -> Any:
    pipeline = stable_diffusion()
    pipeline.text_encoder = None  # as is done where the embeddings are kept
    return pipeline


def without_weights() -> Any:
    pipeline = stable_diffusion()
    pipeline.unet.to("meta")
    return pipeline


def with_free_u() -> Any:
    """Its images are others, and what is saved of a policy would be loaded without it."""
    pipeline = stable_diffusion()
    pipeline.enable_freeu(0.9, 0.2, 1.2, 1.4)
    return pipeline


def of_another_class() -> Any:
    return StableDiffusionImg2ImgPipeline(**stable_diffusion().components)


@pytest.mark.parametrize(
    ("make", "words"),
    [
        (with_a_lora, "unet carries a LoRA; call fuse_lora"),
        (with_a_lora_on_the_text_encoder, "text_encoder carries a LoRA"),
        (offloaded, "forward of the pipeline's unet was replaced"),
        (with_fused_projections, r"has its projections fused; call its unfuse_qkv"),
        (made_for_inference, r"was made inside torch.inference_mode\(\)"),
        (wrapped, r"unet is a DataParallel, .*the network that it wraps"),
        (cast_by_layer, "unet was replaced by a hook of diffusers .*load the pipeline without it"),
        (without_its_text_encoder, "the pipeline has no text_encoder, which a StableDiffusionPip"),
        (without_weights, "unet is on the device meta, without its weights; load"),
        (with_free_u, r"unet has FreeU on, .*call disable_freeu\(\)"),
        (of_another_class, "a StableDiffusionImg2ImgPipeline is not supported; use one of"),
        (lambda: stable_diffusion().unet, "must be a folder, a hub id or a diffusers pipeline"),
        (lambda: 3, "must be a folder, a hub id or a diffusers pipeline, not 3"),
    ],
)
def test_what_cannot_be_handed_over_is_one_line(make: Callable[[], Any], words: str):
    with pytest.raises(UserError, match=rf"^model: [^\n]*{words}"):
        hand_over(make())


def test_free_u_that_is_off_again_is_no_hindrance():
    pipeline = with_free_u()
    pipeline.disable_freeu()
    assert hand_over(pipeline).pipeline is pipeline


def test_a_part_that_its_family_does_without_may_be_none():
    pipeline: Any = sd3()
    pipeline.text_encoder_3 = pipeline.tokenizer_3 = None
    borrowed = hand_over(pipeline).borrow(torch.float32)
    assert borrowed.text_encoder_3 is None
    assert borrowed.transformer is not None


def test_a_compiled_network_is_taken_as_it_was_before():
    pipeline = stable_diffusion()
    pipeline.unet = torch.compile(pipeline.unet)
    borrowed = hand_over(pipeline).borrow(torch.float32)
    assert type(borrowed.unet).__name__ == "UNet2DConditionModel"


def test_an_ip_adapter_is_refused_before_any_image():
    """diffusers sets an attribute of the configuration then, and leaves its item as it was."""
    pipeline: Any = stable_diffusion()
    pipeline.unet.config.encoder_hid_dim_type = "ip_image_proj"
    borrowed = hand_over(pipeline).borrow(torch.float32)
    with pytest.raises(UserError, match=r"carries an IP-Adapter.*unload_ip_adapter\(\)"):
        load_model(borrowed, SamplerSettings(steps=4), AdapterSettings(), CPU)


def test_a_transformer_that_has_made_an_image_can_be_handed_over():
    """Its call leaves a register of hooks, without any."""
    pipeline: Any = flux()
    with pipeline.transformer.cache_context("cond"):
        pass
    assert hasattr(pipeline.transformer, "_diffusers_hook")
    hand_over(pipeline)
