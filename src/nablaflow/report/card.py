"""The model card of an exported policy: what it is, how it was made, how well, how it is loaded."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

import yaml

from nablaflow.errors import printable
from nablaflow.report.table import COLUMNS, rows


@dataclass(frozen=True)
class Card:
    """What a model card says; texts may come from somebody else's run folder.

    Attributes:
        name: of the base model, without folders.
        hub_id: the same, if it is one.
        content: what the folder holds, in a few words.
        pipeline: its class.
        facts: label to what is said of it.
        summary: what summary.json holds, if it is of this very policy.
        loading: lines of Python, or a sentence, that say how it is loaded.
        notes: what else there is to know.
    """

    name: str
    hub_id: str | None
    content: str
    pipeline: str
    facts: Mapping[str, str]
    summary: Mapping[str, Any] | None
    loading: str
    notes: tuple[str, ...] = field(default=())


def card_text(card: Card) -> str:
    """The card as README.md, with the header that the hub reads.

    Raises:
        KeyError, TypeError, ValueError, AttributeError: the summary holds no figures.
    """
    head: dict[str, Any] = {"library_name": "diffusers", "tags": ["nablaflow"]}
    if card.hub_id is not None:
        head["base_model"] = card.hub_id
    parts = [
        f"---\n{yaml.safe_dump(head, sort_keys=True)}---",
        f"# {_plain(card.name)}, aligned with a reward",
        f"{card.content} It was made with nablaflow, which aligns a model with a reward and keeps "
        "near to what the model was.",
        "\n".join(f"- {label}: {_code(text)}" for label, text in card.facts.items()),
        "## Figures",
        _figures(card.summary),
        "## How to load it",
        card.loading,
        *card.notes,
        "## Licence",
        f"This is a derivative of the base model, {_code(card.name)}: that model's licence and "
        "terms of use hold for it. The reward model and the prompts may have terms of their own.",
    ]
    return "\n\n".join(parts) + "\n"


def _figures(summary: Mapping[str, Any] | None) -> str:
    """The headline figures of the run's own measurement."""
    if summary is None:
        return "This policy was not measured at the end of its run."
    lines = ["| | " + " | ".join(COLUMNS.values()) + " |", "|---" * (1 + len(COLUMNS)) + "|"]
    for row in rows(summary):
        lines.append("| " + " | ".join((row.label, *map(_plain, row.cells))) + " |")
    return "\n".join(lines)


def _plain(text: str) -> str:
    """On one line, and without what Markdown or HTML would read as more than text."""
    return "".join(" " if c in "|<>[]`*_#\\" else c for c in printable(text))


def _code(text: str) -> str:
    shown = printable(text).replace("`", "'")
    return f"`{shown}`"
