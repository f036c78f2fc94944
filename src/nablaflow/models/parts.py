"""Whether the parts of a pipeline are there, and belong together; found out before any work."""

from __future__ import annotations

import inspect
from collections.abc import Collection, Mapping, Sequence
from typing import Any

from torch import nn

from nablaflow.errors import UserError

COPY = "they are of two models, copy the whole of one"


def check_named(parts: Mapping[str, Any], kind: type[Any], without: Collection[str]) -> None:
    """Refuse a list of parts that leaves out one of those that a pipeline is made of.

    Args:
        parts: ``model_index.json``.
        kind: the pipeline's class.
        without: parts that are not needed.

    Raises:
        UserError: it names a part in no way that diffusers reads, or not at all.
    """
    for name, given in inspect.signature(kind).parameters.items():
        entry = parts.get(name)
        if given.default is not given.empty or name in without:
            continue
        if not isinstance(entry, list | tuple) or len(entry) != 2 or not all(entry):
            raise UserError(
                f"model: its model_index.json names no {name}, which a {kind.__name__} is made of; "
                "copy the whole model, or save it again with save_pretrained"
            )


def check_denoiser(parts: Mapping[str, Any], kind: type[Any], denoiser: str) -> None:
    """Refuse a denoiser of a class that the pipeline does not call.

    Args:
        denoiser: name of the part.

    Raises:
        UserError: it is of another.
    """
    wanted, found = inspect.signature(kind).parameters[denoiser].annotation, parts[denoiser][1]
    if isinstance(wanted, type) and issubclass(wanted, nn.Module) and found != wanted.__name__:
        raise UserError(
            f"model: its {denoiser} is a {found}, and a {kind.__name__}'s is a {wanted.__name__}; "
            "copy the whole model"
        )


def check_template(tokenizer: Any) -> None:
    """Refuse a language model's tokenizer that does not say how a prompt is put to the model.

    Raises:
        UserError: so it is.
    """
    if not tokenizer.chat_template:
        raise UserError(
            "model: its tokenizer has no chat_template, by which prompts are put to its text "
            "encoder; copy the whole tokenizer folder"
        )


def check_scheduler(scheduler: Any) -> None:
    """Refuse a scheduler that is for another task than making an image of noise.

    Raises:
        UserError: so it is.
    """
    own = {"self", "model_output", "timestep", "sample"}
    step = getattr(type(scheduler), "step", None)
    given = [] if step is None else inspect.signature(step).parameters.values()
    more = [p.name for p in given if p.default is p.empty and p.kind is p.POSITIONAL_OR_KEYWORD]
    if step is not None and hasattr(scheduler, "order") and not set(more) - own:
        return
    raise UserError(
        f"model: its scheduler, a {type(scheduler).__name__}, is for another kind of pipeline; use "
        "the scheduler that the model was trained with"
    )


def check_words(pipeline: Any, tokenizers: Sequence[str], encoders: Sequence[str]) -> None:
    """Refuse a tokenizer with more words than its text encoder has embeddings.

    Raises:
        UserError: it is of another model.
    """
    for name, encoder_name in zip(tokenizers, encoders, strict=True):
        tokenizer, encoder = (getattr(pipeline, part, None) for part in (name, encoder_name))
        if tokenizer is None or encoder is None:
            continue
        known = encoder.get_input_embeddings().num_embeddings
        if len(tokenizer) > known:
            raise UserError(
                f"model: its {name} has {len(tokenizer)} words and its {encoder_name} {known}; "
                + COPY
            )


def check_read_width(what: str, wanted: int, given: int) -> None:
    """Refuse text encoders whose embeddings do not fit the transformer.

    Args:
        what: that is read, such as ``prompts``.

    Raises:
        UserError: the widths differ.
    """
    if wanted != given:
        raise UserError(
            f"model: its transformer reads {what} of width {wanted} and its text encoders write "
            f"{given}; {COPY}"
        )


def check_scales(config: Mapping[str, Any], names: Sequence[str]) -> None:
    """Refuse an autoencoder without the numbers that its latents are divided by.

    Args:
        names: of the settings; each a number, or one for each channel.

    Raises:
        UserError: there are none, or others than positive ones.
    """
    for name in names:
        given = config.get(name)
        numbers = given if isinstance(given, list | tuple) else [given]
        if not all(isinstance(number, int | float) and number > 0 for number in numbers):
            raise UserError(
                f"model: {name} {given!r} in its vae/config.json cannot be divided by; use that of "
                "the model it comes from"
            )


def check_latents(denoiser: str, states: int, latents: int) -> None:
    """Refuse an autoencoder whose latents have other channels than the denoiser's states.

    Raises:
        UserError: so it is.
    """
    if states != latents:
        raise UserError(
            f"model: its {denoiser} makes latents of {states} channels and its vae reads "
            f"{latents}; {COPY}"
        )
