"""Prompts that are longer than a text encoder reads: what of them is read, embedded in pieces."""

from __future__ import annotations

from typing import Any

import torch
from diffusers.loaders import TextualInversionLoaderMixin
from jaxtyping import Float, Int
from torch import Tensor

from nablaflow.errors import UserError
from nablaflow.quiet import quiet_libraries

_VECTORS: Any = TextualInversionLoaderMixin()


def content(tokenizer: Any, prompt: str) -> list[int]:
    """The tokens of a prompt without those that begin and end it.

    A word that textual inversion gave several vectors is all of them, as in the stock pipelines.
    """
    with quiet_libraries():  # what is too long is said by `cut_prompts`, and nothing fails of it
        prompt = _VECTORS.maybe_convert_prompt(prompt, tokenizer)
    return tokenizer(prompt, add_special_tokens=False, verbose=False).input_ids


def room(tokenizer: Any) -> int:
    """Tokens of a prompt that one piece holds: what is read, less the beginning and the end."""
    return tokenizer.model_max_length - tokenizer.num_special_tokens_to_add()


def kept(tokenizer: Any, tokens: list[int], limit: int) -> tuple[list[int], list[int]]:
    """What is read of the tokens of a prompt, and what is cut: the end, or what a folder says."""
    if tokenizer.truncation_side == "left":
        cut = max(0, len(tokens) - limit)
        return tokens[cut:], tokens[:cut]
    return tokens[:limit], tokens[limit:]


def before(tokenizer: Any) -> int:
    """Tokens that a language model's template puts before a prompt."""
    mark = "THE PROMPT"
    told = tokenizer.apply_chat_template([{"role": "user", "content": mark}], tokenize=False)
    return len(content(tokenizer, told.partition(mark)[0]))


Pieces = tuple[Int[Tensor, "piece token"], Int[Tensor, "piece token"]]
"""Tokens, and 1 where they are the prompt's, 0 where they are padding."""


def pieces(tokenizer: Any, prompt: str, count: int) -> Pieces:
    """The tokens of a prompt as ``count`` pieces, each with its own beginning, end and padding.

    Every prompt has as many, the later ones maybe empty, so that an embedding does not depend on
    what else is in a batch. What does not fit the last one is cut. One piece is the stock
    pipelines' own.

    Raises:
        UserError: there are to be several, and the tokenizer puts no two tokens around a prompt.
    """
    length = tokenizer.model_max_length
    if count == 1:
        text = _VECTORS.maybe_convert_prompt(prompt, tokenizer)
        filled = {"padding": "max_length", "max_length": length, "truncation": True}
        read = tokenizer(text, **filled, return_tensors="pt")
        return read.input_ids, read.attention_mask
    around, size = tokenizer("").input_ids, room(tokenizer)
    if len(around) != 2:
        raise UserError(
            "sampler.prompt_chunks: the model's tokenizer does not put one token before a prompt "
            "and one behind it, so that there are no pieces of one; leave it out"
        )
    tokens, _ = kept(tokenizer, content(tokenizer, prompt), count * size)
    rows, mask = torch.full((count, length), tokenizer.pad_token_id), torch.zeros(count, length)
    for which, start in enumerate(range(0, count * size, size)):
        part = torch.tensor([around[0], *tokens[start : start + size], around[1]])
        left = length - len(part) if tokenizer.padding_side == "left" else 0
        rows[which, left : left + len(part)] = part
        mask[which, left : left + len(part)] = 1
    return rows, mask.long()


@torch.no_grad()
def embed_pieces(
    tokenizer: Any,
    encoder: Any,
    prompt: str,
    count: int,
    device: torch.device,
    skip: int | None = None,
) -> Float[Tensor, "token width"]:
    """The embeddings of all pieces, one behind the other; each is read by itself.

    Args:
        skip: last layers that are left out, before the norm at the end.
    """
    rows, mask = (part.to(device) for part in pieces(tokenizer, prompt, count))
    masked = getattr(encoder.config, "use_attention_mask", False)  # as the stock pipeline
    read = encoder(rows, attention_mask=mask if masked else None, output_hidden_states=True)
    return (read[0] if skip is None else before_last(encoder, read, skip)).flatten(0, 1)


def before_last(encoder: Any, read: Any, skip: int) -> Float[Tensor, "row token width"]:
    """What a CLIP gives without its last ``skip`` layers, but with the norm at its end.

    Args:
        read: its output, with all hidden states.
    """
    inner = getattr(encoder, "text_model", encoder)  # transformers 5 has one part for both
    return inner.final_layer_norm(read.hidden_states[-skip - 1])
