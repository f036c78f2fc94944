"""Prompts: where they come from, and which of them an update trains on."""

from __future__ import annotations

import random
from collections.abc import Sequence
from functools import lru_cache
from pathlib import Path

from nablaflow.errors import UserError


def load_prompts(value: Sequence[str] | str, base: Path) -> list[str]:
    """The prompts themselves, from a list or from a UTF-8 text file with one prompt per line.

    In a file, blank lines and lines that begin with ``#`` are skipped.

    Args:
        base: folder that a relative path starts from.

    Raises:
        UserError: no prompts, or a file that cannot be read as text.
    """
    if not isinstance(value, str):
        if not value:
            raise UserError("prompts: the list is empty; give at least one prompt")
        return list(value)
    path = base / Path(value).expanduser()
    lines = (line.strip() for line in _read_text(path).split("\n"))
    prompts = [line for line in lines if line and not line.startswith("#")]
    if not prompts:
        raise UserError(f"prompts: {path} holds no prompt; write one per line")
    return prompts


def _read_text(path: Path) -> str:
    try:
        # "utf-8-sig" also takes off the mark that some editors put first.
        text = path.read_text(encoding="utf-8-sig")
    except UnicodeDecodeError:
        raise UserError(f"prompts: {path} is not UTF-8 text; save it with one per line") from None
    except FileNotFoundError:
        remedy = "give the path of a text file, or the prompts themselves as [a cat, a dog]"
        raise UserError(f"prompts: no file {path}; {remedy}") from None
    except (OSError, ValueError) as error:
        reason = getattr(error, "strerror", None) or error
        raise UserError(f"prompts: cannot read {path} ({reason}); give a text file") from None
    if any(ord(letter) < 32 and letter not in "\t\n\r\f" for letter in text):
        raise UserError(f"prompts: {path} is a binary file; give a text file, one prompt per line")
    return text


@lru_cache(maxsize=4)
def _order(n: int, epoch: int, seed: int) -> tuple[int, ...]:
    """The permutation of one epoch.

    Sorting by ``random()``, and not ``shuffle``, since Python promises its values for ever.
    """
    draw = random.Random(f"{seed}/{epoch}").random
    keys = [draw() for _ in range(n)]
    return tuple(sorted(range(n), key=keys.__getitem__))


def prompt_batch(prompts: Sequence[str], update: int, count: int, seed: int) -> list[str]:
    """The ``count`` prompts of one update: the next ones in an endless row of shuffled epochs.

    It depends on its arguments only, so a resumed run and every process see the same order.

    Args:
        update: index of the update, from 0.
    """
    n = len(prompts)
    cursor = range(update * count, (update + 1) * count)
    return [prompts[_order(n, place // n, seed)[place % n]] for place in cursor]
