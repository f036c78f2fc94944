"""Transformers' CLIP as scorers use it: its two encoders, their weights and its tokenizer."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from nablaflow.errors import UserError
from nablaflow.features.preprocess import Preprocess, unit
from nablaflow.features.pretrained import FILES as WEIGHTS
from nablaflow.features.pretrained import read_pretrained
from nablaflow.rewards.scorer import ScoringNetwork
from nablaflow.rewards.sources import source_folder
from nablaflow.typing import Features, Images

TOKENIZER = ("tokenizer_config.json", "tokenizer.json")
TEXT_LENGTH = 77  # tokens, with those of the start and the end


def load_clip(source: str, *, field: str, revision: str | None = None) -> Any:
    """A ``CLIPModel`` from a folder or the hub; safetensors only.

    Raises:
        UserError: it cannot be found or read, or weights are missing in it or too many.
    """
    return read_clip(source_folder(source, WEIGHTS, field=field, revision=revision), field)


def read_clip(folder: Path, field: str) -> Any:
    """A ``CLIPModel`` from a folder, in float32.

    Raises:
        UserError: it cannot be read, or weights are missing in it or too many.
    """
    from transformers import CLIPModel

    return read_pretrained(CLIPModel, folder, field).float()


def load_tokenizer(source: str, *, field: str, revision: str | None = None) -> Any:
    """CLIP's tokenizer from a folder or the hub.

    Raises:
        UserError: it cannot be found or read.
    """
    folder = source_folder(source, TOKENIZER, field=field, revision=revision)
    return read_tokenizer("CLIPTokenizerFast", folder, field)


def read_tokenizer(kind: str, folder: Path, field: str) -> Any:
    """A tokenizer of transformers from a folder.

    Args:
        kind: name of its class, of the kind that reads ``tokenizer.json``; in transformers 5 these
            names are aliases.

    Raises:
        UserError: it cannot be read.
    """
    import transformers

    try:
        return getattr(transformers, kind).from_pretrained(folder, local_files_only=True)
    except Exception as error:  # many kinds for one cause: unreadable files
        reason = " ".join(str(error).split())[:120]
        raise UserError(f"{field}: no tokenizer can be read in {folder} ({reason})") from error


class ClipSimilarity(ScoringNetwork):
    """Cosine of an image and its prompt in CLIP's space, times a scale.

    Args:
        clip: a ``CLIPModel``.
        tokenizer: its own.
        scale: of the cosine; None is the model's own temperature, ``exp(logit_scale)``.
    """

    def __init__(self, clip: Any, tokenizer: Any, scale: float | None = None) -> None:
        super().__init__()
        self.backbone, self.tokenizer = clip, tokenizer
        self.preprocess = Preprocess(clip.config.vision_config.image_size)
        # Taken in float32: bf16 would be off by up to 2 % after the exponential.
        self.scale = clip.logit_scale.detach().exp().item() if scale is None else scale

    def forward(self, images: Images, prompts: list[str]) -> Tensor:
        with torch.no_grad():
            text = self._text(prompts)
        return self.scale * (image_features(self, images) * text).sum(-1)

    def _text(self, prompts: list[str]) -> Features:
        clip: Any = self.backbone
        tokens = self.tokenizer(
            prompts,
            padding=True,
            truncation=True,
            max_length=min(TEXT_LENGTH, clip.config.text_config.max_position_embeddings),
            return_tensors="pt",
        ).to(clip.logit_scale.device)
        pooled = clip.text_model(tokens.input_ids, tokens.attention_mask).pooler_output
        return unit(clip.text_projection(pooled))


def image_features(network: Any, images: Images) -> Features:
    """Unit image embeddings, through the encoder and its projection.

    Not through ``get_image_features``: transformers 4 returns a tensor there and 5 an object.
    """
    clip = network.backbone
    pooled = clip.vision_model(network.preprocess(images).to(network.dtype)).pooler_output
    return unit(clip.visual_projection(pooled))
