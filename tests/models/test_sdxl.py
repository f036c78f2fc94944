"""Stable Diffusion XL against the stock pipeline: its text, its sizes, its schedule, its LoRA."""

from pathlib import Path
from typing import Any

import pytest
import torch
from diffusers import StableDiffusionXLPipeline
from torch import Tensor

from nablaflow.diffusion import sample_trajectories, trajectory_noise
from nablaflow.models import AdapterSettings, SamplerSettings, load_model, load_pipeline
from nablaflow.models.export import save_policy
from nablaflow.models.pipelines import PipelineModel
from nablaflow.models.rehearsal import rehearse
from tests.support.mistakes import line_of
from tests.support.pipelines import PROMPT, perturb, render, stable_diffusion_xl, with_ddim

CPU = torch.device("cpu")
SAME = 1e-4
NEARLY_ODE = {"eta": 1e-9, "sigma_floor": 1e-9}


def model_of(pipeline: Any, adapter: dict[str, Any] | None = None, **sampler: Any) -> PipelineModel:
    torch.manual_seed(0)
    settings = SamplerSettings(**{"steps": 4, **sampler})
    return load_model(pipeline, settings, AdapterSettings(**(adapter or {"rank": 2})), CPU)


def loaded(folder: Path) -> Any:
    return load_pipeline(str(folder))


def stock(folder: Path) -> Any:
    return StableDiffusionXLPipeline.from_pretrained(folder)


@torch.no_grad()
def sample(model: PipelineModel, seed: int = 7, prompt: str = PROMPT) -> Tensor:
    condition = model.condition([prompt])
    found = sample_trajectories(
        lambda x, k: model.predict(x, k, condition),
        model.process,
        model.state_shape,
        trajectory_noise([seed]),
        CPU,
    )
    return model.decode(found.x0)


@pytest.mark.parametrize(("guidance", "negative"), [(1.0, ""), (5.0, ""), (5.0, "a blue square")])
@pytest.mark.parametrize("eta", [1.0, 0.4])
def test_sampling_gives_the_stock_pipelines_image(
    folders: dict[str, Path], guidance: float, negative: str, eta: float
) -> None:
    """With DDIM and the same noise; an empty negative prompt is a zero embedding there."""
    pipeline = with_ddim(loaded(folders["sdxl"]))
    settings = {"guidance_scale": guidance, "negative_prompt": negative}
    model = model_of(pipeline, eta=eta, sigma_floor=1e-9, **settings)
    options: dict[str, Any] = {"negative_prompt": negative} if negative else {}
    expected = render(
        with_ddim(stock(folders["sdxl"])), steps=4, guidance_scale=guidance, eta=eta, **options
    )
    torch.testing.assert_close(sample(model), expected, rtol=0, atol=SAME)


@pytest.mark.parametrize("guidance", [1.0, 5.0])
def test_without_noise_sampling_is_the_folders_own_euler(
    folders: dict[str, Path], guidance: float
) -> None:
    """Euler's step for the ODE is DDIM's with eta 0; both end at a state without noise here."""
    pipeline = loaded(folders["sdxl"])
    pipeline.scheduler.register_to_config(set_alpha_to_one=True)
    model = model_of(pipeline, guidance_scale=guidance, **NEARLY_ODE)
    assert model.process.timestep.tolist() == [0, 1, 251, 501, 751]
    expected = render(stock(folders["sdxl"]), steps=4, guidance_scale=guidance)
    torch.testing.assert_close(sample(model), expected, rtol=0, atol=SAME)


def test_sizes_are_given_as_asked(folders: dict[str, Path]) -> None:
    sizes = {"original_size": [64, 48], "crop": [3, 5], "target_size": [32, 24]}
    model = model_of(with_ddim(loaded(folders["sdxl"])), height=16, width=24, **sizes)
    call = model.stock_call(PROMPT)
    assert call["crops_coords_top_left"] == (3, 5)
    pipeline = with_ddim(stock(folders["sdxl"]))
    expected = render(pipeline, steps=4, eta=1.0, **call)
    torch.testing.assert_close(sample(model), expected, rtol=0, atol=SAME)
    plain = render(pipeline, steps=4, eta=1.0, height=16, width=24, guidance_scale=1.0)
    assert (plain - expected).abs().max() > 10 * SAME


def test_a_long_prompt_is_embedded_in_pieces_by_both_encoders(folders: dict[str, Path]) -> None:
    """A prompt that fits one piece has the stock embedding in front."""
    model = model_of(loaded(folders["sdxl"]), prompt_chunks=2)
    long = " ".join(["a red circle"] * 6)
    found, short = model.condition([long]), model.condition([PROMPT])
    expected, _, pooled, _ = stock(folders["sdxl"]).encode_prompt(
        PROMPT, do_classifier_free_guidance=False
    )
    assert short.hidden is not None
    assert found.hidden is not None
    tokens = expected.shape[1]
    assert found.hidden.shape[1] == short.hidden.shape[1] == 2 * tokens
    torch.testing.assert_close(short.hidden[:, :tokens], expected)
    torch.testing.assert_close(short.pooled, pooled)
    assert (found.hidden[:, tokens:] - short.hidden[:, tokens:]).abs().max() > 0.1
    assert model.note_on([long]) is None
    note = model_of(loaded(folders["sdxl"])).note_on([long])
    assert note is not None
    assert "sampler.prompt_chunks=2" in note


def test_a_size_that_half_precision_has_not_is_given_whole(folders: dict[str, Path]) -> None:
    """1019 is 1020 in bfloat16, and its embedding another."""
    pipeline = load_pipeline(str(folders["sdxl"]), torch.bfloat16)
    model = model_of(pipeline, original_size=[1019, 1019])
    seen: list[Tensor] = []
    pipeline.unet.add_time_proj.register_forward_pre_hook(lambda _, given: seen.append(given[0]))
    x, k = torch.randn(1, *model.state_shape), torch.tensor([4])
    found = model.predict(x, k, model.condition([PROMPT]))
    assert seen[0][:2].tolist() == [1019, 1019]
    assert found.x0_hat.dtype == torch.float32
    assert model.decode(found.x0_hat).dtype == torch.float32


@pytest.mark.parametrize(
    "adapter", [{"rank": 2}, {"rank": 2, "alpha": 5.0}], ids=["plain", "alpha"]
)
def test_a_stock_pipeline_renders_the_policy_from_the_lora(
    folders: dict[str, Path], tmp_path: Path, adapter: dict[str, Any]
) -> None:
    model = model_of(loaded(folders["sdxl"]), adapter, guidance_scale=3.0)
    perturb(model.network)
    saved = save_policy(model, str(folders["sdxl"]), tmp_path)
    assert saved == tmp_path / "lora"
    pipeline = stock(folders["sdxl"])
    reference = render(pipeline)
    pipeline.load_lora_weights(saved)
    aligned = render(pipeline)
    assert (aligned - render(model.pipeline)).abs().max() < SAME
    assert (aligned - reference).abs().max() > 100 * SAME


def test_a_fully_trained_model_is_saved_whole(folders: dict[str, Path], tmp_path: Path) -> None:
    model = model_of(loaded(folders["sdxl"]), {"kind": "full"})
    perturb(model.network, scale=0.05)
    saved = save_policy(model, str(folders["sdxl"]), tmp_path)
    assert saved == tmp_path / "model"
    aligned = render(StableDiffusionXLPipeline.from_pretrained(saved))
    assert (aligned - render(model.pipeline)).abs().max() < SAME


def test_it_is_rehearsed_and_left_as_it_was(folders: dict[str, Path], tmp_path: Path) -> None:
    pipeline: Any = load_pipeline(str(folders["sdxl"]))
    pipeline.vae.decoder.conv_in.bias.data.fill_(6e4)
    pipeline.vae.decoder.conv_in.weight.data.fill_(3e3)  # sums of the two are beyond 65504
    wide = tmp_path / "wide"
    pipeline.save_pretrained(wide)
    model = model_of(
        load_pipeline(str(wide), torch.float16, exact_decoder=True), guidance_scale=3.0
    )
    before = sample(model)
    note = rehearse(model, str(wide), tmp_path)
    assert note is not None
    assert "overflows in fp16" in note
    assert list(tmp_path.iterdir()) == [wide]
    assert torch.equal(sample(model), before)


def test_a_refiner_is_refused_before_its_weights_are_read(tmp_path: Path) -> None:
    pipeline = stable_diffusion_xl()
    refiner = StableDiffusionXLPipeline(
        **pipeline.components | {"text_encoder": None, "tokenizer": None}, add_watermarker=False
    )
    refiner.save_pretrained(tmp_path)
    for file in tmp_path.rglob("*.safetensors"):
        file.write_bytes(b"not weights")
    assert "this is a refiner" in line_of(lambda: load_pipeline(str(tmp_path)))


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        ({"cross_attention_dim": 2048}, "reads prompts of width 2048"),
        ({"projection_class_embeddings_input_dim": 2816}, "sizes of width 2816"),
        ({"addition_embed_type": "text_image"}, "addition_embed_type is 'text_image'"),
    ],
)
def test_parts_of_another_model_are_refused(changes: dict[str, Any], said: str) -> None:
    pipeline = stable_diffusion_xl()
    pipeline.unet.register_to_config(**changes)
    assert said in line_of(lambda: model_of(pipeline))


def test_sizes_are_nothing_to_another_model(folders: dict[str, Path]) -> None:
    line = line_of(lambda: model_of(loaded(folders["sd"]), crop=[0, 8]))
    assert line.startswith("sampler.crop: a StableDiffusionPipeline has no use for it")
