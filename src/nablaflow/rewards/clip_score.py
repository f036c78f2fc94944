"""How well an image fits its prompt, by CLIP."""

from __future__ import annotations

from pydantic import Field

from nablaflow.rewards.clip import OPENAI, ClipSimilarity, load_clip, load_tokenizer
from nablaflow.rewards.scorer import ScorerSettings, ScoringNetwork


class ClipScore(ScorerSettings):
    """The cosine of image and prompt in CLIP's space, times ``scale``.

    Hessel et al., "CLIPScore" (arXiv 2104.08718), has max(0, cosine) times 2.5. It is not clamped
    here: a clamp has no gradient, and a negative cosine is what training should mend.
    """

    scale: float = Field(default=100.0, gt=0, description="what the cosine is multiplied by")

    def network(self) -> ScoringNetwork:
        source, where = self.weights or OPENAI, "reward.weights"
        tokenizer = load_tokenizer(source, field=where, revision=self.revision)
        return ClipSimilarity(
            load_clip(source, field=where, revision=self.revision), tokenizer, self.scale
        )
