"""Which of two images of a prompt people would pick: PickScore."""

from __future__ import annotations

from pydantic import Field

from nablaflow.rewards.clip import ClipSimilarity, load_clip, load_tokenizer
from nablaflow.rewards.scorer import ScorerSettings, ScoringNetwork

REPO, REVISION = "yuvalkirstain/PickScore_v1", "a4e4367c6dfa7288a00c550414478f865b875800"
PROCESSOR = "laion/CLIP-ViT-H-14-laion2B-s32B-b79K@1c2b8495b28150b8a4922ee1c8edee224c284c0c"


class PickScore(ScorerSettings):
    """CLIP ViT-H/14 finetuned on Pick-a-Pic (Kirstain et al., arXiv 2305.01569).

    The score is exp(logit_scale) times the cosine of image and prompt, about 15 to 25.
    """

    tokenizer: str = Field(default=PROCESSOR, description="of CLIP ViT-H/14: hub id or folder")

    def network(self) -> ScoringNetwork:
        tokenizer = load_tokenizer(self.tokenizer, field="reward.tokenizer")
        source, revision = self.source(REPO, REVISION)
        return ClipSimilarity(
            load_clip(source, field="reward.weights", revision=revision), tokenizer
        )
