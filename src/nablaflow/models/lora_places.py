"""A LoRA whose tensors go by a layer's name in a form that diffusers does not read, or not whole.

Such as ComfyUI's ``diffusion_model.``, the published checkpoint's names where diffusers has others,
scales beside diffusers' own names, 1x1 convolutions for linear layers, and kernels laid flat. All
that is done here is exact: a layer is found by its whole name, and the update of rows side by side
is divided.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from torch import Tensor, nn

from nablaflow.models.kohya import Layout, placed
from nablaflow.models.kohya_scales import FACTORS
from nablaflow.models.peft_form import MAGNITUDE
from nablaflow.models.unet_names import published_names

DOTTED, FLAT = ("diffusion_model.", ""), ("lora_unet_", "lora_transformer_")
"""Before a layer's name, and before one whose dots are underscores, besides diffusers' own."""
TEXT = {
    **{"lora_te_": "text_encoder", "lora_te1_": "text_encoder"},
    **{"lora_te2_": "text_encoder_2", "lora_te3_": "text_encoder_3"},
}
"""Before the name of a text encoder's layer whose dots are underscores."""
OF_TEXT = ("text_encoder", "lora_te")
"""How names of what is for a text encoder begin."""
LENGTHS = (f"{MAGNITUDE}.weight", MAGNITUDE)
"""What the name of a DoRA's lengths ends with."""
POINT = (1, 1)
"""Of a convolution that is a linear layer at each pixel."""


@dataclass(frozen=True)
class Denoiser:
    """Which part of a pipeline is aligned.

    Attributes:
        name: of the part.
        layout: of the published checkpoint, where a transformer's differs from diffusers'.
    """

    name: str
    layout: Layout | None


def by_place(
    state: Mapping[str, Tensor], network: nn.Module, denoiser: Denoiser
) -> dict[str, Tensor] | None:
    """The denoiser's tensors as diffusers reads them; None where not every one has a place.

    Args:
        state: of a file, without the tensors of text encoders and without scales.
    """
    places = _places(network, denoiser)
    found: dict[str, Tensor] = {}
    left = set(state)
    for name in state:
        for down, up in FACTORS:
            path = name.removesuffix(up)
            if not name.endswith(up) or path not in places or path + down not in state:
                continue
            ends = (down, up, *(end for end in LENGTHS if path + end in state))
            left -= {path + end for end in ends}
            layers = {part: network.get_submodule(part) for part in places[path]}
            divided = _divided(layers, *(state[path + end] for end in ends))
            if divided is None:
                return None
            for part, tensors in divided.items():
                names = [f"{denoiser.name}.{part}{end}" for end in (*FACTORS[1], *ends[2:])]
                if names[0] in found:
                    return None  # twice, by two names
                found |= dict(zip(names, tensors, strict=True))
    return None if left else found


def text_by_place(
    state: Mapping[str, Tensor], encoders: Mapping[str, nn.Module]
) -> dict[str, Tensor] | None:
    """The text encoders' tensors by kohya's names as diffusers reads them; None as `by_place`.

    Args:
        encoders: those that the pipeline loads a LoRA into, by its parts.
    """
    places = {
        f"{first}{inner}{path.replace('.', '_')}": f"{part}.{path}"
        for first, part in TEXT.items()
        for path, layer in (encoders[part].named_modules() if part in encoders else ())
        if isinstance(layer, nn.Linear)
        for inner in ("", "text_model_")  # which transformers 5 has no part for
    }
    found: dict[str, Tensor] = {}
    for name, value in state.items():
        for ends in FACTORS:
            for end, own in zip(ends, FACTORS[1], strict=True):
                path = places.get(name.removesuffix(end))
                if name.endswith(end) and path is not None:
                    found[f"{path}{own}"] = value.flatten(1)
    return found if len(found) == len(state) else None


def _places(network: nn.Module, denoiser: Denoiser) -> dict[str, tuple[str, ...]]:
    """What a layer may be called, to the paths of the layers that it is, in the order of rows."""
    kinds = (nn.Linear, nn.Conv2d)
    own = {path: (path,) for path, layer in network.named_modules() if isinstance(layer, kinds)}
    names = {theirs: (path,) for theirs, path in published_names(network).items() if path in own}
    if denoiser.layout is not None:
        found = [place for path in own if (place := placed(path, denoiser.layout)) is not None]
        names |= {target: parts for target, parts in found if own.keys() >= set(parts)}
    names |= own
    dotted = {f"{first}{name}": at for first in DOTTED for name, at in names.items()}
    flat = {f"{first}{name.replace('.', '_')}": at for first in FLAT for name, at in names.items()}
    return dotted | flat | {f"{denoiser.name}.{name}": at for name, at in names.items()}


def _divided(
    layers: Mapping[str, Any], down: Tensor, up: Tensor, *lengths: Tensor
) -> dict[str, tuple[Tensor, ...]] | None:
    """The tensors of each of the layers whose rows are side by side in the file.

    Args:
        lengths: of a DoRA, those of the weights' rows.
    """
    rows = [len(layer.weight) for layer in layers.values()]
    if len(up) != sum(rows) or any(given.numel() != sum(rows) for given in lengths):
        return None
    ups = up.split(rows)
    divided = [given.flatten().split(rows) for given in lengths]
    return {
        name: (
            _as_of(layer, down),
            _as_of(layer, ups[i], up=True),
            *(_lengths_of(layer, parts[i]) for parts in divided),
        )
        for i, (name, layer) in enumerate(layers.items())
    }


def _as_of(layer: Any, factor: Tensor, *, up: bool = False) -> Tensor:
    """A factor in the shape that the layer's kind has; what does not fit it stays as it is."""
    if isinstance(layer, nn.Linear):
        is_point = factor.ndim == 4 and tuple(factor.shape[2:]) == POINT
        return factor.flatten(1) if is_point else factor
    if factor.ndim != 2:
        return factor
    kernel = (factor.shape[1], *POINT) if up else tuple(layer.weight.shape[1:])
    return factor.unflatten(1, kernel) if factor.shape[1] == math.prod(kernel) else factor


def _lengths_of(layer: Any, lengths: Tensor) -> Tensor:
    """Lengths of a weight's rows in the shape that peft has for the layer's kind."""
    return lengths if isinstance(layer, nn.Linear) else lengths.view(1, -1, *POINT)
