"""A LoRA that is fused into the reference: what a stock pipeline renders that has it loaded."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from diffusers import DiffusionPipeline
from diffusers.utils.state_dict_utils import convert_state_dict_to_kohya
from safetensors.torch import load_file, save_file

from nablaflow.errors import UserError
from nablaflow.models import (
    AdapterSettings,
    SamplerSettings,
    WithLora,
    hand_over,
    load_model,
    load_pipeline,
)
from nablaflow.models.export import save_policy
from nablaflow.models.formats import write_policy
from nablaflow.models.pipelines import PipelineModel
from tests.support.flow_parts import SMALL
from tests.support.flow_pipelines import FLOW_FAMILIES
from tests.support.loras import FILE, WIDELY, stock_lora
from tests.support.pipelines import perturb

SCALE = 0.7


def test_a_weak_one_is_not_rounded_away(folders: dict[str, Path], tmp_path: Path) -> None:
    lora = stock_lora(folders["sd"], tmp_path / "lora") / FILE
    base: Any = load_pipeline(str(folders["sd"]))
    exact, half = (
        load_pipeline(WithLora(str(folders["sd"]), lora, 1e-3), dtype).unet.state_dict()
        for dtype in (torch.float32, torch.bfloat16)
    )
    for name, value in exact.items():
        assert torch.equal(half[name], value.to(torch.bfloat16))
    before = base.unet.state_dict()
    assert any(not torch.equal(before[name], value) for name, value in exact.items())


def model_of(source: WithLora, **sampler: Any) -> PipelineModel:
    settings = SamplerSettings(**sampler)
    return load_model(load_pipeline(source), settings, AdapterSettings(rank=2), torch.device("cpu"))


def image(model: PipelineModel, pipeline: Any) -> torch.Tensor:
    options = {"num_inference_steps": 2, "generator": torch.Generator().manual_seed(0)}
    pipeline.set_progress_bar_config(disable=True)
    return model.stock_image(pipeline, "a red circle", **options)


def with_lora_loaded(base: Path, lora: Path, weight_name: str = FILE) -> Any:
    """Loaded and scaled by diffusers, not fused."""
    pipeline = load_pipeline(str(base))
    pipeline.load_lora_weights(lora, weight_name=weight_name, adapter_name="style")
    pipeline.set_adapters("style", SCALE)
    return pipeline


def assert_same(model: PipelineModel, base: Path, lora: Path, weight_name: str = FILE) -> None:
    wanted = image(model, with_lora_loaded(base, lora, weight_name))
    with model.as_in_stock(), model.reference():
        found = image(model, model.pipeline)
    torch.testing.assert_close(found, wanted, rtol=0, atol=1e-4)
    before = image(model, load_pipeline(str(base)))
    assert (wanted - before).abs().max() > 1e-3


PARTS = {
    "unet": {"target_modules": ["to_q", "conv1"]},
    "text_encoder": {"target_modules": ["q_proj", "fc1"]},
}


@pytest.mark.parametrize("part", PARTS)
@pytest.mark.parametrize("family", ["sd", "sd2", "sdxl"])
def test_the_reference_is_the_model_with_the_lora(
    folders: dict[str, Path], tmp_path: Path, family: str, part: str
) -> None:
    base = folders[family]
    lora = stock_lora(base, tmp_path / "lora", part, **PARTS[part])
    model = model_of(WithLora(str(base), lora / FILE, SCALE), guidance_scale=3.0)
    assert_same(model, base, lora)


@pytest.mark.parametrize("family", FLOW_FAMILIES)
def test_so_it_is_with_transformers(folders: dict[str, Path], tmp_path: Path, family: str) -> None:
    base = folders[family]
    lora = stock_lora(base, tmp_path / "lora", "transformer", target_modules=WIDELY)
    model = model_of(WithLora(str(base), lora / FILE, SCALE), **SMALL)
    assert_same(model, base, lora)


@pytest.mark.parametrize("family", ["sd", "sdxl"])
def test_so_it_is_by_kohyas_names(folders: dict[str, Path], tmp_path: Path, family: str) -> None:
    stock_lora(folders[family], tmp_path / "lora")
    kohya = convert_state_dict_to_kohya(load_file(tmp_path / "lora" / FILE))
    save_file(kohya, tmp_path / "style.safetensors")
    model = model_of(WithLora(str(folders[family]), tmp_path / "style.safetensors", SCALE))
    assert_same(model, folders[family], tmp_path, "style.safetensors")


CLIPS = {"sd": [("text_encoder", "te", 16)], "sdxl": [("text_encoder", "te1", 16)]}
CLIPS["sdxl"].append(("text_encoder_2", "te2", 24))
"""Names by diffusers and by kohya, and width."""


@pytest.mark.parametrize("names", ["diffusers", "kohya"])
@pytest.mark.parametrize("family", CLIPS)
def test_text_encoders_are_changed_by_the_names_that_files_have(
    folders: dict[str, Path], tmp_path: Path, family: str, names: str
) -> None:
    """Which have a text_model in them that transformers 5 has no more."""
    stock_lora(folders[family], tmp_path / "lora")
    state = load_file(tmp_path / "lora" / FILE)
    if names == "kohya":
        state = convert_state_dict_to_kohya(state)
    for part, short, width in CLIPS[family]:
        for layer in ("q_proj", "k_proj", "v_proj", "out_proj"):
            path = f"text_model.encoder.layers.0.self_attn.{layer}"
            down, up = torch.randn(2, width), torch.randn(width, 2)
            if names == "kohya":
                name = f"lora_{short}_{path.replace('.', '_')}"
                state |= {f"{name}.lora_down.weight": down, f"{name}.lora_up.weight": up}
                state[f"{name}.alpha"] = torch.tensor(1.0)
            else:
                name = f"{part}.{path}"
                state |= {f"{name}.lora_A.weight": down, f"{name}.lora_B.weight": up}
    save_file(state, tmp_path / "style.safetensors")
    model = model_of(WithLora(str(folders[family]), tmp_path / "style.safetensors", SCALE))
    assert_same(model, folders[family], tmp_path, "style.safetensors")


def test_a_policy_on_top_is_saved_and_merged(folders: dict[str, Path], tmp_path: Path) -> None:
    """The LoRA goes on top of the other one; a merged pipeline holds both."""
    base = folders["sd"]
    lora = stock_lora(base, tmp_path / "lora")
    source = WithLora(str(base), lora / FILE, SCALE)
    model = model_of(source)
    perturb(model.network)
    own = save_policy(model, source, tmp_path / "run")
    write_policy(model, source, tmp_path / "whole", "merged", torch.float32)
    with model.as_in_stock():
        policy = image(model, model.pipeline)
    both = with_lora_loaded(base, lora)
    both.load_lora_weights(own, adapter_name="own")
    both.set_adapters(["style", "own"], [SCALE, 1.0])
    torch.testing.assert_close(image(model, both), policy, rtol=0, atol=1e-4)
    whole = DiffusionPipeline.from_pretrained(tmp_path / "whole")
    torch.testing.assert_close(image(model, whole), policy, rtol=0, atol=1e-4)


def test_a_pipeline_that_the_user_holds_stays_as_it_is(
    folders: dict[str, Path], tmp_path: Path
) -> None:
    lora = stock_lora(folders["sd"], tmp_path / "lora")
    mine: Any = DiffusionPipeline.from_pretrained(folders["sd"])
    before = {name: value.clone() for name, value in mine.unet.state_dict().items()}
    model = model_of(WithLora(hand_over(mine), lora / FILE, SCALE))
    assert_same(model, folders["sd"], lora)
    after = mine.unet.state_dict()
    assert list(after) == list(before)
    assert all(torch.equal(after[name], before[name]) for name in before)


def test_one_for_another_base_is_refused(folders: dict[str, Path], tmp_path: Path) -> None:
    lora = stock_lora(folders["sdxl"], tmp_path / "lora", target_modules=["to_k"])
    with pytest.raises(UserError, match=r"model_lora: .*is it a LoRA for another base"):
        load_pipeline(WithLora(str(folders["sd"]), lora / FILE, 1.0))
    with pytest.raises(UserError, match="model_lora: nothing reads a LoRA of a DDPMPipeline"):
        load_pipeline(WithLora(str(folders["ddpm"]), lora / FILE, 1.0))


def test_a_bias_that_has_no_place_is_one_line(folders: dict[str, Path], tmp_path: Path) -> None:
    """The projections of a UNet's queries have none, to which it could be added."""
    lora = stock_lora(folders["sd"], tmp_path / "lora", lora_bias=True) / FILE
    with pytest.raises(UserError, match=r"model_lora: .* at 1 .*no bias.*give another"):
        load_pipeline(WithLora(str(folders["sd"]), lora, 1.0))
