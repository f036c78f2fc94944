"""Prompts that are longer than a text encoder reads: embedded in pieces, or cut and named."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Sequence
from typing import Any

import torch
from jaxtyping import Float, Int
from torch import Tensor

SHOWN = 2  # prompts that a note names
LETTERS = 40  # of a text in a note


def content(tokenizer: Any, prompt: str) -> list[int]:
    """The tokens of a prompt without those that begin and end it."""
    return tokenizer(prompt, add_special_tokens=False, verbose=False).input_ids


def room(tokenizer: Any) -> int:
    """Tokens of a prompt that one piece holds: what is read, less the beginning and the end."""
    return tokenizer.model_max_length - tokenizer.num_special_tokens_to_add()


def pieces(tokenizer: Any, prompt: str, count: int) -> Int[Tensor, "piece token"]:
    """The tokens of a prompt as ``count`` pieces, each with its own beginning, end and padding.

    Every prompt has as many, the later ones maybe empty, so that an embedding does not depend on
    what else is in a batch. What does not fit the last one is cut.
    """
    tokens, size = content(tokenizer, prompt), room(tokenizer)
    begin, end = tokenizer("").input_ids
    rows = torch.full((count, tokenizer.model_max_length), tokenizer.pad_token_id)
    for row, start in zip(rows, range(0, count * size, size), strict=True):
        part = torch.tensor([begin, *tokens[start : start + size], end])
        row[: len(part)] = part
    return rows


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
    read = encoder(pieces(tokenizer, prompt, count).to(device), output_hidden_states=True)
    return (read[0] if skip is None else before_last(encoder, read, skip)).flatten(0, 1)


def before_last(encoder: Any, read: Any, skip: int) -> Float[Tensor, "row token width"]:
    """What a CLIP gives without its last ``skip`` layers, but with the norm at its end.

    Args:
        read: its output, with all hidden states.
    """
    inner = getattr(encoder, "text_model", encoder)  # transformers 5 has one part for both
    return inner.final_layer_norm(read.hidden_states[-skip - 1])


def note_cuts(
    tokenizer: Any, prompts: Sequence[str], count: int, reads: int | None = None
) -> str | None:
    """One line about prompts that are cut: which, where, and what is the same afterwards.

    Args:
        count: pieces that a prompt is embedded in.
        reads: tokens of a piece that are read, where that is fewer than the tokenizer's own, and
            there cannot be more pieces.
    """
    size = room(tokenizer) - (0 if reads is None else tokenizer.model_max_length - reads)
    limit = count * size
    texts = list(dict.fromkeys(prompts))
    tokens = {text: content(tokenizer, text) for text in texts}
    long = [text for text in texts if len(tokens[text]) > limit]
    if not long:
        return None
    named = ", ".join(_shown(text, tokens[text][limit:], tokenizer.decode) for text in long[:SHOWN])
    more = f" and {len(long) - SHOWN} more" if len(long) > SHOWN else ""
    most = max(len(tokens[text]) for text in long)
    remedy = f", or set sampler.prompt_chunks={-(-most // size)}" if reads is None else ""
    return (
        f"prompts: {len(long)} of {len(texts)} ({len(long) / len(texts):.0%}) are longer than the "
        f"{reads or tokenizer.model_max_length} tokens that the text encoder reads and are "
        f"truncated: {named}{more}{_collisions(tokens, limit)}; shorten them{remedy}"
    )


def _shown(text: str, cut: list[int], decode: Callable[[list[int]], str]) -> str:
    lost = decode(cut).strip()
    return f"{_short(text)!r} loses {_short(lost)!r}"


def _short(text: str) -> str:
    return text if len(text) <= LETTERS else text[:LETTERS] + "…"


def _collisions(tokens: dict[str, list[int]], limit: int) -> str:
    """How many of those that are cut are then the same as another prompt."""
    left = Counter(tuple(found[:limit]) for found in tokens.values())
    same = sum(left[tuple(cut[:limit])] > 1 for cut in tokens.values() if len(cut) > limit)
    return f"; {same} of them are then the same as another prompt" if same else ""
