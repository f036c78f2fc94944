"""Prompts: which there are, which of them are held out, and which an update trains on."""

from __future__ import annotations

import random
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path
from typing import Any

from nablaflow.errors import UserError
from nablaflow.places import at_home
from nablaflow.prompts.files import FoundPrompts, metadata_of, read_file
from nablaflow.prompts.functions import draw_prompts
from nablaflow.prompts.hub import data_set, named_set
from nablaflow.prompts.source import DRAWS, FUNCTION, HUB, SETS

Source = Sequence[str] | str | Mapping[str, Any] | None
"""None: an unconditional model's, whose images all have the empty text."""


@dataclass(frozen=True)
class PromptSets:
    """The prompts of a run.

    Attributes:
        training: as they came; a prompt that comes twice is trained twice as often.
        evaluation: different texts, in the order they came.
        notes: lines about what was found on the way.
    """

    training: list[str]
    evaluation: list[str]
    notes: tuple[str, ...] = ()


def prompt_sets(
    source: Source, *, evaluation: Source = None, hold_out: float = 0.0, seed: int = 0
) -> PromptSets:
    """What a run trains on and what it is measured on.

    Args:
        source: of the prompts to train on.
        evaluation: of those to measure on; None takes them from ``source``.
        hold_out: share of the texts of ``source`` that is measured on and not trained on.
        seed: of the run: of the choice of those, and of prompts that a function draws.

    Raises:
        UserError: as `find_prompts` and `split_off` say.
    """
    found = find_prompts(source, Path(), seed)
    notes = [found.note()]
    training = list(found.texts)
    measured = list(dict.fromkeys(training))
    if evaluation is not None:
        apart = find_prompts(evaluation, Path(), seed)
        notes.append(apart.note())
        measured = list(dict.fromkeys(apart.texts))
    elif hold_out:
        training, measured = split_off(training, hold_out, seed)
    return PromptSets(training, measured, tuple(note for note in notes if note))


def split_off(prompts: Sequence[str], fraction: float, seed: int) -> tuple[list[str], list[str]]:
    """Prompts to train on, and a share of the different texts among them to measure on.

    A text is never on both sides. It depends on the texts, the fraction and the seed only.

    Args:
        fraction: share of the texts that is held out, at least one of them.

    Raises:
        UserError: nothing would be left to train on.
    """
    texts = list(dict.fromkeys(prompts))
    held = max(1, round(fraction * len(texts)))
    if held >= len(texts):
        raise UserError(
            f"evaluation.hold_out: {fraction:g} of {len(texts)} different prompts leaves none to "
            "train on; use a smaller share or more prompts"
        )
    draw = random.Random(f"{seed}/hold-out").random
    apart = set(sorted(texts, key={text: draw() for text in texts}.__getitem__)[:held])
    training = [text for text in prompts if text not in apart]
    return training, [text for text in texts if text in apart]


def load_prompts(value: Source, base: Path, seed: int = 0) -> list[str]:
    """The prompts themselves, see `find_prompts`."""
    return list(find_prompts(value, base, seed).texts)


def prompt_metadata(*sources: Source, seed: int) -> dict[str, Any]:
    """What stands beside each prompt of some sources, by its text; see `find_prompts`."""
    return metadata_of(find_prompts(source, Path(), seed) for source in sources)


def find_prompts(value: Source, base: Path, seed: int = 0) -> FoundPrompts:
    """The prompts of a source, with what a note says about them.

    None is one empty text. A list is taken as it is. In a text file, blank lines and lines that
    begin with ``#`` are skipped; of ``.jsonl``, ``.csv`` and data sets of the hub a column is
    taken. A function ``() -> (prompt, metadata)`` is called ``count`` times.

    Args:
        base: folder that a relative path starts from.
        seed: of the run, which such a function draws by.

    Raises:
        UserError: no prompts, a file that cannot be read, a data set that cannot be downloaded.
    """
    source, column, split, count = value, None, None, None
    if isinstance(value, Mapping):
        source = value["source"]
        column, split, count = (value.get(key) for key in ("column", "split", "count"))
    if source is None:
        return FoundPrompts("no prompts", [""], [1])
    if not isinstance(source, str):
        if not source:
            raise UserError("prompts: the list is empty; give at least one prompt")
        return FoundPrompts("the list", list(source), range(1, len(source) + 1))
    if source.startswith(FUNCTION):
        _refuse(source, {"column": column, "split": split}, "a function")
        return draw_prompts(_from(base, source), count or DRAWS, seed)
    _refuse(source, {"count": count}, "no function")
    if source.startswith(HUB):
        return data_set(source.removeprefix(HUB), column, split)
    if split is not None:
        raise UserError(f"prompts.split: only data sets of the hub have one; {source} is none")
    if source in SETS:
        if column is not None:
            raise UserError(f"prompts.column: {source} is a set of texts and has none")
        return named_set(source)
    return read_file(base / at_home(source), column)


def _refuse(source: str, given: Mapping[str, Any], what: str) -> None:
    for key, value in given.items():
        if value is not None:
            raise UserError(f"prompts.{key}: {source} is {what} and has none; leave it out")


def _from(base: Path, source: str) -> str:
    """A function's source whose relative path starts at ``base``."""
    return FUNCTION + str(base / at_home(source.removeprefix(FUNCTION)))


@lru_cache(maxsize=4)
def _order(n: int, epoch: int, seed: int) -> tuple[int, ...]:
    """The permutation of one epoch.

    Sorting by ``random()``, and not ``shuffle``, since Python promises its values for ever.
    """
    draw = random.Random(f"{seed}/{epoch}").random
    keys = [draw() for _ in range(n)]
    return tuple(sorted(range(n), key=keys.__getitem__))


def prompt_batch(prompts: Sequence[str], rollout: int, count: int, seed: int) -> list[str]:
    """The ``count`` prompts of one rollout: the next ones in an endless row of shuffled epochs.

    It depends on its arguments only, so a resumed run and every process see the same order.

    Args:
        rollout: how many were drawn before it.
    """
    n = len(prompts)
    cursor = range(rollout * count, (rollout + 1) * count)
    return [prompts[_order(n, place // n, seed)[place % n]] for place in cursor]
