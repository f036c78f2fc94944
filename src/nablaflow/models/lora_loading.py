"""A LoRA's file into a stock pipeline, by its own loading, to the last tensor or not at all.

`nablaflow.models.lora_places` goes before where the layers have names, shapes or scales that
diffusers does not take. What the loading would leave out with a warning, or without, is refused.
"""

from __future__ import annotations

import copy
import logging
import re
import warnings
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
from diffusers.loaders.lora_base import LoraBaseMixin
from diffusers.utils import logging as diffusers_logging
from diffusers.utils.state_dict_utils import (
    convert_state_dict_to_diffusers,
    convert_state_dict_to_peft,
    convert_unet_state_dict_to_peft,
)
from peft.tuners.lora import LoraLayer
from peft.tuners.tuners_utils import BaseTunerLayer
from safetensors.torch import load_file
from torch import Tensor, nn

from nablaflow.errors import UserError
from nablaflow.models.kohya_scales import (
    ALPHA,
    has_kohyas_form,
    stock_keeps,
    without_middles,
    without_scales,
)
from nablaflow.models.lora_names import check_names, nothing, says_its_scales
from nablaflow.models.lora_places import OF_TEXT, Denoiser, by_place, text_by_place
from nablaflow.models.peft_form import is_pefts, with_scales
from nablaflow.quiet import quiet_libraries

ADAPTER = "given"
ENCODER = "text_encoder"
_OTHER_SHAPE = re.compile(
    r"size mismatch for (\S+): copying a param with shape torch\.Size\((\[[^\]]*\])\) from "
    r"checkpoint, the shape in current model is torch\.Size\((\[[^\]]*\])\)"
)


def load_into(pipeline: Any, denoiser: Denoiser, file: Path, setting: str) -> None:
    """Have a pipeline load a LoRA, to the last tensor.

    Raises:
        UserError: the pipeline takes none, or the file is none, damaged, or of another base.
    """
    kind = type(pipeline).__name__
    if not isinstance(pipeline, LoraBaseMixin):
        raise UserError(f"{setting}: nothing reads a LoRA of a {kind}; leave it out")
    check_names(file, setting)
    stock: Any = pipeline
    try:
        with _silent():
            given, options = _what_it_takes(stock, denoiser, file)
            wanted = _converted(stock, given if options else dict(given), options)
            stock.load_lora_weights(given, **options, adapter_name=ADAPTER)
    except UserError as error:
        raise UserError(f"{setting}: {file} {error}") from error
    except Exception as error:  # the libraries raise many kinds for one cause: another base
        raise UserError(
            f"{setting}: {file} does not fit a {kind} of this model ({_reason(error)}); is it a "
            "LoRA for another base?"
        ) from error
    _check_taken(stock, wanted, file, setting)
    _check_scaled(stock, file, setting)
    if not options:
        _scale_by_one(stock)


def _reason(error: Exception) -> str:
    """In one short line: torch tells the layers of a whole network in one error."""
    text = " ".join(str(error).split())
    found = _OTHER_SHAPE.search(text)
    if found is None:
        return re.split(r"\. (?=[A-Z])", text)[0][:200] or type(error).__name__
    name, theirs, wanted = found.groups()
    return f"{name.replace(f'.{ADAPTER}.', '.')} is {theirs} in it and {wanted} in the model"


def _check_scaled(pipeline: Any, file: Path, setting: str) -> None:
    """Refuse a layer whose alpha, in the file's header, is zero."""
    for network in _networks(pipeline).values():
        for path, layer in layers_of(network).items():
            if isinstance(layer, LoraLayer) and not layer.scaling[ADAPTER]:
                raise nothing(setting, file, f"lora_alpha of {path} is 0")


def _what_it_takes(pipeline: Any, denoiser: Denoiser, file: Path) -> tuple[Any, dict[str, Any]]:
    """What ``load_lora_weights`` takes, and options: the file, or its tensors, scales in them."""
    in_file = (file.parent, {"weight_name": file.name})
    if says_its_scales(file):
        return in_file
    written = load_file(file)
    state = with_scales(written, file) if is_pefts(written) else without_middles(written)
    scaled = without_scales(state)
    text = {name: value for name, value in scaled.items() if name.startswith(OF_TEXT)}
    rest = {name: value for name, value in scaled.items() if name not in text}
    found = by_place(rest, getattr(pipeline, denoiser.name), denoiser) if rest else {}
    if found is None:
        return (scaled, {}) if has_kohyas_form(state) else in_file
    whole = found | _of_text(pipeline, text)
    if len(scaled) == len(written) and _shapes(whole) == _shapes(scaled):
        return in_file
    return whole, {}


def _of_text(pipeline: Any, state: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """The text encoders' tensors as the loading reads them, to the last one.

    Raises:
        UserError: it would leave one out; what the file does is not said, nor the file.
    """
    takes = [name for name in pipeline._lora_loadable_modules if name.startswith(ENCODER)]
    encoders = {name: part for name in takes if (part := getattr(pipeline, name)) is not None}
    placed = text_by_place(state, encoders)
    found = _stocks_state(pipeline, state) if placed is None else placed
    if len(found) != len(state):
        raise UserError(
            f"changes a text encoder that no LoRA is loaded into, or a layer that it does not have "
            f"(it holds {min(state)}); use one of the denoiser alone"
        )
    return found


def _shapes(state: Mapping[str, Tensor]) -> dict[str, torch.Size]:
    return {name: value.shape for name, value in state.items()}


def _stocks_state(pipeline: Any, given: Any, **options: Any) -> dict[str, Tensor]:
    """What the loading makes of a file's tensors, before it divides them among the parts."""
    found: Any = pipeline.lora_state_dict(given, **options) if given else {}
    return found[0] if isinstance(found, tuple) else found


def _scale_by_one(pipeline: Any) -> None:
    """The scales are in the factors; the loading would take the first layer's rank for alpha."""
    for network in _networks(pipeline).values():
        for layer in layers_of(network).values():
            if isinstance(layer, LoraLayer):
                layer.lora_alpha[ADAPTER] = layer.r[ADAPTER]
                layer.scaling[ADAPTER] = 1.0


@contextmanager
def _silent() -> Iterator[None]:
    """Without the errors that diffusers logs and the warnings of peft: here they are one line."""
    with quiet_libraries(), warnings.catch_warnings():
        diffusers_logging.set_verbosity(logging.CRITICAL)
        warnings.simplefilter("ignore")
        yield


def _converted(pipeline: Any, given: Any, options: dict[str, Any]) -> list[str]:
    """Names of the tensors in diffusers' form, the scales aside."""
    # SDXL's blocks have other numbers by kohya's names, which its configuration tells.
    config = {"unet_config": pipeline.unet.config} if hasattr(pipeline, "unet") else {}
    state = _stocks_state(pipeline, given, **options, **config)
    state = {name: value for name, value in state.items() if not name.endswith(ALPHA)}
    told = {name: value for name, value in state.items() if name.startswith(ENCODER)}
    rest = {name: value for name, value in state.items() if name not in told}
    if not any("lora_A" in name for name in rest):
        rest = convert_unet_state_dict_to_peft(rest)  # as the loading does
    return [*rest, *_converted_encoders(pipeline, told)]


def _converted_encoders(pipeline: Any, state: Mapping[str, Tensor]) -> Iterator[str]:
    """The names that the loading gives to a text encoder's tensors, which it converts apart."""
    for part in sorted({name.partition(".")[0] for name in state}):
        own = {n.removeprefix(f"{part}."): v for n, v in state.items() if n.startswith(f"{part}.")}
        flat = not hasattr(getattr(pipeline, part, None), "text_model")
        for name in convert_state_dict_to_peft(convert_state_dict_to_diffusers(own)):
            yield f"{part}.{name.removeprefix('text_model.') if flat else name}"


def _check_taken(pipeline: Any, names: list[str], file: Path, setting: str) -> None:
    """Refuse a file of which something found no place: it would be another LoRA without.

    Or of which a place found nothing, and stays as it was made.
    """
    if not names:  # what its conversion has no rule for, the loading may leave out without a word
        raise UserError(
            f"{setting}: {file} holds nothing that a {type(pipeline).__name__} of this model has "
            "a place for; is it a LoRA for another base?"
        )
    places = {
        f"{part}.{path}.{name}"
        for part, network in _networks(pipeline).items()
        for path, layer in layers_of(network).items()
        for name in _tensors(layer)
    }
    other = None if len(places) == len(names) else "a layer in part"
    # The lengths of a DoRA are written with and without ``.weight``.
    lost = next((n for n in names if n not in places and f"{n}.weight" not in places), other)
    if lost is not None:
        raise UserError(
            f"{setting}: {file} holds {lost}, for which a {type(pipeline).__name__} of this model "
            "has no place; is it a LoRA for another base?"
        )


def _networks(pipeline: Any) -> dict[str, nn.Module]:
    return {n: part for n, part in pipeline.components.items() if isinstance(part, nn.Module)}


def layers_of(network: nn.Module) -> dict[str, Any]:
    """The layers that a LoRA was loaded into."""
    return {
        name: part
        for name, part in network.named_modules()
        if isinstance(part, BaseTunerLayer) and ADAPTER in part.active_adapters
    }


def _tensors(layer: Any) -> list[str]:
    """Names of a layer's tensors, those of its adapter alone, as a file has them."""
    own = [f".{name}." for name, _ in layer.named_parameters()]
    return [n.replace(f".{ADAPTER}.", ".").strip(".") for n in own if f".{ADAPTER}." in n]


def is_read_alike(pipeline: Any, denoiser: Denoiser, file: Path) -> bool:
    """Whether the file by itself is to ``load_lora_weights`` what `load_into` makes of it."""
    taking = copy.copy(pipeline)
    taking.register_modules(**{denoiser.name: without_weights(getattr(pipeline, denoiser.name))})
    given, options = _what_it_takes(taking, denoiser, file)
    if options:
        return True
    state = load_file(file)
    if not stock_keeps(state):
        return False
    try:
        with _silent():
            alone = _converted(taking, file.parent, {"weight_name": file.name})
            names = _converted(taking, dict(given), {})
    except Exception:  # the libraries raise many kinds where they do not know a name
        return False
    return set(alone) == set(names) and _convolutions(state) == _convolutions(given)


def _convolutions(state: Mapping[str, Tensor]) -> int:
    return sum(value.ndim == 4 for value in state.values())


def without_weights(network: Any) -> Any:
    """A network of the same shapes, in float32 on the CPU, all of whose weights are one zero."""
    with torch.device("meta"):
        made = type(network).from_config(network.config)
    for part in made.modules():
        for name, value in part.named_parameters(recurse=False):
            setattr(part, name, nn.Parameter(torch.zeros(()).expand(value.shape)))
    return made
