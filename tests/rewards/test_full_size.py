"""Scorers at their published sizes, on random weights that are saved as the published ones are.

Compared with CLIP and BLIP in plain torch (``tests/support``), in scores and in gradients; those of
CLIP's kind at a tiny size too, which is not slow. The reference's weights are gone before the
scorer's are loaded: a ViT-H/14 has 4 GB of them.
"""

from __future__ import annotations

import json
import tempfile
from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import pytest
import torch
from PIL import Image
from transformers import BertTokenizerFast, CLIPTokenizer
from transformers.models.clip.image_processing_pil_clip import CLIPImageProcessorPil

from nablaflow.nano.pretrain.text import build_tokenizer
from nablaflow.rewards import load, score_and_gradient
from tests.support import blip, clip
from tests.support.clip import ClipSizes, State

PROMPTS = ["a red circle", "a blue star on a green background " * 12]  # the second is cut at 77
STD = torch.tensor([0.26862954, 0.26130258, 0.27577711])[:, None, None]  # of the processor
Score = Callable[[torch.Tensor], torch.Tensor]
"""Of normalised pixels (2, 3, size, size), with the prompts: (2,)."""


SMALL_AND_FULL_L = pytest.mark.parametrize(
    "sizes",
    [clip.TINY, pytest.param(clip.VIT_L_14, marks=pytest.mark.slow)],
    ids=["tiny", "ViT-L-14"],
)
SMALL_AND_FULL_H = pytest.mark.parametrize(
    "sizes",
    [replace(clip.TINY, activation="gelu"), pytest.param(clip.VIT_H_14, marks=pytest.mark.slow)],
    ids=["tiny", "ViT-H-14"],
)


@pytest.fixture
def folder() -> Iterator[Path]:
    """Gone after the test: pytest keeps its own for some runs, and these are of gigabytes."""
    with tempfile.TemporaryDirectory() as path:
        yield Path(path)


@pytest.fixture(scope="module")
def tokenizer() -> CLIPTokenizer:
    """The captions' tokenizer with as many tokens as CLIP's, the marks last as there."""
    small = build_tokenizer()
    marks = ["<|startoftext|>", "<|endoftext|>"]
    words = sorted(set(small.get_vocab()) - set(marks))  # the order there is not always one
    words += [f"unused{i}</w>" for i in range(49406 - len(words))]
    merges: Any = json.loads(small.backend_tokenizer.to_str())["model"]["merges"]
    return CLIPTokenizer(
        vocab={word: i for i, word in enumerate(words + marks)},
        merges=[tuple(pair) for pair in merges],
        model_max_length=77,
    )


@SMALL_AND_FULL_L
def test_aesthetic_takes_its_published_keys(folder, head_file, sizes):
    state = clip.random_checkpoint(sizes)
    clip.write_folder(folder, sizes, state)
    head = torch.load(head_file, weights_only=True)

    def score(leaf: torch.Tensor) -> torch.Tensor:
        hidden = clip.image_features(state, sizes, leaf)
        for index in (0, 2, 4, 6, 7):
            hidden = hidden @ head[f"layers.{index}.weight"].T + head[f"layers.{index}.bias"]
        return hidden[:, 0]

    expected = expect(score, sizes.image)
    state.clear()
    spec = {"name": "aesthetic", "weights": str(head_file), "backbone": str(folder)}
    assert differing(spec, expected) == {}


@SMALL_AND_FULL_L
def test_clip_score_takes_its_published_keys(folder, tokenizer, sizes):
    state = clip.random_checkpoint(sizes)
    clip.write_folder(folder, sizes, state)
    tokenizer.save_pretrained(folder)
    expected = expect(cosine(state, sizes, tokens(tokenizer), 100.0), sizes.image)
    state.clear()
    assert differing({"name": "clip_score", "weights": str(folder)}, expected) == {}


@SMALL_AND_FULL_H
def test_pickscore_takes_its_published_keys(folder, tokenizer, sizes):
    state = clip.random_checkpoint(sizes)
    clip.write_folder(folder, sizes, state)
    (folder / "words").mkdir()
    tokenizer.save_pretrained(folder / "words")
    scale = state["logit_scale"].exp().item()
    expected = expect(cosine(state, sizes, tokens(tokenizer), scale), sizes.image)
    state.clear()
    spec = {"name": "pickscore", "weights": str(folder), "tokenizer": str(folder / "words")}
    assert differing(spec, expected) == {}


@pytest.mark.slow
def test_hpsv2_takes_its_published_keys(folder):
    open_clip = pytest.importorskip("open_clip", reason="needs nablaflow[test-scorers]")
    sizes = clip.VIT_H_14
    state = {name: value.half() for name, value in clip.random_checkpoint(sizes).items()}
    # The published file is of half precision; the scorer raises it to float32.
    torch.save({"state_dict": clip.open_clip_layout(state)}, folder / "HPS_v2.1_compressed.pt")
    for name in state:
        state[name] = state[name].float()
    texts = [
        row[: row.argmax() + 1].tolist() for row in open_clip.get_tokenizer("ViT-H-14")(PROMPTS)
    ]
    expected = expect(cosine(state, sizes, texts, 1.0), 224, resized=False)
    state.clear()
    assert differing({"name": "hpsv2", "weights": str(folder)}, expected) == {}


@pytest.mark.slow
def test_image_reward_takes_its_published_keys(folder, bert_folder):
    sizes = blip.BlipSizes()
    state = blip.random_checkpoint(sizes)
    torch.save(state, folder / "ImageReward.pt")
    words = BertTokenizerFast.from_pretrained(bert_folder)(
        PROMPTS, padding="max_length", truncation=True, max_length=35, return_tensors="pt"
    )

    def score(leaf: torch.Tensor) -> torch.Tensor:
        return blip.score(state, sizes, leaf, words.input_ids, words.attention_mask)

    expected = expect(score, sizes.image, resized=False)
    state.clear()
    spec = {"name": "image_reward", "weights": str(folder), "tokenizer": str(bert_folder)}
    assert differing(spec, expected) == {}


@dataclass(frozen=True)
class Expected:
    """What the reference says of images of the network's own size, and of larger ones."""

    images: torch.Tensor
    scores: torch.Tensor
    gradient: torch.Tensor
    larger: torch.Tensor | None
    resized: torch.Tensor | None


def expect(score: Score, size: int, *, resized: bool = True) -> Expected:
    images = pictures(size, size)
    leaf = pixels(images, size).requires_grad_()
    scores = score(leaf)
    (gradient,) = torch.autograd.grad(scores.sum(), leaf)
    found = Expected(images, scores.detach(), gradient / STD, None, None)
    if not resized:
        return found
    larger = pictures(size + 8, size + 24)
    with torch.no_grad():
        return replace(found, larger=larger, resized=score(pixels(larger, size)))


def differing(spec: dict[str, Any], expected: Expected) -> dict[str, float]:
    """What is not as expected, and by how much of what it may differ.

    Scores are compared with how far the two images' are apart.
    """
    reward = load(spec)
    scores, gradient = score_and_gradient(reward, expected.images, PROMPTS)
    apart = expected.scores.diff().abs()
    assert apart > 0.005  # rounding in float32 is far below a ten-thousandth of it
    assert scores.shape == expected.scores.shape
    off = {
        "scores": (scores - expected.scores).abs().max() / (1e-4 * apart),
        "gradient": (gradient - expected.gradient).norm() / (1e-4 * expected.gradient.norm()),
    }
    if expected.larger is not None:
        # Pillow rounds to 8 bits between its two passes; the tiny network feels that more.
        most = (0.1 if expected.images.shape[-1] == clip.TINY.image else 0.005) * apart
        with torch.no_grad():
            found = reward(expected.larger, PROMPTS)
        off["scores of larger images"] = (found - expected.resized).abs().max() / most
    return {name: part.item() for name, part in off.items() if not part <= 1.0}


def pictures(height: int, width: int) -> torch.Tensor:
    """Two images of 8 bits a channel, with coarse parts and fine ones."""
    generator = torch.Generator().manual_seed(3)
    coarse = torch.rand(2, 3, 4, 5, generator=generator)
    images = torch.nn.functional.interpolate(coarse, (height, width), mode="bilinear")
    images = 0.8 * images + 0.2 * torch.rand(images.shape, generator=generator)
    return (images * 255).round() / 255


def pixels(images: torch.Tensor, size: int) -> torch.Tensor:
    """What transformers' processor makes of them."""
    sides = {"height": size, "width": size}
    processor = CLIPImageProcessorPil(size={"shortest_edge": size}, crop_size=sides)
    arrays = [(image * 255).round().byte().permute(1, 2, 0).numpy() for image in images]
    return processor([Image.fromarray(array) for array in arrays], return_tensors="pt").pixel_values


def tokens(tokenizer: CLIPTokenizer) -> list[list[int]]:
    """Each prompt alone, without padding; at most 77, the last of them the mark of the end."""
    texts = [tokenizer(prompt).input_ids for prompt in PROMPTS]
    assert [(text[0], text[-1]) for text in texts] == [(49406, 49407)] * 2
    assert len(texts[1]) > 77
    return [text if len(text) <= 77 else [*text[:76], text[-1]] for text in texts]


def cosine(state: State, sizes: ClipSizes, texts: list[list[int]], scale: float) -> Score:
    with torch.no_grad():
        text = clip.text_features(state, sizes, texts)
    return lambda leaf: scale * (clip.image_features(state, sizes, leaf) * text).sum(-1)
