"""How well an image serves its prompt, by people's rankings: ImageReward."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from pydantic import Field

from nablaflow.features.preprocess import Preprocess
from nablaflow.hub import check_keys, load_weights, read_weights
from nablaflow.rewards import blip
from nablaflow.rewards.aesthetic import LinearHead
from nablaflow.rewards.blip import Blip, BlipSizes
from nablaflow.rewards.clip import TOKENIZER as TOKENIZER_FILES
from nablaflow.rewards.clip import read_tokenizer
from nablaflow.rewards.scorer import ScorerSettings, ScoringNetwork
from nablaflow.rewards.sources import source_file, source_folder
from nablaflow.typing import Batch, Images

REPO, FILE = "THUDM/ImageReward", "ImageReward.pt"
REVISION = "5736be03b2652728fb87788c9797b0570450ab72"
TOKENIZER = "google-bert/bert-base-uncased@86b5e0934494bd15c9632b12f734a8a67f723594"
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
        folder = source_folder(self.tokenizer, TOKENIZER_FILES, field="reward.tokenizer")
        tokenizer = read_tokenizer("BertTokenizerFast", folder, "reward.tokenizer")
        # The original's own two; a prompt that holds one of them is otherwise cut up.
        tokenizer.add_special_tokens({"bos_token": "[DEC]"})
        tokenizer.add_special_tokens({"additional_special_tokens": ["[ENC]"]})
        source, revision = self.source(REPO, REVISION)
        path = source_file(source, FILE, field="reward.weights", revision=revision)
        network = ImageRewardNetwork(Blip(SIZES), LinearHead(SIZES.text_width), tokenizer)
        load_published(network, path)
        return network


def original_name(name: str) -> str:
    """What the published checkpoint calls a tensor of ``ImageRewardNetwork``."""
    part, _, rest = name.partition(".")
    return f"mlp.{rest}" if part == "head" else f"blip.{blip.original_name(rest)}"


def load_published(network: ImageRewardNetwork, path: Path) -> None:
    """Read the published checkpoint into a network.

    Raises:
        UserError: it cannot be read, or a key, by its published name, is missing or unknown.
    """
    state = {k: v for k, v in read_weights(path).items() if not k.startswith(UNUSED)}
    names = {own: original_name(own) for own in network.state_dict()}
    check_keys(names.values(), state, path)
    load_weights(network, {own: state[name] for own, name in names.items()}, path)


class ImageRewardNetwork(ScoringNetwork):
    """The head on the first token of a text encoder that attends to the image."""

    def __init__(self, encoder: Blip, head: LinearHead, tokenizer: Any) -> None:
        super().__init__()
        self.backbone, self.head, self.tokenizer = encoder, head, tokenizer
        self.preprocess = Preprocess(encoder.image_size, odd_crop="even")

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
