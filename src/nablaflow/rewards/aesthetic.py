"""How beautiful people would call an image: LAION's improved aesthetic predictor."""

from __future__ import annotations

from typing import Any

from pydantic import Field
from torch import nn

from nablaflow.features import clip as openai
from nablaflow.features.preprocess import Preprocess
from nablaflow.hub import load_weights, read_weights
from nablaflow.rewards.clip import image_features, load_clip
from nablaflow.rewards.scorer import ScorerSettings, ScoringNetwork
from nablaflow.rewards.sources import source_file
from nablaflow.typing import Batch, Images

REPO, FILE = "trl-lib/ddpo-aesthetic-predictor", "aesthetic-model.pth"
"""A copy on the hub of the authors' ``sac+logos+ava1-l14-linearMSE.pth``."""
REVISION = "cf4bd10345610935a80a5d3be9a3133c50f121e4"
BACKBONE = f"{openai.REPO}@{openai.REVISION}"


class Aesthetic(ScorerSettings):
    """Settings; ``weights`` are the head's alone."""

    backbone: str = Field(default=BACKBONE, description="CLIP ViT-L/14: a hub id or a folder")

    def network(self) -> ScoringNetwork:
        source, revision = self.source(REPO, REVISION)
        path = source_file(source, FILE, field="reward.weights", revision=revision)
        head = LinearHead()
        load_weights(head, read_weights(path), path)
        return AestheticNetwork(load_clip(self.backbone, field="reward.backbone"), head)


class LinearHead(nn.Module):
    """The predictor's head, layer for layer and key for key.

    christophschuhmann/improved-aesthetic-predictor, ``sac+logos+ava1-l14-linearMSE``: no
    activation between the layers, and dropout that scoring switches off. ImageReward's is the same.
    """

    def __init__(self, width: int = 768) -> None:
        super().__init__()
        self.layers = nn.Sequential(
            nn.Linear(width, 1024),
            nn.Dropout(0.2),
            nn.Linear(1024, 128),
            nn.Dropout(0.2),
            nn.Linear(128, 64),
            nn.Dropout(0.1),
            nn.Linear(64, 16),
            nn.Linear(16, 1),
        )

    def forward(self, features: Any) -> Batch:
        """One number a row of ``features`` (batch, width)."""
        return self.layers(features)[:, 0]


class AestheticNetwork(ScoringNetwork):
    """The head on unit image embeddings of CLIP; roughly 1 to 10, prompts are not read."""

    def __init__(self, clip: Any, head: LinearHead) -> None:
        super().__init__()
        # Its text encoder, a quarter of CLIP, is not needed.
        self.backbone = nn.ModuleDict(
            {"vision_model": clip.vision_model, "visual_projection": clip.visual_projection}
        )
        self.head = head
        self.preprocess = Preprocess(clip.config.vision_config.image_size)

    def forward(self, images: Images, prompts: list[str]) -> Batch:
        return self.head(image_features(self, images))
