"""Folders whose parts are missing, of another kind, or of two models: one line, before any work."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import diffusers
import pytest
import torch
from diffusers import AutoencoderKL, DiffusionPipeline
from diffusers.pipelines.auto_pipeline import AUTO_TEXT2IMAGE_PIPELINES_MAPPING
from transformers import CLIPTextModel, CLIPTextModelWithProjection, T5Config, T5EncoderModel

from nablaflow.models import AdapterSettings, SamplerSettings, load_model, load_pipeline
from nablaflow.models.load import FAMILIES
from tests.support.flow_parts import qwen
from tests.support.flow_pipelines import flux, flux2_klein, sd3
from tests.support.mistakes import line_of
from tests.support.padded_pipelines import chroma, qwen_image, z_image
from tests.support.pipelines import (
    stable_diffusion,
    stable_diffusion_xl,
    text_config,
    unconditional,
)

SERVED = {kind.__name__: (family, kind) for family in FAMILIES for kind in family.serves}
BUILT: dict[str, Callable[[], Any]] = {
    **{"sd": stable_diffusion, "sdxl": stable_diffusion_xl, "ddpm": unconditional},
    **{"sd3": sd3, "flux": flux, "klein": flux2_klein},
    **{"z-image": z_image, "qwen-image": qwen_image, "chroma": chroma},
}


def indexed(folder: Path, **parts: Any) -> str:
    """A folder with a list of parts and no weights: reading them would be another error."""
    for part, kind in parts.items():
        if isinstance(kind, list):
            (folder / part).mkdir(exist_ok=True)
    (folder / "model_index.json").write_text(json.dumps(parts))
    return str(folder)


# --- the list of parts ----------------------------------------------------------------------------


def other_pipelines() -> list[str]:
    """Every class of pipeline that diffusers has, text-to-image among them, but those served."""
    names = [name for name in dir(diffusers) if name.endswith("Pipeline")]
    return sorted(set(names) - set(SERVED) - {"DiffusionPipeline"})


def test_a_pipeline_that_is_not_served_names_those_that_are(tmp_path: Path) -> None:
    others = other_pipelines()
    text_to_image = {kind.__name__ for kind in AUTO_TEXT2IMAGE_PIPELINES_MAPPING.values()}
    assert len(set(others) & text_to_image) > 20
    for name in [*others, "NoSuchPipeline"]:
        folder = indexed(tmp_path, _class_name=name, unet=["diffusers", "UNet2DConditionModel"])
        line = line_of(lambda folder=folder: load_pipeline(folder))
        assert line.startswith(f"model: a {name} is not supported; use one of")
        assert all(served in line for served in SERVED)


@pytest.mark.parametrize("name", [None, "", 3])
def test_a_list_of_parts_without_a_class_is_one_line(tmp_path: Path, name: Any) -> None:
    folder = indexed(tmp_path)
    (tmp_path / "model_index.json").write_text(json.dumps({"_class_name": name}))
    assert "does not say the class of its pipeline" in line_of(lambda: load_pipeline(folder))


@pytest.mark.parametrize("entry", [None, [None, None], [], "UNet2DConditionModel", ["diffusers"]])
@pytest.mark.parametrize("kind", SERVED)
def test_a_part_that_is_not_named_is_named_in_one_line(
    tmp_path: Path, kind: str, entry: Any
) -> None:
    family, _ = SERVED[kind]
    line = line_of(
        lambda: load_pipeline(
            indexed(
                tmp_path,
                _class_name=kind,
                scheduler=["diffusers", "DDIMScheduler"],
                text_encoder=["transformers", "CLIPTextModel"],
                text_encoder_2=["transformers", "CLIPTextModel"],
                tokenizer=["transformers", "CLIPTokenizer"],
                tokenizer_2=["transformers", "CLIPTokenizer"],
                vae=["diffusers", "AutoencoderKL"],
                **{family.denoiser: entry},
            )
        )
    )
    assert f"names no {family.denoiser}, which a {kind} is made of" in line


@pytest.mark.parametrize("part", ["vae", "scheduler", "tokenizer", "unet", "text_encoder"])
def test_a_part_of_anothers_code_is_one_line(tmp_path: Path, part: str) -> None:
    """Also where it is called as one of diffusers' own."""
    pipeline = stable_diffusion()
    parts = {key: list(kind) for key, kind in pipeline.config.items() if isinstance(kind, tuple)}
    parts[part] = ["modules", parts[part][1]]
    folder = indexed(tmp_path, _class_name=type(pipeline).__name__, **parts)
    line = line_of(lambda: load_pipeline(folder))
    assert line.startswith(
        f"model: its {part} is 'modules.{parts[part][1]}', whose code is not run"
    )


@pytest.mark.parametrize("name", BUILT)
def test_a_denoiser_of_another_class_is_one_line(tmp_path: Path, name: str) -> None:
    pipeline = BUILT[name]()
    parts = {key: list(kind) for key, kind in pipeline.config.items() if isinstance(kind, tuple)}
    family, kind = SERVED[type(pipeline).__name__]
    own = parts[family.denoiser][1]
    parts[family.denoiser] = ["diffusers", "PixArtTransformer2DModel"]
    folder = indexed(tmp_path, _class_name=kind.__name__, **parts)
    line = line_of(lambda: load_pipeline(folder))
    assert f"is a PixArtTransformer2DModel, and a {kind.__name__}'s is a {own}" in line


# --- parts of two models --------------------------------------------------------------------------


def with_part(pipeline: Any, name: str, part: Any) -> Any:
    pipeline.register_modules(**{name: part})
    return pipeline


def configured(pipeline: Any, part: str, **changes: Any) -> Any:
    getattr(pipeline, part).register_to_config(**changes)
    return pipeline


def refusal(pipeline: DiffusionPipeline) -> str:
    size = {"height": 16, "width": 16} if hasattr(pipeline, "transformer") else {}
    settings = SamplerSettings(steps=4, **size)
    given = AdapterSettings(rank=2)
    return line_of(lambda: load_model(pipeline, settings, given, torch.device("cpu")))


def t5(words: int = 10, width: int = 24) -> T5EncoderModel:
    config = T5Config(vocab_size=words, d_model=width, d_ff=8, d_kv=8, num_layers=1, num_heads=2)
    return T5EncoderModel(config)


def eight_channels() -> AutoencoderKL:
    return AutoencoderKL(
        block_out_channels=(8,), latent_channels=8, norm_num_groups=4, shift_factor=0.1
    )


@pytest.mark.parametrize("name", ["sd", "sdxl", "sd3", "flux", "z-image", "chroma"])
def test_an_autoencoder_of_other_latents_is_refused(name: str) -> None:
    line = refusal(with_part(BUILT[name](), "vae", eight_channels()))
    assert "makes latents of 4 channels and its vae reads 8" in line


@pytest.mark.parametrize(
    ("make", "part"), [(sd3, "text_encoder_3"), (flux, "text_encoder_2"), (chroma, "text_encoder")]
)
def test_a_text_encoder_of_another_width_is_refused(make: Any, part: str) -> None:
    line = refusal(with_part(make(), part, t5(width=16)))
    assert "reads prompts of width 24 and its text encoders write 16" in line


@pytest.mark.parametrize(
    ("make", "kind"), [(sd3, CLIPTextModelWithProjection), (flux, CLIPTextModel)]
)
def test_a_pooled_prompt_of_another_width_is_refused(make: Any, kind: Any) -> None:
    pipeline = make()
    other = kind(text_config(pipeline.tokenizer))
    assert "reads pooled prompts of width" in refusal(with_part(pipeline, "text_encoder", other))


def test_a_language_model_of_too_few_layers_is_refused() -> None:
    pipeline = flux2_klein()
    line = refusal(with_part(pipeline, "text_encoder", qwen(pipeline.tokenizer, 2)))
    assert "layer 27 of its text encoder are read, which has 2" in line


def test_a_tokenizer_with_more_words_than_its_encoder_is_refused() -> None:
    line = refusal(with_part(chroma(), "text_encoder", t5(words=4)))
    assert "its tokenizer has 10 words and its text_encoder 4" in line


def test_words_added_to_a_tokenizer_alone_are_named() -> None:
    pipeline = stable_diffusion()
    pipeline.tokenizer.add_tokens(["<my-cat>"])
    line = refusal(pipeline)
    assert "words were added to its tokenizer (<my-cat>)" in line
    assert f"text_encoder.resize_token_embeddings({len(pipeline.tokenizer)})" in line


@pytest.mark.parametrize("make", [z_image, flux2_klein])
def test_a_tokenizer_without_a_template_is_refused(make: Callable[[], Any]) -> None:
    pipeline = make()
    pipeline.tokenizer.chat_template = None
    assert "has no chat_template" in refusal(pipeline)


@pytest.mark.parametrize("scale", [None, 0, -1.0, "x"])
def test_latents_are_divided_by_a_positive_number(scale: Any) -> None:
    line = refusal(configured(stable_diffusion(), "vae", scaling_factor=scale))
    assert f"scaling_factor {scale!r} in its vae/config.json cannot be divided by" in line
    statistics = {"latents_std": [1.0, 2.0, 0.0, 1.0]}
    assert "latents_std" in refusal(configured(qwen_image(), "vae", **statistics))


def test_statistics_are_of_every_channel() -> None:
    line = refusal(configured(qwen_image(), "vae", latents_mean=[0.0]))
    assert "latents_mean has 1 numbers for 4 channels" in line


@pytest.mark.parametrize("size", [0, -8, [8], "8", [8, 0]])
def test_a_sample_size_that_is_none_is_refused(size: Any) -> None:
    for make in (stable_diffusion, unconditional):
        line = refusal(configured(make(), "unet", sample_size=size))
        assert f"its sample_size of {size!r} is no size" in line


# --- schedulers of another kind -------------------------------------------------------------------

OTHERS = {
    "LCMScheduler": "distilled to jump to the image",
    "TCDScheduler": "distilled to jump to the image",
    "EDMEulerScheduler": "as EDM does",
    "CMStochasticIterativeScheduler": "as EDM does",
    "RePaintScheduler": "is for another kind of pipeline",
    "UnCLIPScheduler": "is for another kind of pipeline",
    "FlowMatchEulerDiscreteScheduler": "has no betas",
    "ScoreSdeVeScheduler": "",
}


@pytest.mark.parametrize("name", OTHERS)
def test_a_scheduler_of_another_kind_is_refused_by_a_diffusion_model(name: str) -> None:
    for make in (stable_diffusion, stable_diffusion_xl, unconditional):
        line = refusal(with_part(make(), "scheduler", getattr(diffusers, name)()))
        assert line.startswith("model: its scheduler")
        assert OTHERS[name] in line


@pytest.mark.parametrize(
    "name", ["DDIMScheduler", "EulerDiscreteScheduler", "LCMScheduler", "FlowMatchLCMScheduler"]
)
def test_a_scheduler_of_another_kind_is_refused_by_flow_matching(name: str) -> None:
    for make in (sd3, flux, flux2_klein, z_image, qwen_image, chroma):
        line = refusal(with_part(make(), "scheduler", getattr(diffusers, name)()))
        assert line.startswith("model: its scheduler is")
        assert "use the FlowMatchEulerDiscreteScheduler" in line


@pytest.mark.parametrize(
    ("make", "changes", "said"),
    [
        (stable_diffusion, {"timestep_spacing": "x"}, "timestep_spacing 'x'"),
        (stable_diffusion, {"beta_schedule": "x"}, "makes no noise schedule (x is not implemented"),
        (unconditional, {"variance_type": "learned_range"}, "has a learned_range variance"),
        (sd3, {"shift": 0.0}, "shift 0.0"),
        (sd3, {"shift": None}, "shift None"),
        (sd3, {"num_train_timesteps": 0}, "num_train_timesteps 0"),
        (sd3, {"stochastic_sampling": True}, "stochastic_sampling to false"),
        (qwen_image, {"shift_terminal": 2.0}, "shift_terminal 2.0"),
        (flux, {"base_image_seq_len": 4096}, "are both 4096"),
    ],
)
def test_a_schedule_that_is_none_is_refused(make: Any, changes: dict[str, Any], said: str) -> None:
    assert said in refusal(configured(make(), "scheduler", **changes))


def test_betas_below_zero_are_refused() -> None:
    scheduler = diffusers.DDIMScheduler(trained_betas=[0.1, -0.2, 0.1])
    line = refusal(with_part(stable_diffusion(), "scheduler", scheduler))
    assert "are no noise levels" in line
