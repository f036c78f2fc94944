"""CLIP and DINOv2 on tiny random weights, against transformers' own processors and models."""

import sys
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from PIL import Image
from safetensors.torch import load_file, save_file
from transformers import (
    CLIPConfig,
    CLIPModel,
    CLIPVisionConfig,
    CLIPVisionModelWithProjection,
    Dinov2Config,
    Dinov2Model,
)
from transformers.models.bit.image_processing_pil_bit import BitImageProcessorPil
from transformers.models.clip.image_processing_pil_clip import CLIPImageProcessorPil

from nablaflow import features
from nablaflow.errors import UserError
from tests.support.slopes import assert_slope

SHAPE = {
    "hidden_size": 16,
    "intermediate_size": 32,
    "num_hidden_layers": 2,
    "num_attention_heads": 2,
    "image_size": 28,
    "patch_size": 14,
}


@pytest.fixture
def folder(tmp_path):
    torch.manual_seed(0)
    network = {
        "clip": lambda: CLIPVisionModelWithProjection(CLIPVisionConfig(**SHAPE, projection_dim=12)),
        "dinov2": lambda: Dinov2Model(Dinov2Config(**{**SHAPE, "image_size": 224})),
    }

    def make(name):
        network[name]().save_pretrained(tmp_path / name)
        return str(tmp_path / name)

    return make


def seen(processor, image):
    """An image as a processor of transformers makes it, from 8 bits."""
    picture = Image.fromarray((image * 255).round().byte().permute(1, 2, 0).numpy())
    return processor(images=picture, return_tensors="pt").pixel_values


def square(size):
    return {"height": size, "width": size}


def test_clip_is_the_normalised_embedding_of_the_processed_picture(folder, images):
    where = folder("clip")
    images = (images * 255).round() / 255
    found = features.load("clip", weights=where)
    network = CLIPVisionModelWithProjection.from_pretrained(where)
    processor = CLIPImageProcessorPil(size={"shortest_edge": 28}, crop_size=square(28))
    with torch.no_grad():
        expected = network(pixel_values=seen(processor, images[0])).image_embeds[0]
    assert found.dim == 12
    # CLIP's own statistics swapped for ImageNet's are 0.006 off.
    torch.testing.assert_close(found(images)[0], expected / expected.norm(), atol=0.003, rtol=0)


def test_dinov2_is_the_class_token_of_the_processed_picture(folder, images):
    where = folder("dinov2")
    images = (images * 255).round() / 255
    found = features.load("dinov2", weights=where)
    network = Dinov2Model.from_pretrained(where)
    # As its preprocessor_config.json on the hub.
    processor = BitImageProcessorPil(
        size={"shortest_edge": 256},
        crop_size=square(224),
        image_mean=[0.485, 0.456, 0.406],
        image_std=[0.229, 0.224, 0.225],
    )
    with torch.no_grad():
        expected = network(pixel_values=seen(processor, images[0])).last_hidden_state[0, 0]
    assert found.dim == 16
    # CLIP's deviations in place of ImageNet's are 0.0045 off, no margin for the crop 0.07.
    torch.testing.assert_close(found(images)[0], expected, atol=0.002, rtol=0)


def test_gradient_of_clip_is_the_finite_difference(folder, images):
    found = features.load("clip", weights=folder("clip"))
    weights = torch.randn(found.dim, generator=torch.Generator().manual_seed(1))
    assert_slope(lambda x: (found(x) @ weights).sum(), images)


@pytest.mark.parametrize("name", ["clip", "dinov2"])
def test_a_folder_without_weights_is_named(name, tmp_path):
    with pytest.raises(UserError, match=r"has no config\.json, model\.safetensors"):
        features.load(name, weights=str(tmp_path))


def test_offline_without_a_cache_says_what_to_do(monkeypatch, tmp_path):
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_CACHE", str(tmp_path))
    said = (
        r"run `hf download facebook/dinov2-base config\.json model\.safetensors "
        r"--revision f9e44c814b77203eaa57a6bdbbd535f21ede1415` where it can, and "
        r"copy its cache \(HF_HOME\) here$"
    )
    with pytest.raises(UserError, match=said):
        features.load("dinov2")


def test_of_a_whole_clip_the_image_encoder_is_taken(tmp_path, images):
    torch.manual_seed(0)
    text = {"hidden_size": 16, "intermediate_size": 32, "num_attention_heads": 2, "vocab_size": 50}
    vision = {**SHAPE, "projection_dim": 12}
    CLIPModel(
        CLIPConfig(text_config=text, vision_config=vision, projection_dim=12)
    ).save_pretrained(tmp_path)
    file = tmp_path / "model.safetensors"
    state = load_file(file)
    # A constant that older versions of transformers saved with the weights.
    state["vision_model.embeddings.position_ids"] = torch.arange(5)[None]
    save_file(state, file, metadata={"format": "pt"})
    assert features.load("clip", weights=str(tmp_path))(images).shape == (3, 12)
    state["vision_model.adapter.weight"] = torch.zeros(1)
    save_file(state, file, metadata={"format": "pt"})
    with pytest.raises(UserError, match=r"keys are 1 unknown \(vision_model\.adapter\.weight\)"):
        features.load("clip", weights=str(tmp_path))


def test_a_dinov2_with_a_tensor_too_many_is_refused(folder):
    where = folder("dinov2")
    state = load_file(f"{where}/model.safetensors")
    state["layernorm.scale"] = torch.zeros(1)
    save_file(state, f"{where}/model.safetensors", metadata={"format": "pt"})
    with pytest.raises(UserError, match=r"keys are 1 unknown \(layernorm\.scale\); give"):
        features.load("dinov2", weights=where)


def test_dreamsim_names_its_extra(monkeypatch):
    monkeypatch.setitem(sys.modules, "dreamsim", None)
    with pytest.raises(UserError, match=r"pip install '\.\[dreamsim\]' in the checkout"):
        features.load("dreamsim")


class FakeDreamSim(torch.nn.Module):
    """In place of the package's network: what it is given is what it gives."""

    def embed(self, images):
        return images.flatten(1)


@pytest.fixture
def package(monkeypatch, tmp_path):
    """A package of that name; its calls, and what it raises if anything."""
    calls, faults = [], []

    def dreamsim(*, pretrained, device, cache_dir):
        assert pretrained
        print("Downloading checkpoint")
        calls.append(Path(cache_dir))
        if faults:
            raise faults[0]
        (Path(cache_dir) / "ensemble.pth").touch()
        return FakeDreamSim(), None

    monkeypatch.setitem(sys.modules, "dreamsim", SimpleNamespace(dreamsim=dreamsim))
    monkeypatch.setattr("huggingface_hub.constants.HF_HOME", str(tmp_path / "cache"))
    monkeypatch.chdir(tmp_path)
    return SimpleNamespace(calls=calls, faults=faults)


def test_dreamsim_keeps_its_weights_in_the_cache_and_off_standard_output(package, capsys, tmp_path):
    folder = tmp_path / "cache" / "dreamsim"
    announced = f"downloading the weights of dreamsim into {folder}\n"
    features.load("dreamsim")
    assert capsys.readouterr() == ("", f"{announced}Downloading checkpoint\n")
    features.load("dreamsim")
    assert capsys.readouterr() == ("", "Downloading checkpoint\n")
    features.load("dreamsim", weights=str(tmp_path / "mine"))
    assert package.calls == [folder, folder, tmp_path / "mine"]
    assert not (tmp_path / "models").exists()


def test_dreamsim_sees_the_whole_image_squeezed_to_a_square(package, images):
    extractor = features.load("dreamsim")
    assert extractor.dim == 3 * 224 * 224
    image = (images[0] * 255).round().byte()
    picture = Image.fromarray(image.permute(1, 2, 0).numpy()).resize((224, 224), Image.BICUBIC)
    expected = torch.from_numpy(np.array(picture)).permute(2, 0, 1) / 255
    found = extractor(image[None] / 255).reshape(3, 224, 224)
    assert (found - expected).abs().max() < 1.1 / 255


def test_dreamsim_without_weights_says_where_they_go(package, tmp_path):
    package.faults.append(OSError("no\nnetwork"))
    said = rf"no weights \(no network\); .*copy them to {tmp_path}/cache/dreamsim$"
    with pytest.raises(UserError, match=said):
        features.load("dreamsim")
