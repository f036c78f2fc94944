"""Prompts that are longer than a text encoder reads: embedded in pieces, or cut and named."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from diffusers.loaders import TextualInversionLoaderMixin
from jaxtyping import Float, Int
from torch import Tensor

from nablaflow.errors import UserError
from nablaflow.quiet import quiet_libraries

_VECTORS: Any = TextualInversionLoaderMixin()
SHOWN = 2  # prompts that a note names
LETTERS = 40  # of a text in a note


def content(tokenizer: Any, prompt: str) -> list[int]:
    """The tokens of a prompt without those that begin and end it.

    A word that textual inversion gave several vectors is all of them, as in the stock pipelines.
    """
    with quiet_libraries():  # what is too long is said by `note_cuts`, and nothing fails of it
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


@dataclass(frozen=True)
class Reader:
    """What reads a prompt, and how much of it.

    Attributes:
        count: pieces that a prompt is embedded in.
        reads: tokens of a piece that are read, where that is fewer than the tokenizer's own, and
            there cannot be more pieces.
        before: of those, the ones that a template puts before the prompt.
        could_read: as many as ``sampler.max_sequence_length`` may ask for; 0: it asks for none.
    """

    tokenizer: Any
    count: int = 1
    reads: int | None = None
    before: int = 0
    could_read: int = 0

    @property
    def size(self) -> int:
        """Of a piece, tokens of a prompt."""
        fewer = 0 if self.reads is None else self.tokenizer.model_max_length - self.reads
        return max(0, room(self.tokenizer) - fewer - self.before)

    @property
    def limit(self) -> int:
        return self.count * self.size

    @property
    def told(self) -> str:
        """What happens to what is longer."""
        reads = self.reads or self.tokenizer.model_max_length
        return f"longer than the {reads} tokens that the text encoder reads and"

    def remedy(self, most: int) -> str:
        """Besides to shorten a prompt of ``most`` tokens."""
        if self.reads is not None:
            needed = self.before + most + self.tokenizer.num_special_tokens_to_add()
            length = min(needed, self.could_read)
            more = f", or set sampler.max_sequence_length={length}"
            return more if length > self.reads else ""
        return f", or set sampler.prompt_chunks={-(-most // self.size)}"

    def shown(self, text: str, tokens: list[int]) -> str:
        """A prompt, and what of it is cut."""
        _, cut = kept(self.tokenizer, tokens, self.limit)
        lost = self.tokenizer.decode(cut).strip()
        return f"{_short(text)!r} loses {_short(lost)!r}"


def note_cuts(reader: Reader, prompts: Sequence[str]) -> str | None:
    """One line about prompts that are cut: which, where, and what is the same afterwards."""
    texts, limit = list(dict.fromkeys(prompts)), reader.limit
    tokens = {text: content(reader.tokenizer, text) for text in texts}
    long = [text for text in texts if len(tokens[text]) > limit]
    if not long:
        return None
    named = ", ".join(reader.shown(text, tokens[text]) for text in long[:SHOWN])
    more = f" and {len(long) - SHOWN} more" if len(long) > SHOWN else ""
    most = max(len(tokens[text]) for text in long)
    return (
        f"prompts: {len(long)} of {len(texts)} ({len(long) / len(texts):.0%}) are {reader.told} "
        f"are truncated: {named}{more}{_collisions(reader, tokens)}; shorten them"
        f"{reader.remedy(most)}"
    )


def note_negative(reader: Reader, text: str, *, guided: bool) -> str | None:
    """The same about what guidance leads away from, if it is read at all."""
    if not guided and text:
        return "sampler.negative_prompt: it is not read without guidance, sampler.guidance_scale=1"
    tokens = content(reader.tokenizer, text) if text else []
    if len(tokens) <= reader.limit:
        return None
    return (
        f"sampler.negative_prompt: it is {reader.told} is truncated: {reader.shown(text, tokens)}; "
        f"shorten it{reader.remedy(len(tokens))}"
    )


def _short(text: str) -> str:
    return text if len(text) <= LETTERS else text[:LETTERS] + "…"


def _collisions(reader: Reader, tokens: dict[str, list[int]]) -> str:
    """How many of those that are cut are then the same as another prompt."""
    read = {text: kept(reader.tokenizer, found, reader.limit) for text, found in tokens.items()}
    left = Counter(tuple(tokens) for tokens, _ in read.values())
    same = sum(left[tuple(tokens)] > 1 for tokens, cut in read.values() if cut)
    return f"; {same} of them are then the same as another prompt" if same else ""
