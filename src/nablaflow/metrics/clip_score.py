"""CLIPScore: how well an image goes with its prompt (Hessel et al., arXiv 2104.08718)."""

from __future__ import annotations

from torch import Tensor
from torch.nn.functional import cosine_similarity

from nablaflow.typing import Batch, Features


def clip_score(images: Features, texts: Features, scale: float = 100.0) -> Batch:
    """``scale`` max(cos(image, text), 0) for each pair of embeddings, shape (n,).

    Hessel et al. scale by 2.5; 100 is what torchmetrics and most papers on diffusion print.

    Args:
        images: (n, d) embeddings of images, any length.
        texts: (n, d) embeddings of their prompts.
    """
    cosine: Tensor = cosine_similarity(images.float(), texts.float(), dim=1)
    return scale * cosine.clamp_min(0.0)
