"""Files of a model that are of no use, or of the wrong kind: refused, and never left out."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from diffusers import ConsistencyDecoderVAE
from safetensors.torch import load_file, save_file

from nablaflow.errors import UserError
from nablaflow.models import AdapterSettings, SamplerSettings, load_model, load_pipeline
from nablaflow.models.pipelines import PipelineModel
from tests.support.pipelines import stable_diffusion

WORDS = "text_encoder/model.safetensors"


def loaded(folder: Path) -> PipelineModel:
    pipeline, cpu = load_pipeline(str(folder)), torch.device("cpu")
    return load_model(pipeline, SamplerSettings(steps=4), AdapterSettings(), cpu)


def refused(folder: Path) -> str:
    with pytest.raises(UserError) as caught:
        loaded(folder)
    assert "\n" not in str(caught.value)
    return str(caught.value)


def change(path: Path, **values: Any) -> None:
    path.write_text(json.dumps({**json.loads(path.read_text()), **values}))


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    stable_diffusion().save_pretrained(tmp_path / "model")
    return tmp_path / "model"


@pytest.mark.parametrize(
    ("file", "more"),
    [
        ("unet/diffusion_pytorch_model", "conv_in.scale_weight"),
        ("vae/diffusion_pytorch_model", "decoder.conv_in.scale_weight"),
        ("text_encoder/model", "encoder.layers.0.mlp.fc1.scale_weight"),
        ("text_encoder/model", "text_model.encoder.layers.0.mlp.fc1.scale_weight"),
    ],
)
def test_weights_that_have_no_place_are_not_left_out(folder: Path, file: str, more: str) -> None:
    """As of a network that is quantized, of which the rest makes images of nothing."""
    path = folder / f"{file}.safetensors"
    save_file({**load_file(path), more: torch.ones(1)}, path, metadata={"format": "pt"})
    line = refused(folder)
    assert f"the {Path(file).parent} of" in line
    assert f"such as {more.removeprefix('text_model.')}, for which" in line


def test_a_text_encoders_file_may_hold_the_rest_of_its_clip(folder: Path) -> None:
    """By the names of the published files, with the tables of older ones."""
    state = {f"text_model.{name}": value for name, value in load_file(folder / WORDS).items()}
    state |= {"text_model.embeddings.position_ids": torch.arange(16)[None]}
    state |= {"vision_model.post_layernorm.weight": torch.ones(2), "logit_scale": torch.ones(())}
    wanted = load_pipeline(str(folder)).text_encoder.state_dict()
    save_file(state, folder / WORDS, metadata={"format": "pt"})
    found = load_pipeline(str(folder)).text_encoder.state_dict()
    assert all(torch.equal(found[name], value) for name, value in wanted.items())


@pytest.mark.parametrize("part", ["unet", "vae", "text_encoder"])
def test_a_quantized_part_is_named(folder: Path, part: str) -> None:
    change(folder / part / "config.json", quantization_config={"quant_method": "bitsandbytes"})
    assert f"its {part} is quantized (bitsandbytes)" in refused(folder)


@pytest.mark.parametrize("kind", [torch.int8, torch.int64, torch.bool, torch.complex64])
@pytest.mark.parametrize("file", ["unet/diffusion_pytorch_model", "text_encoder/model"])
def test_weights_that_are_whole_numbers_are_not_taken_for_fractions(
    folder: Path, file: str, kind: torch.dtype
) -> None:
    """As those of a quantized network without its scales: libraries cast them silently."""
    path = folder / f"{file}.safetensors"
    state = load_file(path)
    name = next(name for name in state if name.endswith(".weight"))
    save_file({**state, name: (20 * state[name]).to(kind)}, path, metadata={"format": "pt"})
    line = refused(folder)
    assert line.startswith(f"model: {path} has weights of the kind ")
    assert f"({name})" in line


def test_so_it_is_with_bin_files(folder: Path) -> None:
    pipeline = load_pipeline(str(folder))
    state = {name: value.to(torch.int8) for name, value in pipeline.unet.state_dict().items()}
    (folder / "unet" / "diffusion_pytorch_model.safetensors").unlink()
    torch.save(state, folder / "unet" / "diffusion_pytorch_model.bin")
    assert "has weights of the kind int8" in refused(folder)


def test_a_part_of_a_folder_is_told_with_the_whole(folder: Path) -> None:
    for part in ("unet", "vae/diffusion_pytorch_model.safetensors", "scheduler", WORDS):
        assert refused(folder / part).endswith(
            f"is a part of the model in {folder}; give that folder"
        )
    assert refused(folder / "model_index.json").endswith(f"give {folder}")


def test_the_hubs_cache_is_told_with_what_is_in_it(folder: Path, tmp_path: Path) -> None:
    snapshot = tmp_path / "models--a--b" / "snapshots" / "0123"
    snapshot.parent.mkdir(parents=True)
    folder.rename(snapshot)
    assert refused(tmp_path / "models--a--b").endswith(f"give its id, or {snapshot}")


@pytest.mark.parametrize(
    ("kind", "there", "named"),
    [
        ("CLIPTokenizer", [], "tokenizer.json or vocab.json and merges.txt"),
        ("CLIPTokenizer", ["vocab.json"], "tokenizer.json or merges.txt"),
        ("CLIPTokenizer", ["vocab.json", "merges.txt"], "tokenizer.json or merges.txt"),
        ("T5Tokenizer", [], "tokenizer.json or spiece.model"),
        ("GemmaTokenizer", [], "tokenizer.json"),
    ],
)
def test_a_tokenizer_without_its_words(
    folder: Path, kind: str, there: list[str], named: str
) -> None:
    """transformers makes one that knows none: every prompt would be the same."""
    change(folder / "model_index.json", tokenizer=["transformers", kind])
    (folder / "tokenizer" / "tokenizer.json").unlink()
    for name in there:
        (folder / "tokenizer" / name).write_text("{}" if name.endswith(".json") else "")
    assert f"has no {named}, so" in refused(folder)


@pytest.mark.parametrize(
    ("file", "name"),
    [
        ("unet/diffusion_pytorch_model", "mid_block.resnets.0.conv1.weight"),
        ("text_encoder/model", "embeddings.token_embedding.weight"),
    ],
)
@pytest.mark.parametrize("value", [torch.nan, -torch.inf])
def test_one_weight_that_is_no_number_is_named(
    folder: Path, file: str, name: str, value: float
) -> None:
    """A word's embedding shows with prompts of that word alone, which the rehearsal has not."""
    path = folder / f"{file}.safetensors"
    state = load_file(path)
    key = next(key for key in state if key.endswith(name))
    state[key].view(-1)[-1] = value
    save_file(state, path, metadata={"format": "pt"})
    line = refused(folder)
    assert f"the {Path(file).parent} of {folder} has weights that are not finite" in line
    assert name in line


def test_weights_that_nothing_here_reads_may_be_anything(folder: Path) -> None:
    path = folder / "vae" / "diffusion_pytorch_model.safetensors"
    state = load_file(path)
    name = "encoder.conv_in.weight"
    state[name].fill_(torch.nan)
    save_file(state, path, metadata={"format": "pt"})
    loaded = load_pipeline(str(folder)).vae.get_parameter(name)
    assert loaded.isnan().all()  # as it is, neither refused nor put right


def test_a_decoder_that_samples_is_refused(folder: Path) -> None:
    """As Stable Diffusion's consistency decoder: of one state it makes another image each time."""
    two: dict[str, Any] = {"decoder_layers_per_block": 1, "encoder_layers_per_block": 1}
    two |= {f"{coder}_block_out_channels": (8, 8) for coder in ("encoder", "decoder")}
    two |= {f"{coder}_norm_num_groups": 4 for coder in ("encoder", "decoder")}
    ConsistencyDecoderVAE(
        **two,
        encoder_down_block_types=("DownEncoderBlock2D",) * 2,
        decoder_down_block_types=("ResnetDownsampleBlock2D",) * 2,
        decoder_up_block_types=("ResnetUpsampleBlock2D",) * 2,
    ).save_pretrained(folder / "vae")
    change(folder / "model_index.json", vae=["diffusers", "ConsistencyDecoderVAE"])
    assert "its vae, a ConsistencyDecoderVAE, decodes with noise of its own" in refused(folder)
