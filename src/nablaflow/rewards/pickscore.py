"""Which of two images of a prompt people would pick: PickScore."""

from __future__ import annotations

from pydantic import Field

from nablaflow.rewards.clip import ClipSimilarity, load_clip, load_tokenizer
from nablaflow.rewards.scorer import ScorerSettings, ScoringNetwork

REPO = "yuvalkirstain/PickScore_v1"
PROCESSOR = "laion/CLIP-ViT-H-14-laion2B-s32B-b79K"


class PickScore(ScorerSettings):
    """CLIP ViT-H/14 finetuned on Pick-a-Pic (Kirstain et al., arXiv 2305.01569).

    The score is exp(logit_scale) times the cosine of image and prompt, about 15 to 25.
    """

    tokenizer: str = Field(default=PROCESSOR, description="of CLIP ViT-H/14: hub id or folder")

    def network(self) -> ScoringNetwork:
        tokenizer = load_tokenizer(self.tokenizer, field="reward.tokenizer")
        source = self.weights or REPO
        return ClipSimilarity(
            load_clip(source, field="reward.weights", revision=self.revision), tokenizer
        )
