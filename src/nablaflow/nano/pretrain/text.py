"""Tokenizers and text encoders: CLIP's and T5's classes, with the captions' words."""

from __future__ import annotations

import json
import string
from collections.abc import Sequence
from typing import Any

from tokenizers import Tokenizer
from tokenizers.models import BPE, WordLevel
from tokenizers.pre_tokenizers import Whitespace
from tokenizers.processors import TemplateProcessing
from tokenizers.trainers import BpeTrainer
from transformers import (
    CLIPTextConfig,
    CLIPTextModel,
    CLIPTextModelWithProjection,
    CLIPTokenizer,
    PreTrainedTokenizerFast,
    T5Config,
    T5EncoderModel,
)

from nablaflow.nano.captions import WORDS

TEXT_LENGTH = 16  # tokens: the longest caption has 14 with its two markers
TEXT_WIDTH = 96
WORD_END = "</w>"
SPECIAL = ("<|startoftext|>", "<|endoftext|>")


def build_tokenizer() -> CLIPTokenizer:
    """A CLIP tokenizer that knows every caption word as one token and spells out all others."""
    letters = list(string.ascii_lowercase + string.digits + string.punctuation)
    trained = Tokenizer(BPE(end_of_word_suffix=WORD_END))
    trained.train_from_iterator(
        WORDS,
        BpeTrainer(
            special_tokens=list(SPECIAL),
            initial_alphabet=letters,
            end_of_word_suffix=WORD_END,
            show_progress=False,
        ),
    )
    model = json.loads(trained.to_str())["model"]
    # A word of one letter, or the last letter of an unknown word.
    tokens = {*model["vocab"], *(letter + WORD_END for letter in letters)} - {*SPECIAL}
    # The trainer numbers some by chance; a resumed run must read captions as it did before.
    ordered = [*SPECIAL, *sorted(tokens, key=lambda token: (len(token), token))]
    merges: Any = [tuple(pair) for pair in model["merges"]]
    return CLIPTokenizer(
        vocab={token: number for number, token in enumerate(ordered)},
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


def build_word_tokenizer(words: Sequence[str] = WORDS) -> PreTrainedTokenizerFast:
    """A tokenizer as T5 has one: a token for each word, and one for the end."""
    vocabulary = {word: index for index, word in enumerate(("<pad>", "</s>", "<unk>", *words))}
    tokenizer = Tokenizer(WordLevel(vocabulary, unk_token="<unk>"))
    tokenizer.pre_tokenizer = Whitespace()  # type: ignore[assignment]
    tokenizer.post_processor = TemplateProcessing(  # type: ignore[assignment]
        single="$A </s>", special_tokens=[("</s>", 1)]
    )
    return PreTrainedTokenizerFast(
        tokenizer_object=tokenizer,
        pad_token="<pad>",
        eos_token="</s>",
        unk_token="<unk>",
        model_max_length=512,
    )


def build_silent_t5(width: int) -> T5EncoderModel:
    """One that gives zeros, as `StableDiffusion3Pipeline` does itself where it is given no T5.

    Without this part a folder could not be loaded by the class alone.
    """
    silent = T5EncoderModel(
        T5Config(
            vocab_size=3 + len(WORDS), d_model=width, d_ff=8, d_kv=8, num_layers=1, num_heads=1
        )
    )
    silent.encoder.final_layer_norm.weight.data.zero_()
    return silent.eval().requires_grad_(False)
