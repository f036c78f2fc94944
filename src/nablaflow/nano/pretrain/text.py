"""The tokenizer and the text encoder: CLIP's classes, with a vocabulary of the captions' words."""

from __future__ import annotations

import json
import string
from typing import Any

from tokenizers import Tokenizer
from tokenizers.models import BPE
from tokenizers.trainers import BpeTrainer
from transformers import (
    CLIPTextConfig,
    CLIPTextModel,
    CLIPTextModelWithProjection,
    CLIPTokenizer,
)

from nablaflow.nano.captions import WORDS

TEXT_LENGTH = 16  # tokens: the longest caption has 14 with its two markers
TEXT_WIDTH = 96
WORD_END = "</w>"


def build_tokenizer() -> CLIPTokenizer:
    """A CLIP tokenizer that knows every caption word as one token and spells out all others."""
    letters = list(string.ascii_lowercase + string.digits + string.punctuation)
    trained = Tokenizer(BPE(end_of_word_suffix=WORD_END))
    trained.train_from_iterator(
        WORDS,
        BpeTrainer(
            special_tokens=["<|startoftext|>", "<|endoftext|>"],
            initial_alphabet=letters,
            end_of_word_suffix=WORD_END,
            show_progress=False,
        ),
    )
    model = json.loads(trained.to_str())["model"]
    for letter in letters:  # a word of one letter, or the last letter of an unknown word
        model["vocab"].setdefault(letter + WORD_END, len(model["vocab"]))
    merges: Any = [tuple(pair) for pair in model["merges"]]
    return CLIPTokenizer(
        vocab=model["vocab"],
        merges=merges,
        model_max_length=TEXT_LENGTH,
    )


def build_text_encoder(tokenizer: CLIPTokenizer) -> CLIPTextModel:
    return CLIPTextModel(_configuration(tokenizer, TEXT_WIDTH))


def build_projecting_encoder(tokenizer: CLIPTokenizer, width: int) -> CLIPTextModelWithProjection:
    """One that gives a pooled embedding besides, as Stable Diffusion 3's do."""
    return CLIPTextModelWithProjection(_configuration(tokenizer, width))


def _configuration(tokenizer: CLIPTokenizer, width: int) -> CLIPTextConfig:
    first: Any = tokenizer.bos_token_id
    last: Any = tokenizer.eos_token_id
    return CLIPTextConfig(
        vocab_size=len(tokenizer),
        hidden_size=width,
        intermediate_size=2 * width,
        num_hidden_layers=2,
        num_attention_heads=4,
        max_position_embeddings=TEXT_LENGTH,
        projection_dim=width,
        bos_token_id=first,
        eos_token_id=last,
        pad_token_id=last,
    )
