"""The card beside a fitted reward: what it was fitted to, and how far it can be trusted."""

from __future__ import annotations

from typing import Any


def card(name: str, about: dict[str, Any]) -> str:
    """Markdown about a fitted reward; ``about`` is what its file says."""
    held_out = about["held_out"]
    unit = "log-odds of being preferred" if about["judgements"] == "pairs" else "the ratings' units"
    rows = [f"| {key.replace('_', ' ')} | {value:.3f} |" for key, value in held_out.items()]
    return "\n".join(
        [
            f"# {name}",
            "",
            f"A reward fitted to {about['rows']} {about['judgements']} of {about['images']} images "
            "by `nablaflow reward fit`.",
            "",
            f"- Features: `{about['features']}`, frozen, {_weights(about)}; with others it "
            "refuses to score.",
            f"- Heads: {about['members']}, {_form(about['hidden'])}, each on its own bootstrap "
            "sample and stopped by the rows left out of it.",
            f"- Unit: {unit}; mean over the heads less {about['pessimism']:g} of their standard "
            "deviations.",
            f"- Prompts: {_PROMPTS[about['prompts']]}",
            f"- Seed: {about['seed']}.",
            "",
            f"Held out in {about['folds']} folds, {_HELD_OUT[about['held_out_by']]}:",
            "",
            "| figure | value |",
            "|---|---|",
            *rows,
            "",
            "It knows the kind of images it was fitted to and no others: watch its spread while a "
            "model is aligned with it, and look at the images.",
            "",
        ]
    )


_PROMPTS = {
    "none": "none were given; the reward does not look at them.",
    "folds": "used for the folds only; the reward does not look at them.",
}
_HELD_OUT = {
    "prompt": "no prompt both in training and held out",
    "image": "no image both in training and held out",
    "row": "by rows, so an image may be known from another row",
}


def _weights(about: dict[str, Any]) -> str:
    given = about.get("weights")
    return "with their own weights" if given is None else f"with the weights of `{given}`"


def _form(hidden: int) -> str:
    return f"linear plus {hidden} hidden units" if hidden else "linear"
