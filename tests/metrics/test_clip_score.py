"""CLIPScore in closed form."""

import math

import torch

from nablaflow.metrics.clip_score import clip_score


def test_it_is_the_cosine_and_never_negative():
    images = torch.tensor([[2.0, 0.0], [1.0, 1.0], [1.0, 0.0], [-3.0, 0.0]])
    texts = torch.tensor([[5.0, 0.0], [1.0, 0.0], [0.0, 1.0], [1.0, 0.0]])
    expected = torch.tensor([100.0, 100.0 / math.sqrt(2.0), 0.0, 0.0])
    torch.testing.assert_close(clip_score(images, texts), expected)
    torch.testing.assert_close(clip_score(images, texts, scale=2.5), expected / 40.0)
