"""How well an image fits its prompt, by CLIP."""

from __future__ import annotations

from pydantic import Field

from nablaflow.features import clip as openai
from nablaflow.rewards.clip import (
    TOKENIZER,
    WEIGHTS,
    ClipSimilarity,
    read_clip,
    read_tokenizer,
)
from nablaflow.rewards.scorer import ScorerSettings, ScoringNetwork
from nablaflow.rewards.sources import source_folder


class ClipScore(ScorerSettings):
    """The cosine of image and prompt in CLIP's space, times ``scale``.

    Hessel et al., "CLIPScore" (arXiv 2104.08718), has max(0, cosine) times 2.5. It is not clamped
    here: a clamp has no gradient, and a negative cosine is what training should mend.
    """

    scale: float = Field(default=100.0, gt=0, description="what the cosine is multiplied by")

    def network(self) -> ScoringNetwork:
        (source, revision), where = self.source(openai.REPO, openai.REVISION), "reward.weights"
        # All of them at once: a message about the files that are missing names them all.
        files = (*TOKENIZER, *WEIGHTS)
        folder = source_folder(source, files, field=where, revision=revision)
        tokenizer = read_tokenizer("CLIPTokenizerFast", folder, where)
        return ClipSimilarity(read_clip(folder, where), tokenizer, self.scale)
