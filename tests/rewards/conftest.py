"""Tiny scorers with random weights, saved as the published ones are."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch
from transformers import BertTokenizerFast, CLIPConfig, CLIPModel

from nablaflow.nano.pretrain.text import build_tokenizer
from nablaflow.rewards.aesthetic import LinearHead

PROMPTS = ["a red circle", "a blue star on a green background", "a square"]


@pytest.fixture(scope="session")
def images() -> torch.Tensor:
    """Three smooth images, wider than high."""
    coarse = torch.rand(3, 3, 5, 6, generator=torch.Generator().manual_seed(0))
    return torch.nn.functional.interpolate(coarse, (40, 56), mode="bilinear").clamp(0, 1)


@pytest.fixture
def prompts() -> list[str]:
    return list(PROMPTS)


def _clip(projection: int) -> CLIPModel:
    """A CLIP of a few thousand weights, large ones, so that its embeddings differ."""
    tokenizer = build_tokenizer()
    tower = {"hidden_size": 32, "intermediate_size": 64, "num_attention_heads": 2}
    text = {
        **tower,
        "num_hidden_layers": 2,
        "vocab_size": len(tokenizer),
        "max_position_embeddings": 16,
        "bos_token_id": tokenizer.bos_token_id,
        "eos_token_id": tokenizer.eos_token_id,
        "pad_token_id": tokenizer.eos_token_id,
    }
    vision = {**tower, "num_hidden_layers": 2, "image_size": 32, "patch_size": 8}
    config = CLIPConfig(text_config=text, vision_config=vision, projection_dim=projection)
    model = CLIPModel(config)
    with torch.no_grad():
        for parameter in model.parameters():
            if parameter.ndim > 1:
                parameter.normal_(0.0, 1.5 * parameter[0].numel() ** -0.5)
    return model


@pytest.fixture(scope="session")
def clip_folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A CLIP folder with its tokenizer; 768 wide, as ViT-L/14's embeddings are."""
    folder = tmp_path_factory.mktemp("clip")
    with torch.random.fork_rng():
        torch.manual_seed(0)
        _clip(768).save_pretrained(folder)
    build_tokenizer().save_pretrained(folder)
    return folder


@pytest.fixture(scope="session")
def head_file(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The aesthetic head's file, with its published key names; scores of images differ by about 1.

    Each layer keeps the length of what it sees, the first makes up for that of a unit embedding.
    """
    path = tmp_path_factory.mktemp("head") / "aesthetic-model.pth"
    with torch.random.fork_rng():
        torch.manual_seed(1)
        state = LinearHead().state_dict()
        for name, value in state.items():
            if value.ndim > 1:
                value.normal_(0.0, 1.0 if name.startswith("layers.0.") else value.shape[1] ** -0.5)
        torch.save(state, path)
    return path


@pytest.fixture(scope="session")
def bert_folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """BERT's tokenizer with a few words; what it adds itself comes after them."""
    folder = tmp_path_factory.mktemp("bert")
    words = ["a", "red", "blue", "green", "circle", "star", "square", "on", "background", "##s"]
    vocabulary = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]", *words]
    (folder / "vocab.txt").write_text("\n".join(vocabulary))
    BertTokenizerFast(vocab={word: i for i, word in enumerate(vocabulary)}).save_pretrained(folder)
    assert json.loads((folder / "tokenizer_config.json").read_text())
    return folder
