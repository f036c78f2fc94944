"""A LoRA of the user's in a file: as diffusers saves it, or by kohya's names, as ComfyUI reads it.

It is read by a stock pipeline's own loading. What that would leave out with a warning, or not at
all, is refused here.
"""

from __future__ import annotations

import copy
import logging
import warnings
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
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
from safetensors import SafetensorError, safe_open
from torch import Tensor, nn

from nablaflow.errors import UserError
from nablaflow.models.kohya_scales import ALPHA, alone, with_its_scales
from nablaflow.quiet import quiet_libraries

NAMES = ("pytorch_lora_weights.safetensors", "kohya_lora.safetensors")
"""What a folder's LoRA is called by diffusers, and by our own export."""
ADAPTER = "given"
ENCODER = "text_encoder"
OTHERS = {"hada_": "a LoHa", "lokr_": "a LoKr", "oft_": "an OFT"}
"""Other adapters than LoRAs, by what the names of their tensors have in them."""
PEFT = "base_model.model."
"""What peft's own ``save_pretrained`` puts before the path of a layer."""


@dataclass(frozen=True)
class LoraFactors:
    """One layer's update, ``scale * up @ down``.

    Attributes:
        down: (rank, in, …).
        up: (out, rank, …).
        magnitude: of a DoRA, the lengths of the weight's rows.
    """

    down: Tensor
    up: Tensor
    scale: float
    magnitude: Tensor | None


@dataclass(frozen=True)
class GivenLora:
    """The LoRA of a file.

    Attributes:
        layers: path in the denoiser to the update.
        rslora: whether the file says that its scale is alpha over the root of the rank.
    """

    layers: Mapping[str, LoraFactors]
    rslora: bool


def find_lora(path: str, setting: str) -> Path:
    """The file that a path means: itself, or the one in a folder.

    Args:
        setting: that holds the path, for the message.

    Raises:
        UserError: there is none, there are several, or it is of another kind.
    """
    place = Path(path).expanduser()
    if place.is_dir():
        return _in_folder(place, setting)
    if not place.is_file():
        raise UserError(f"{setting}: there is no file {path}; check the path")
    if place.suffix != ".safetensors":
        raise UserError(f"{setting}: {path} is no .safetensors file; save the LoRA as one")
    return place


def _in_folder(folder: Path, setting: str) -> Path:
    there = sorted(folder.glob("*.safetensors"))
    named = [folder / name for name in NAMES if (folder / name).is_file()]
    if len(named or there) == 1:
        return (named or there)[0]
    if there:
        raise UserError(f"{setting}: {folder} holds {len(there)} .safetensors files; name one")
    inside = f"; did you mean {folder / 'lora'}?" if (folder / "lora").is_dir() else ""
    raise UserError(f"{setting}: {folder} holds no .safetensors file{inside or '; name a LoRA'}")


def load_into(pipeline: Any, file: Path, setting: str) -> None:
    """Have a pipeline load a LoRA, to the last tensor.

    Raises:
        UserError: the pipeline takes none, or the file is none, damaged, or of another base.
    """
    kind = type(pipeline).__name__
    if not isinstance(pipeline, LoraBaseMixin):
        raise UserError(f"{setting}: nothing reads a LoRA of a {kind}; leave it out")
    _check_names(_names(file, setting), file, setting)
    stock: Any = pipeline
    try:
        with _silent():
            given, options = with_its_scales(file)
            wanted = _converted(stock, given if options else dict(given), options)
            stock.load_lora_weights(given, **options, adapter_name=ADAPTER)
    except Exception as error:  # the libraries raise many kinds for one cause: another base
        reason = " ".join(str(error).split())[:200]
        raise UserError(
            f"{setting}: {file} does not fit a {kind} of this model ({reason}); is it a LoRA for "
            "another base?"
        ) from error
    _check_taken(stock, wanted, file, setting)


@contextmanager
def _silent() -> Iterator[None]:
    """Without the errors that diffusers logs and the warnings of peft: here they are one line."""
    with quiet_libraries(), warnings.catch_warnings():
        diffusers_logging.set_verbosity(logging.CRITICAL)
        warnings.simplefilter("ignore")
        yield


def _names(file: Path, setting: str) -> list[str]:
    """Names of its tensors."""
    try:
        with safe_open(file, framework="pt") as opened:
            return list(opened.keys())
    except (SafetensorError, OSError) as error:
        raise UserError(f"{setting}: {file} cannot be read ({error}); get it again") from error


def _check_names(names: list[str], file: Path, setting: str) -> None:
    """Refuse by the names of its tensors what is none, and what the loading would leave out."""
    if any("dora_scale" in name for name in names):
        raise UserError(
            f"{setting}: {file} is a DoRA by kohya's names, whose lengths diffusers leaves out; "
            "save it in diffusers' format"
        )
    for mark, kind in OTHERS.items():
        if any(mark in name for name in names):
            raise UserError(f"{setting}: {file} is {kind} and no LoRA; give a LoRA")
    if any(name.startswith(PEFT) for name in names):
        raise UserError(
            f"{setting}: {file} is as peft's save_pretrained writes it, which load_lora_weights "
            "does not read; load it with peft, and write get_peft_model_state_dict(…) by the "
            "pipeline's save_lora_weights"
        )
    for name in alone(names):
        raise UserError(
            f"{setting}: {file} has a scale, {name}, that is beside no factors of a layer and "
            "would be lost; save the LoRA in diffusers' format or by kohya's names"
        )
    other = next((name for name in names if "lora" not in name.lower()), None)
    if other is not None or not names:
        raise UserError(
            f"{setting}: {file} is no LoRA ({f'it holds {other}' if other else 'it is empty'}); "
            "give the file that load_lora_weights takes"
        )


def _converted(pipeline: Any, given: Any, options: dict[str, Any]) -> list[str]:
    """Names of the tensors in diffusers' form, the scales aside."""
    # SDXL's blocks have other numbers by kohya's names, which its configuration tells.
    config = {"unet_config": pipeline.unet.config} if hasattr(pipeline, "unet") else {}
    found: Any = pipeline.lora_state_dict(given, **options, **config)
    state = found[0] if isinstance(found, tuple) else found
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
    places = {
        f"{part}.{path}.{name}"
        for part, network in pipeline.components.items()
        if isinstance(network, nn.Module)
        for path, layer in _layers(network).items()
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


def _layers(network: nn.Module) -> dict[str, Any]:
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


def read_lora(pipeline: Any, denoiser: str, file: Path, setting: str) -> GivenLora:
    """The updates of a file, as a stock pipeline would make them.

    Args:
        pipeline: is left as it is: a network without weights takes them.
        denoiser: name of the part that may have some; no other part may.

    Raises:
        UserError: as `load_into`; or it is for the text encoders too, or of another kind.
    """
    bare = _without_weights(getattr(pipeline, denoiser))
    taking = copy.copy(pipeline)
    taking.register_modules(**{denoiser: bare})
    if any(name.startswith(("text_encoder", "lora_te")) for name in _names(file, setting)):
        raise UserError(
            f"{setting}: {file} changes the text encoder too, which is not trained here; use one "
            "of the denoiser alone"
        )
    load_into(taking, file, setting)
    layers = _layers(bare)
    if not all(isinstance(layer, LoraLayer) for layer in layers.values()):
        raise UserError(f"{setting}: {file} is no LoRA, but another kind of adapter; give a LoRA")
    config: Any = bare
    rslora = config.peft_config[ADAPTER].use_rslora
    for name, layer in layers.items():
        if layer.lora_B[ADAPTER].bias is not None:
            raise UserError(
                f"{setting}: {file} has a bias beside its update of {name} (lora_bias), which is "
                "not trained here; give a LoRA without, or fuse it first (model_lora)"
            )
    found = {name: _factors(layer) for name, layer in layers.items()}
    for name, factors in found.items():
        if not _is_finite(factors):
            raise UserError(
                f"{setting}: {file} has values of {name} that are not finite; get it again"
            )
    return GivenLora(found, rslora)


def _is_finite(factors: LoraFactors) -> bool:
    magnitude = [] if factors.magnitude is None else [factors.magnitude]
    return all(bool(value.isfinite().all()) for value in (factors.down, factors.up, *magnitude))


def _without_weights(network: Any) -> Any:
    """A network of the same shapes, in float32 on the CPU, all of whose weights are one zero."""
    with torch.device("meta"):
        made = type(network).from_config(network.config)
    for part in made.modules():
        for name, value in part.named_parameters(recurse=False):
            setattr(part, name, nn.Parameter(torch.zeros(()).expand(value.shape)))
    return made


def _factors(layer: Any) -> LoraFactors:
    magnitude = None
    if layer.use_dora[ADAPTER]:
        magnitude = layer.lora_magnitude_vector[ADAPTER].weight.detach().float()
    return LoraFactors(
        down=layer.lora_A[ADAPTER].weight.detach().float(),
        up=layer.lora_B[ADAPTER].weight.detach().float(),
        scale=float(layer.scaling[ADAPTER]),
        magnitude=magnitude,
    )
