"""Captions name any subset of the attributes, truly, in words that are one token each."""

from __future__ import annotations

import colorsys
import re
from itertools import chain, combinations
from pathlib import Path

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from transformers import CLIPTokenizer

from nablaflow.nano.captions import (
    ATTRIBUTES,
    WORDS,
    Names,
    color_name,
    compose,
    name_attributes,
    sample_captions,
)
from nablaflow.nano.pretrain.text import TEXT_LENGTH, build_text_encoder, build_tokenizer
from nablaflow.nano.scenes import COLORS, Scenes, sample_scenes

GRAMMAR = re.compile(
    r"a( (?P<size>small|large))?"
    r"( (?P<color>red|orange|yellow|green|cyan|blue|purple|pink))?"
    r" (?P<shape>circle|square|triangle|star|shape)"
    r"( at the (?P<y>top|bottom)( (?P<x>left|right))?| on the (?P<side>left|right))?"
    r"( on a (?P<shade>dark|light) background)?"
)
NAMES = Names("circle", "red", "large", "left", "top", "dark")


def subsets() -> list[set[str]]:
    sizes = range(len(ATTRIBUTES) + 1)
    return [set(s) for s in chain.from_iterable(combinations(ATTRIBUTES, n) for n in sizes)]


def said(caption: str) -> dict[str, str]:
    """Attribute to word, of what a caption says."""
    match = GRAMMAR.fullmatch(caption)
    assert match, caption
    words = {name: word for name, word in match.groupdict().items() if word}
    if "side" in words:
        words["x"] = words.pop("side")
    if words["shape"] == "shape":
        del words["shape"]
    return words


def test_every_subset_is_said_and_no_more():
    captions = [compose(NAMES, named) for named in subsets()]
    assert len(set(captions)) == 64
    for named, caption in zip(subsets(), captions, strict=True):
        assert said(caption) == {name: getattr(NAMES, name) for name in named}


def test_what_is_said_is_true():
    scenes = sample_scenes(2000, torch.Generator().manual_seed(1))
    truths = {
        "size": {"small": scenes.radius <= 13.0, "large": scenes.radius > 13.0},
        "x": {"left": scenes.x <= 0.5, "right": scenes.x > 0.5},
        "y": {"top": scenes.y <= 0.5, "bottom": scenes.y > 0.5},
        "shade": {"dark": scenes.shade <= 0.5, "light": scenes.shade > 0.5},
    }
    names = name_attributes(scenes)
    for index, own in enumerate(names):
        for attribute, words in truths.items():
            assert words[getattr(own, attribute)][index]
        low, high = COLORS[own.color]
        hue = float(scenes.hue[index])
        assert any(low <= hue + turn < high for turn in (-1.0, 0.0))


def test_captions_of_training_are_true_and_follow_the_grammar():
    scenes = sample_scenes(500, torch.Generator().manual_seed(2))
    captions = sample_captions(scenes, torch.Generator().manual_seed(0))
    for own, caption in zip(name_attributes(scenes), captions, strict=True):
        for attribute, word in (said(caption) if caption else {}).items():
            assert getattr(own, attribute) == word


def test_the_number_of_named_attributes_is_spread_evenly():
    # With a uniform share of attributes named, each count from 0 to 6 has probability 1/7.
    n = 20_000
    scenes = sample_scenes(n, torch.Generator().manual_seed(3))
    captions = sample_captions(scenes, torch.Generator().manual_seed(4))
    silent = sum(caption == "" for caption in captions)
    assert silent / n == pytest.approx(0.1, abs=0.01)
    counts = torch.zeros(7)
    for caption in filter(None, captions):
        counts[len(said(caption))] += 1
    torch.testing.assert_close(counts / counts.sum(), torch.full((7,), 1 / 7), rtol=0.0, atol=0.012)


def test_captions_come_from_the_generator_alone():
    scenes = sample_scenes(50, torch.Generator().manual_seed(3))
    first, second = (sample_captions(scenes, torch.Generator().manual_seed(9)) for _ in range(2))
    assert first == second
    assert "" not in sample_captions(scenes, torch.Generator().manual_seed(9), dropout=0.0)


@given(st.floats(0.0, 1.0, exclude_max=True, width=32))
def test_every_hue_has_a_name(hue: float):
    low, high = COLORS[color_name(hue)]
    assert any(low - 1e-6 <= hue + turn <= high + 1e-6 for turn in (-1.0, 0.0))


@pytest.mark.parametrize(
    ("color", "rgb"),
    [
        ("red", (1, 0, 0)),
        ("orange", (1, 0.5, 0)),
        ("yellow", (1, 1, 0)),
        ("green", (0, 1, 0)),
        ("cyan", (0, 1, 1)),
        ("blue", (0, 0, 1)),
        ("purple", (0.6, 0, 1)),
        ("pink", (1, 0, 0.6)),
    ],
)
def test_names_are_the_usual_ones(color: str, rgb: tuple[float, float, float]):
    assert color_name(colorsys.rgb_to_hsv(*rgb)[0]) == color


# --- tokens ---------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def tokenizer() -> CLIPTokenizer:
    return build_tokenizer()


def test_every_caption_word_is_one_token(tokenizer: CLIPTokenizer):
    ids = [tokenizer(word, add_special_tokens=False).input_ids for word in WORDS]
    assert [len(own) for own in ids] == [1] * len(WORDS)
    assert len({own[0] for own in ids}) == len(set(WORDS))
    used = {word for named in subsets() for word in compose(NAMES, named).split()}
    assert used <= set(WORDS)


def test_the_longest_caption_fits(tokenizer: CLIPTokenizer):
    lengths = [len(tokenizer(compose(NAMES, named)).input_ids) for named in subsets()]
    assert max(lengths) <= TEXT_LENGTH
    assert max(lengths) == 14, "twelve words between the two markers"


def test_other_words_are_spelt_out_and_never_unknown(tokenizer: CLIPTokenizer):
    text = "zebra 7!"
    ids = tokenizer(text, add_special_tokens=False).input_ids
    assert len(ids) > 3
    assert tokenizer.unk_token_id not in ids
    assert tokenizer.decode(ids).replace(" ", "") == "zebra7!"


def test_the_tokenizer_is_the_same_after_saving(tokenizer: CLIPTokenizer, tmp_path: Path):
    tokenizer.save_pretrained(tmp_path)
    again = CLIPTokenizer.from_pretrained(tmp_path)
    captions = [compose(NAMES, named) for named in subsets()] + ["", "zebra 7!"]
    padding = {"padding": "max_length", "max_length": TEXT_LENGTH}
    assert again(captions, **padding).input_ids == tokenizer(captions, **padding).input_ids
    assert again.model_max_length == TEXT_LENGTH
    assert len(again) == len(tokenizer)


def test_the_text_encoder_tells_captions_apart(tokenizer: CLIPTokenizer):
    torch.manual_seed(0)
    encoder = build_text_encoder(tokenizer).eval()
    captions = ["", "a circle", "a square", "a red circle"]
    tokens = tokenizer(
        captions, padding="max_length", max_length=TEXT_LENGTH, return_tensors="pt"
    ).input_ids
    with torch.no_grad():
        states = encoder(tokens).last_hidden_state
    assert states.shape[:2] == (4, TEXT_LENGTH)
    distance = torch.cdist(states.flatten(1), states.flatten(1)) + torch.eye(4) * 1e3
    assert distance.min() > 0.1


def test_scenes_have_a_caption_each():
    scenes: Scenes = sample_scenes(7, torch.Generator().manual_seed(0))
    assert len(sample_captions(scenes, torch.Generator().manual_seed(0))) == 7


def test_every_build_of_the_tokenizer_is_the_same():
    """The trainer's own numbers differ by chance in a dozen tokens, "a" among them."""
    first, *others = [build_tokenizer().get_vocab() for _ in range(6)]
    assert all(other == first for other in others)
