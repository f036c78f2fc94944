"""Folders that are not whole, or of two models: one line before any work, and never other images.

A stock pipeline loads some of them all the same, with random numbers in place of weights.
"""

import json
import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from diffusers import DDIMScheduler, PNDMScheduler
from safetensors.torch import load_file, save_file

from nablaflow.diffusion import trajectory_noise
from nablaflow.diffusion.flow_schedule import FlowSchedule, flow_levels, shift_by_tokens
from nablaflow.errors import ExportError, UserError
from nablaflow.models import AdapterSettings, SamplerSettings, load_model, load_pipeline
from nablaflow.models.rehearsal import folders_fault, rehearse
from nablaflow.models.same_image import few_steps
from nablaflow.runs.sample import sample_images
from tests.support.flow_pipelines import flux, sd3
from tests.support.pipelines import PROMPT, render, stable_diffusion, stable_diffusion_xl

CPU = torch.device("cpu")
WORDS = "text_encoder/model.safetensors"


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    stable_diffusion().save_pretrained(tmp_path / "model")
    return tmp_path / "model"


def model_in(folder: Path, **sampler: Any) -> Any:
    settings = SamplerSettings(**{"steps": 4, **sampler})
    return load_model(load_pipeline(str(folder)), settings, AdapterSettings(rank=2), CPU)


def refused(folder: Path) -> str:
    with pytest.raises(UserError) as caught:
        model_in(folder)
    assert "\n" not in str(caught.value)
    return str(caught.value)


def change(path: Path, **values: Any) -> None:
    path.write_text(json.dumps({**json.loads(path.read_text()), **values}))


# --- weights that are not there -------------------------------------------------------------------

OTHER: dict[str, Callable[[dict[str, Any]], dict[str, Any]]] = {
    "one is missing": lambda found: dict(list(found.items())[:-1]),
    "other names": lambda found: {f"module.{name}": value for name, value in found.items()},
    "none": lambda found: {},
}


@pytest.mark.parametrize("change", OTHER)
def test_a_text_encoder_without_some_of_its_weights(folder: Path, change: str) -> None:
    file = folder / WORDS
    save_file(OTHER[change](load_file(file)), file, metadata={"format": "pt"})
    line = refused(folder)
    assert "the text_encoder of" in line
    assert "are not in its files" in line


def test_weights_of_another_shape_than_the_configuration_says(folder: Path) -> None:
    change(folder / "text_encoder" / "config.json", hidden_size=32)
    assert "by its config.json" in refused(folder)


@pytest.mark.parametrize("name", ["unet/config.json", "text_encoder/config.json"])
def test_a_missing_configuration_is_named(folder: Path, name: str) -> None:
    (folder / name).unlink()
    assert f"has no {name}" in refused(folder)


@pytest.mark.parametrize("name", ["unet", "text_encoder", "vae"])
def test_a_part_without_configuration_and_weights_is_named(folder: Path, name: str) -> None:
    for file in (folder / name).iterdir():
        file.unlink()
    assert f"has no {name}/config.json; copy the whole model" in refused(folder)


@pytest.mark.parametrize(
    "index",
    ["{}", "[]", "[" * 100_000, '{"weight_map": []}', '{"weight_map": {"a": "none.safetensors"}}'],
)
def test_a_list_of_shards_that_is_none(folder: Path, index: str) -> None:
    (folder / f"{WORDS}.index.json").write_text(index)
    assert f"{WORDS}.index.json" in refused(folder)


def test_shards_without_their_list(folder: Path) -> None:
    file = folder / "unet" / "diffusion_pytorch_model.safetensors"
    file.rename(file.with_name("diffusion_pytorch_model-00001-of-00001.safetensors"))
    assert "has diffusion_pytorch_model-00001-of-00001.safetensors and no list" in refused(folder)


@pytest.mark.parametrize("part", ["unet", "text_encoder"])
def test_a_variants_shard_that_is_missing(folder: Path, part: str) -> None:
    network = getattr(stable_diffusion(), part)
    for file in (folder / part).glob("*.safetensors"):
        file.unlink()
    network.save_pretrained(folder / part, max_shard_size="20KB", variant="fp16")
    model_in(folder)
    shard = max((folder / part).glob("*.safetensors"))
    shard.unlink()
    assert f".json names {shard.name}, and there is no such file beside it" in refused(folder)


@pytest.mark.parametrize("place", ["../../elsewhere.safetensors", "{}/elsewhere.safetensors"])
def test_a_shard_outside_the_folder_is_not_read(folder: Path, tmp_path: Path, place: str) -> None:
    """transformers would."""
    file, outside = folder / WORDS, place.format(tmp_path)
    named = dict.fromkeys(load_file(file), outside)
    file.rename(tmp_path / "elsewhere.safetensors")
    map_ = {"metadata": {}, "weight_map": named}
    (folder / f"{WORDS}.index.json").write_text(json.dumps(map_))
    assert f"names {outside}" in refused(folder)


@pytest.mark.parametrize("name", ["unet/diffusion_pytorch_model.safetensors", "tokenizer/x.json"])
def test_a_pipe_is_not_waited_for(folder: Path, name: str) -> None:
    (folder / name).unlink(missing_ok=True)
    os.mkfifo(folder / name)
    assert f"{name} is a pipe" in refused(folder)


# --- parts of another kind ------------------------------------------------------------------------


@pytest.mark.parametrize("kind", ["CLIPTextModelWithProjection", "T5EncoderModel", "NoSuchModel"])
def test_a_text_encoder_of_another_class(folder: Path, kind: str) -> None:
    change(folder / "model_index.json", text_encoder=["transformers", kind])
    line = refused(folder)
    assert f"its text_encoder is a {kind}" in line
    assert "a StableDiffusionPipeline's is a CLIPTextModel" in line


@pytest.mark.parametrize("index", ["[" * 100_000, '{"_class_name": ""}', '{"a": 1' + "0" * 5000])
def test_an_index_that_is_none(folder: Path, index: str) -> None:
    (folder / "model_index.json").write_text(index)
    assert "model_index.json" in refused(folder)


@pytest.mark.parametrize("held", ["[]", '"owner/name"', "3", "null", '{"a": ', "", "\ufeff{}"])
@pytest.mark.parametrize(
    "name",
    ["scheduler/scheduler_config.json", "unet/config.json", "tokenizer/tokenizer_config.json"],
)
def test_a_configuration_that_is_none_is_named(folder: Path, name: str, held: str) -> None:
    """diffusers takes a word in its place for a model, and asks the hub for it."""
    (folder / name).write_text(held, encoding="utf-8")
    said = refused(folder)
    assert said.startswith(f"model: {folder / name} ")
    assert said.endswith(f"copy the whole {(folder / name).parent.name} folder again")


@pytest.mark.parametrize(
    ("name", "setting"),
    [
        ("unet/config.json", {"layers_per_block": 10**6}),
        ("unet/config.json", {"transformer_layers_per_block": [1, 10**6]}),
        ("vae/config.json", {"layers_per_block": 1e300}),
        ("text_encoder/config.json", {"num_hidden_layers": 10**30}),
        ("text_encoder/config.json", {"text_config": {"num_hidden_layers": 10**6}}),
        ("scheduler/scheduler_config.json", {"num_train_timesteps": 10**9}),
    ],
)
def test_counts_that_would_take_hours_are_named(
    folder: Path, name: str, setting: dict[str, Any]
) -> None:
    change(folder / name, **setting)
    assert f"in {folder / name} asks for more than 1,000" in refused(folder)


@pytest.mark.parametrize("most", [10**30, 1, 17])
def test_a_tokenizer_that_does_not_keep_to_what_the_clip_reads(folder: Path, most: int) -> None:
    change(folder / "tokenizer" / "tokenizer_config.json", model_max_length=most)
    line = refused(folder)
    assert f"{most:,} tokens" in line
    assert "set model_max_length in tokenizer/tokenizer_config.json to 16" in line


@pytest.mark.parametrize("most", ["16", None, [16], 16.0])
def test_a_length_that_is_no_number_of_tokens(folder: Path, most: Any) -> None:
    change(folder / "tokenizer" / "tokenizer_config.json", model_max_length=most)
    assert "tokenizer/tokenizer_config.json" in refused(folder)


def test_a_text_encoder_without_what_reads_prompts_for_it(tmp_path: Path) -> None:
    sd3().save_pretrained(tmp_path)
    change(tmp_path / "model_index.json", tokenizer_3=[None, None])
    assert "it has a text_encoder_3 and no tokenizer_3" in refused(tmp_path)


def test_a_tokenizer_without_padding(folder: Path) -> None:
    change(folder / "tokenizer" / "tokenizer_config.json", pad_token=None)
    assert "no pad_token" in refused(folder)


# --- schedulers -----------------------------------------------------------------------------------


def test_what_a_pipeline_corrects_of_its_schedulers_defaults_counts(folder: Path) -> None:
    """Of a scheduler without settings Stable Diffusion's pipeline sets two by itself."""
    own = folder / "scheduler" / "scheduler_config.json"
    own.write_text(json.dumps({"_class_name": "DDIMScheduler"}))
    model = model_in(folder, sigma_floor=1e-9)
    stock: Any = load_pipeline(str(folder))
    assert isinstance(stock.scheduler, DDIMScheduler)
    with torch.no_grad():
        found = model.decode(model.sample([PROMPT], trajectory_noise([3])).x0)
    expected = render(stock, steps=4, seed=3, guidance_scale=1.0, eta=1.0)
    torch.testing.assert_close(found, expected, rtol=0, atol=1e-4)


def test_a_pndm_with_its_first_steps_is_rehearsed(folder: Path, tmp_path: Path) -> None:
    """Its stock pipeline does not make two steps, which are enough for others."""
    PNDMScheduler(steps_offset=1, skip_prk_steps=False).save_pretrained(folder / "scheduler")
    change(folder / "model_index.json", scheduler=["diffusers", "PNDMScheduler"])
    model = model_in(folder)
    assert isinstance(model.pipeline.scheduler, PNDMScheduler)
    assert rehearse(model, str(folder), tmp_path) is None
    assert few_steps(model.pipeline.scheduler) == 4


FLOW: dict[str, Any] = {
    "shift": 1e30,
    "shift_terminal": "0.1",
    "base_shift": None,
    "max_shift": "a",
    "base_image_seq_len": None,
}


@pytest.mark.parametrize("name", FLOW)
def test_numbers_of_flow_matching_that_are_none(name: str) -> None:
    config = {"shift": 3.0, "use_dynamic_shifting": name != "shift", name: FLOW[name]}
    with pytest.raises(UserError, match=f"model: {name} .* makes no noise levels"):
        flow_levels(FlowSchedule(config, "even", shift_by_tokens(config, 64)), 4)


@pytest.mark.parametrize(
    "ends",
    [
        {"base_shift": 900.0, "max_shift": 900.0},
        {"base_shift": -900.0, "max_shift": -900.0},
        {"base_shift": -1.0, "max_shift": -1.0, "time_shift_type": "linear"},
    ],
)
def test_a_shift_by_size_that_makes_no_levels_is_said_as_it_is(ends: dict[str, Any]) -> None:
    config = {"shift": 3.0, "use_dynamic_shifting": True, **ends}
    said = f"the shift by base_shift and max_shift of {ends['max_shift']} .* no noise levels"
    with pytest.raises(UserError, match=said):
        flow_levels(FlowSchedule(config, "even", shift_by_tokens(config, 64)), 4)


# --- autoencoders ---------------------------------------------------------------------------------


@pytest.mark.parametrize("kind", ["sd", "sdxl"])
def test_the_latents_of_an_autoencoder_are_made_as_the_stock_pipeline_does(
    tmp_path: Path, kind: str
) -> None:
    """Of a UNet's pipelines none reads a shift, and XL's reads statistics where there are both."""
    pipeline: Any = stable_diffusion() if kind == "sd" else stable_diffusion_xl()
    statistics = {"latents_mean": [0.1, 0.2, 0.3, 0.4], "latents_std": [1.0, 2.0, 1.5, 0.5]}
    pipeline.vae.register_to_config(shift_factor=0.3, **statistics)
    pipeline.save_pretrained(tmp_path)
    model = model_in(tmp_path)
    stock, call = load_pipeline(str(tmp_path)), {"num_inference_steps": 2}
    found, expected = (
        draw(stock, PROMPT, generator=torch.Generator().manual_seed(0), **call)
        for draw in (model.stock_image, model.stock_image_by_its_own_decoder)
    )
    torch.testing.assert_close(found, expected, rtol=0, atol=1e-4)


@pytest.mark.parametrize("shift", [None, "0.1", float("nan")])
def test_a_shift_that_is_no_number(tmp_path: Path, shift: Any) -> None:
    sd3(t5=False).save_pretrained(tmp_path)
    change(tmp_path / "vae" / "config.json", shift_factor=shift)
    assert "shift_factor" in refused(tmp_path)


def test_another_decoder_than_the_stock_pipelines_is_found_before_any_update(
    folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    model = model_in(folder)
    monkeypatch.setattr(model, "to_autoencoder", lambda x0: 1.1 * x0)
    with pytest.raises(ExportError, match="another image in a stock pipeline"):
        rehearse(model, str(folder), tmp_path)


# --- networks that do not fit each other ----------------------------------------------------------


def unfit(tmp_path: Path) -> Path:
    """A transformer whose positions are narrower than its heads."""
    flux().save_pretrained(tmp_path / "unfit")
    change(tmp_path / "unfit" / "transformer" / "config.json", axes_dims_rope=[4, 4, 4])
    return tmp_path / "unfit"


def test_what_its_own_pipeline_fails_at_is_one_line(tmp_path: Path) -> None:
    broken, size = unfit(tmp_path), {"height": 16, "width": 16}
    with pytest.raises(UserError, match="its own pipeline cannot sample it either"):
        rehearse(model_in(broken, **size), str(broken), tmp_path)
    with pytest.raises(UserError, match="its own pipeline cannot sample it either"):
        sample_images(str(broken), ["a circle"], 1, 0, of_model=dict(size))


def test_what_its_own_pipeline_can_do_is_a_fault_of_ours(folder: Path) -> None:
    with pytest.raises(ZeroDivisionError), folders_fault(model_in(folder)):
        raise ZeroDivisionError


# --- images ---------------------------------------------------------------------------------------


def test_images_that_are_no_numbers_are_not_written(tmp_path: Path) -> None:
    pipeline = sd3(t5=False)
    torch.nn.init.constant_(pipeline.vae.decoder.conv_out.bias, float("nan"))
    pipeline.save_pretrained(tmp_path / "model")
    with pytest.raises(UserError, match="its images are not finite"):
        sample_images(
            str(tmp_path / "model"),
            ["a circle"],
            1,
            0,
            of_model={"height": 16, "width": 16},
        )
