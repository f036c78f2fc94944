"""Whether the parts of a pipeline are there, and belong together; found out before any work."""

from __future__ import annotations

import importlib
import inspect
import math
from collections.abc import Collection, Mapping, Sequence
from typing import Any, TypeGuard

from torch import nn

from nablaflow.errors import UserError, show

LIBRARIES = ("diffusers", "transformers")
"""Whose classes a pipeline is made of."""
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


def check_libraries(parts: Mapping[str, Any], kind: type[Any], without: Collection[str]) -> None:
    """Refuse a part whose class is of a folder's own or another library's: no such code is run.

    Args:
        without: parts that are not read.

    Raises:
        UserError: there is one.
    """
    for name in sorted(inspect.signature(kind).parameters.keys() - set(without)):
        entry = parts.get(name)
        if not isinstance(entry, list | tuple) or not any(entry) or entry[0] in LIBRARIES:
            continue
        raise UserError(
            f"model: its {name} is {show('.'.join(map(str, entry)))}, whose code is not run here; "
            f"use a model whose parts are all of {' or '.join(LIBRARIES)}"
        )


def check_classes(parts: Mapping[str, Any], kind: type[Any], names: Collection[str]) -> None:
    """Refuse networks of classes that the pipeline does not call.

    Args:
        names: of the parts to look at.

    Raises:
        UserError: one is of another.
    """
    given = inspect.signature(kind).parameters
    for name in sorted(names):
        wanted, found = given[name].annotation, (parts.get(name) or [None])[-1]
        if found is None or not isinstance(wanted, type):
            continue
        if issubclass(wanted, nn.Module) and not _is_one(found, wanted):
            raise UserError(
                f"model: its {name} is a {found}, and a {kind.__name__}'s is a {wanted.__name__}; "
                "copy the whole model"
            )


def _is_one(found: str, wanted: type[nn.Module]) -> bool:
    """Whether a class by this name, of the same library, is a kind of another."""
    library = importlib.import_module(wanted.__module__.partition(".")[0])
    kind = getattr(library, found, None)
    return isinstance(kind, type) and issubclass(kind, wanted)


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
    """Refuse a tokenizer with more words than its text encoder has embeddings, or none beside one.

    Raises:
        UserError: it is of another model, or missing.
    """
    for name, encoder_name in zip(tokenizers, encoders, strict=True):
        tokenizer, encoder = (getattr(pipeline, part, None) for part in (name, encoder_name))
        if encoder is None:
            continue
        if tokenizer is None:
            raise UserError(
                f"model: it has a {encoder_name} and no {name}, which reads prompts for it; copy "
                "the whole model"
            )
        known = encoder.get_input_embeddings().num_embeddings
        if len(tokenizer) <= known:
            continue
        if tokenizer.vocab_size <= known:  # such as textual inversion's
            added = next(word for word, i in tokenizer.get_vocab().items() if i >= known)
            raise UserError(
                f"model: words were added to its {name} ({added}), for which its {encoder_name} "
                "has no embeddings; load them with load_textual_inversion(…), or call "
                f"{encoder_name}.resize_token_embeddings({len(tokenizer)}) and train them, and "
                "save the pipeline again"
            )
        raise UserError(
            f"model: its {name} has {len(tokenizer)} words and its {encoder_name} {known}; {COPY}"
        )


def check_lengths(
    pipeline: Any, tokenizers: Sequence[str], encoders: Sequence[str], *, by_first: bool = False
) -> None:
    """Refuse a tokenizer that cannot pad, or does not keep to as many tokens as a CLIP reads.

    Args:
        by_first: whether the pipeline asks every CLIP's for as many tokens as the first's.

    Raises:
        UserError: so it is.
    """
    for name, encoder_name in zip(tokenizers, encoders, strict=True):
        tokenizer, encoder = (getattr(pipeline, part, None) for part in (name, encoder_name))
        if tokenizer is None or encoder is None:
            continue
        if tokenizer.pad_token_id is None:
            raise UserError(
                f"model: its {name} has no pad_token, by which short prompts are filled up; copy "
                f"the whole {name} folder"
            )
        given = tokenizer.model_max_length
        if not is_number(given):
            raise UserError(
                f"model: model_max_length {given!r} in its {name}/tokenizer_config.json is no "
                f"number of tokens; copy the whole {name} folder"
            )
        if not encoder.config.model_type.startswith("clip"):
            continue
        if by_first:
            name, tokenizer = tokenizers[0], getattr(pipeline, tokenizers[0])
            given = tokenizer.model_max_length
        reads, least = encoder.config.max_position_embeddings, tokenizer.num_special_tokens_to_add()
        if type(given) is not int or not least < given <= reads:
            raise UserError(
                f"model: its {name} cuts prompts at {given:,} tokens and its {encoder_name} reads "
                f"{reads}; set model_max_length in {name}/tokenizer_config.json to {reads}, or "
                f"copy the whole {name} folder"
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


def check_scales(
    config: Mapping[str, Any], scales: Sequence[str], shifts: Sequence[str] = ()
) -> None:
    """Refuse an autoencoder without the numbers that make its latents of states.

    Args:
        scales: names of the settings that are divided by; each a number, or one for each channel.
        shifts: of those that are added, one number each.

    Raises:
        UserError: there are none, or scales that are not positive.
    """
    for name in scales:
        given = config.get(name)
        numbers = given if isinstance(given, list | tuple) else [given]
        if not all(is_number(number) and number > 0 for number in numbers):
            raise UserError(
                f"model: {name} {given!r} in its vae/config.json cannot be divided by; use that of "
                "the model it comes from"
            )
    for name in shifts:
        if not is_number(config.get(name)):
            raise UserError(
                f"model: {name} {config.get(name)!r} in its vae/config.json is no number, and its "
                "latents are shifted by it; use that of the model it comes from"
            )


def check_statistics(config: Mapping[str, Any], channels: int) -> None:
    """Refuse an autoencoder without a mean and a standard deviation for each channel.

    Raises:
        UserError: so it is.
    """
    for name in ("latents_mean", "latents_std"):
        given = config.get(name)
        if not isinstance(given, list | tuple) or not all(map(is_number, given)):
            raise UserError(
                f"model: {name} {given!r} in its vae/config.json is no list of numbers; use that "
                "of the model it comes from"
            )
        if len(given) != channels:
            raise UserError(
                f"model: {name} has {len(given)} numbers for {channels} channels in its "
                "vae/config.json; use those of the model it comes from"
            )


def is_number(value: Any) -> TypeGuard[float]:
    """Whether a setting is a finite number."""
    return type(value) in (int, float) and math.isfinite(value)


def check_decoder(autoencoder: Any) -> None:
    """Refuse an autoencoder whose decoder is a sampler.

    Raises:
        UserError: so it is.
    """
    if hasattr(autoencoder, "decoder_scheduler"):
        raise UserError(
            f"model: its vae, a {type(autoencoder).__name__}, decodes with noise of its own, so "
            "that a state has no one image and no reward; use an AutoencoderKL"
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
