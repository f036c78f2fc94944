"""How well an image serves its prompt, by people's rankings: ImageReward."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from pydantic import Field
from torch import Tensor

from nablaflow.hub import load_weights, read_weights
from nablaflow.rewards.aesthetic import LinearHead
from nablaflow.rewards.blip import Blip, BlipSizes, renamed
from nablaflow.rewards.clip import read_tokenizer
from nablaflow.rewards.preprocess import Preprocess
from nablaflow.rewards.scorer import ScorerSettings, ScoringNetwork
from nablaflow.rewards.sources import source_file, source_folder
from nablaflow.typing import Batch, Images

REPO, FILE = "THUDM/ImageReward", "ImageReward.pt"
TOKENIZER = "google-bert/bert-base-uncased"
SIZES = BlipSizes()
TEXT_LENGTH = 35
MEAN, STD = 0.16717362830052426, 1.0333394966054072
"""Of the raw score; ImageReward/ImageReward.py."""

UNUSED = ("blip.vision_proj.", "blip.text_proj.", "blip.text_encoder.embeddings.position_ids")
"""Keys of the checkpoint that scoring has no use for: BLIP's contrastive heads, and a constant."""


class ImageReward(ScorerSettings):
    """BLIP with a head, trained on rankings (Xu et al., arXiv 2304.05977); about -2 to 2."""

    tokenizer: str = Field(default=TOKENIZER, description="BERT's, uncased: hub id or folder")

    def network(self) -> ScoringNetwork:
        from transformers import BertTokenizer

        folder = source_folder(
            self.tokenizer, ("tokenizer_config.json", "vocab.txt"), field="reward.tokenizer"
        )
        tokenizer = read_tokenizer(BertTokenizer, folder, "reward.tokenizer")
        # The original's own two; a prompt that holds one of them is otherwise cut up.
        tokenizer.add_special_tokens({"bos_token": "[DEC]"})
        tokenizer.add_special_tokens({"additional_special_tokens": ["[ENC]"]})
        path = source_file(
            self.weights or REPO, FILE, field="reward.weights", revision=self.revision
        )
        network = ImageRewardNetwork(Blip(SIZES), LinearHead(SIZES.text_width), tokenizer)
        load_weights(network, own_names(read_weights(path)), path)
        return network


def own_names(state: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """The published checkpoint under our keys: ``blip.…`` as backbone, ``mlp.…`` as head."""
    named: dict[str, Tensor] = {}
    for name, value in state.items():
        if name.startswith(UNUSED):
            continue
        part, _, rest = name.partition(".")
        known = {"blip": f"backbone.{renamed(rest)}", "mlp": f"head.{rest}"}
        named[known.get(part, name)] = value
    return named


class ImageRewardNetwork(ScoringNetwork):
    """The head on the first token of a text encoder that attends to the image."""

    def __init__(self, blip: Blip, head: LinearHead, tokenizer: Any) -> None:
        super().__init__()
        self.backbone, self.head, self.tokenizer = blip, head, tokenizer
        self.preprocess = Preprocess(SIZES.image, odd_crop="even")

    def forward(self, images: Images, prompts: list[str]) -> Batch:
        tokens = self.tokenizer(
            prompts,
            padding="max_length",
            truncation=True,
            max_length=TEXT_LENGTH,
            return_tensors="pt",
        ).to(images.device)
        features = self.backbone(
            self.preprocess(images).to(self.dtype), tokens.input_ids, tokens.attention_mask
        )
        return (self.head(features.float()) - MEAN) / STD
