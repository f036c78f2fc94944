"""A LoRA of the user's in a file: as diffusers, peft, kohya's scripts or ComfyUI have it.

See `nablaflow.models.lora_loading` for how it is read, and what is refused.
"""

from __future__ import annotations

import copy
import math
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from peft.tuners.lora import LoraLayer
from torch import Tensor

from nablaflow.errors import UserError
from nablaflow.models.lora_loading import ADAPTER, layers_of, load_into, without_weights
from nablaflow.models.lora_names import names_in
from nablaflow.models.lora_places import OF_TEXT, Denoiser
from nablaflow.models.peft_form import is_pefts, settings_beside
from nablaflow.places import at_home

NAMES = ("pytorch_lora_weights.safetensors", "kohya_lora.safetensors")
"""What a folder's LoRA is called by diffusers, and by our own export."""


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
    place = at_home(path)
    if place.is_dir():
        return _in_folder(place, setting)
    if not place.is_file():
        raise UserError(f"{setting}: there is no file {path}; check the path")
    if place.suffix != ".safetensors":
        raise UserError(f"{setting}: {path} is no .safetensors file; save the LoRA as one")
    return place


def files_of(file: Path, setting: str) -> list[Path]:
    """All that a LoRA is read from: its file, and where that is peft's the one with its scales.

    Raises:
        UserError: it cannot be read.
    """
    beside = settings_beside(file)
    return [file, beside] if beside.is_file() and is_pefts(names_in(file, setting)) else [file]


def _in_folder(folder: Path, setting: str) -> Path:
    there = sorted(folder.glob("*.safetensors"))
    named = [folder / name for name in NAMES if (folder / name).is_file()]
    if len(named or there) == 1:
        return (named or there)[0]
    if there:
        raise UserError(f"{setting}: {folder} holds {len(there)} .safetensors files; name one")
    inside = f"; did you mean {folder / 'lora'}?" if (folder / "lora").is_dir() else ""
    raise UserError(f"{setting}: {folder} holds no .safetensors file{inside or '; name a LoRA'}")


def read_lora(pipeline: Any, denoiser: Denoiser, file: Path, setting: str) -> GivenLora:
    """The updates of a file, as a stock pipeline would make them.

    Args:
        pipeline: is left as it is: a network without weights takes them.
        denoiser: the part that may have some; no other part may.

    Raises:
        UserError: as `load_into`; or it is for the text encoders too, or of another kind.
    """
    bare = without_weights(getattr(pipeline, denoiser.name))
    taking = copy.copy(pipeline)
    taking.register_modules(**{denoiser.name: bare})
    if any(name.startswith(OF_TEXT) for name in names_in(file, setting)):
        raise UserError(
            f"{setting}: {file} changes the text encoder too, which is not trained here; use one "
            "of the denoiser alone"
        )
    load_into(taking, denoiser, file, setting)
    layers = layers_of(bare)
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
    values = (factors.down, factors.up, *magnitude)
    return math.isfinite(factors.scale) and all(bool(value.isfinite().all()) for value in values)


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
