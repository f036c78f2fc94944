"""Which image of a prompt people would prefer: Human Preference Score v2.1."""

from __future__ import annotations

import importlib
import importlib.util
from typing import Any

import torch

from nablaflow.errors import UserError, installing
from nablaflow.features.preprocess import Preprocess, unit
from nablaflow.hub import load_weights, read_weights
from nablaflow.rewards.scorer import ScorerSettings, ScoringNetwork
from nablaflow.rewards.sources import source_file
from nablaflow.typing import Batch, Images

REPO, FILE = "xswu/HPSv2", "HPS_v2.1_compressed.pt"
REVISION = "697403c78157020a1ae59d23f111aa58ced35b0a"
ARCHITECTURE = "ViT-H-14"


class HPSv2(ScorerSettings):
    """CLIP ViT-H/14 finetuned on HPD v2 (Wu et al., arXiv 2306.09341), from its own checkpoint.

    The score is the cosine of image and prompt, about 0.2 to 0.35, without the temperature.
    """

    def check(self) -> None:
        super().check()
        if importlib.util.find_spec("open_clip") is None:
            raise UserError(f"reward hpsv2 needs open_clip: {installing('scorers')}")

    def network(self) -> ScoringNetwork:
        open_clip: Any = importlib.import_module("open_clip")
        source, revision = self.source(REPO, REVISION)
        path = source_file(source, FILE, field="reward.weights", revision=revision)
        state = read_weights(path, inside="state_dict")
        clip = open_clip.create_model(ARCHITECTURE, load_weights=False)
        load_weights(clip, state, path)
        return HPSNetwork(clip, open_clip.get_tokenizer(ARCHITECTURE))


class HPSNetwork(ScoringNetwork):
    """The cosine of image and prompt in the space of an ``open_clip.CLIP``.

    Its preprocessing is that of hpsv2/img_score.py, ``resize_longest_max``: nothing is cropped.
    """

    def __init__(self, clip: Any, tokenizer: Any) -> None:
        super().__init__()
        self.backbone, self.tokenizer = clip, tokenizer
        size = clip.visual.image_size
        side = size if isinstance(size, int) else size[0]
        self.preprocess = Preprocess(side, fit="pad")

    def forward(self, images: Images, prompts: list[str]) -> Batch:
        clip: Any = self.backbone
        with torch.no_grad():
            tokens = self.tokenizer(prompts).to(images.device)
            text = unit(clip.encode_text(tokens))
        image = unit(clip.encode_image(self.preprocess(images).to(self.dtype)))
        return (image * text).sum(-1)
