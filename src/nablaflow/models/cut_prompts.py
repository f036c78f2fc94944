"""What is said of prompts that are cut: which, where, by which text encoder, and what helps."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Any

from nablaflow.models.long_prompts import content, kept, room

SHOWN = 2  # prompts that a note names
LETTERS = 40  # of a text in a note
KINDS = {"clip": "CLIP", "t5": "the T5", "umt5": "the T5"}
"""Text encoders, by the first word of their configuration's ``model_type``."""


def called(encoder: Any) -> str:
    """A text encoder's name among several."""
    kind = encoder.config.model_type.partition("_")[0]
    return KINDS.get(kind, "the language model")


def is_silent(encoder: Any) -> bool:
    """Whether it is a T5 that gives zeros for every prompt, as one that is there for its class."""
    last = getattr(getattr(encoder, "encoder", None), "final_layer_norm", None)
    if last is None or last.weight.is_meta or getattr(last, "bias", None) is not None:
        return False
    return not bool(last.weight.any())


@dataclass(frozen=True)
class Reader:
    """What reads a prompt, and how much of it.

    Attributes:
        count: pieces that a prompt is embedded in.
        reads: tokens of a piece that are read, where that is another number than the tokenizer's
            own, and there cannot be more pieces.
        before: of those, the ones that a template puts before the prompt.
        could_read: as many as ``sampler.max_sequence_length`` may ask for; 0: it asks for none.
        name: of the text encoder, among several.
        part: and that of the pipeline's part, where two have the same name.
    """

    tokenizer: Any
    count: int = 1
    reads: int | None = None
    before: int = 0
    could_read: int = 0
    name: str = "the text encoder"
    part: str = "text_encoder"

    @property
    def size(self) -> int:
        """Of a piece, tokens of a prompt."""
        fewer = 0 if self.reads is None else self.tokenizer.model_max_length - self.reads
        return max(0, room(self.tokenizer) - fewer - self.before)

    @property
    def limit(self) -> int:
        return self.count * self.size

    @property
    def amount(self) -> str:
        """How much is read, with the tokens around a prompt."""
        tokens = f"{self.reads or self.tokenizer.model_max_length} tokens"
        return tokens if self.count == 1 else f"{self.count} pieces of {tokens}"

    def remedy(self, most: int) -> str:
        """Besides to shorten a prompt of ``most`` tokens."""
        if self.reads is not None:
            needed = self.before + most + self.tokenizer.num_special_tokens_to_add()
            length = min(needed, self.could_read)
            more = f", or set sampler.max_sequence_length={length}"
            return more if length > self.reads else ""
        return f", or set sampler.prompt_chunks={-(-most // self.size)}"


Split = dict[str, tuple[list[int], list[int]]]
"""By the prompt: its tokens that are read, and those that are cut."""


@dataclass(frozen=True)
class AsRead:
    """What one text encoder reads of some prompts."""

    reader: Reader
    split: Split

    @property
    def long(self) -> list[str]:
        """The prompts that are cut."""
        return [text for text, (_, cut) in self.split.items() if cut]

    def how_many(self, them: str) -> str:
        return them if len(self.split) == 1 else f"{len(self.long)} of {them}"

    @property
    def shown(self) -> str:
        """Some of them, and what each loses."""
        lost = {text: self.reader.tokenizer.decode(self.split[text][1]) for text in self.long}
        named = [f"{_short(text)!r} loses {_short(end.strip())!r}" for text, end in lost.items()]
        more = f" and {len(named) - SHOWN} more" if len(named) > SHOWN else ""
        return ", ".join(named[:SHOWN]) + more

    @property
    def remedy(self) -> str:
        return self.reader.remedy(
            max(len(self.split[text][0] + self.split[text][1]) for text in self.long)
        )


def note_cuts(
    readers: Iterable[Reader], prompts: Sequence[str], *, settable: bool = True
) -> str | None:
    """One line about prompts that are cut: which, where, and what is the same afterwards.

    Args:
        settable: whether a remedy may be a setting.
    """
    texts = list(dict.fromkeys(prompts))
    found = _readings(readers, texts)
    long = [text for text in texts if any(one.split[text][1] for one in found)]
    if not long:
        return None
    begin = f"prompts: {len(long)} of {len(texts)} ({len(long) / len(texts):.0%}) are "
    return begin + _told(found, "are", "them", _collisions(found), settable=settable)


def note_negative(
    readers: Iterable[Reader], text: str, *, guided: bool, settable: bool = True
) -> str | None:
    """The same about what guidance leads away from, if it is read at all."""
    if not guided and text:
        return "sampler.negative_prompt: it is not read without guidance, sampler.guidance_scale=1"
    found = _readings(readers, [text] if text else [])
    if not any(reading.long for reading in found):
        return None
    return "sampler.negative_prompt: it is " + _told(found, "is", "it", "", settable=settable)


def _readings(readers: Iterable[Reader], texts: Sequence[str]) -> list[AsRead]:
    """What each reads; two that read the same, as the CLIPs of a pipeline do, are one."""
    found: list[AsRead] = []
    for reader in readers:
        tokens = {text: content(reader.tokenizer, text) for text in texts}
        split = {text: kept(reader.tokenizer, ids, reader.limit) for text, ids in tokens.items()}
        if split not in [other.split for other in found]:
            found.append(AsRead(reader, split))
    return found


def _told(found: list[AsRead], verb: str, them: str, same: str, *, settable: bool) -> str:
    """What is cut by which, and what to do about it; where another reads the rest, nothing."""
    cutting = [reading for reading in found if reading.long]
    remedies = [reading.remedy for reading in cutting] if settable else [""]
    remedy = max(remedies, key=lambda told: (len(told), told))  # that of the largest number
    if len(found) == 1:
        reader, shown = cutting[0].reader, cutting[0].shown
        told = f"longer than the {reader.amount} that the text encoder reads and {verb} truncated"
        return f"{told}: {shown}{same}; shorten {them}{remedy}"
    told = "longer than a text encoder reads: " + "; ".join(
        f"{_name(reading, found)} reads {reading.reader.amount} and cuts {reading.how_many(them)}: "
        f"{reading.shown}"
        for reading in cutting
    )
    whole = [_name(reading, found) for reading in found if not reading.long]
    if whole:
        told += f"; {' and '.join(whole)} read{'s' if len(whole) == 1 else ''} all of {them}"
    return told + same + (f"; shorten {them}{remedy}" if remedy or not whole else "")


def _name(reading: AsRead, found: list[AsRead]) -> str:
    name = reading.reader.name
    alike = [other for other in found if other.reader.name == name]
    return name if len(alike) == 1 else f"its {reading.reader.part}"


def _short(text: str) -> str:
    return text if len(text) <= LETTERS else text[:LETTERS] + "…"


def _collisions(found: list[AsRead]) -> str:
    """How many of those that are cut are then the same as another prompt, to all that read."""
    texts = list(found[0].split)
    read = {text: tuple(tuple(one.split[text][0]) for one in found) for text in texts}
    times = Counter(read.values())
    same = sum(times[read[text]] > 1 and any(one.split[text][1] for one in found) for text in texts)
    return f"; {same} of them are then the same as another prompt" if same else ""
