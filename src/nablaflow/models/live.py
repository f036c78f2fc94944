"""A pipeline that the user holds: it is copied where it would change, and never changed itself.

What is frozen costs no memory twice: a copy has modules of its own around the same weights, as long
as precision, device and memory layout are the same. So nothing has to be put back afterwards, not
even after an error in the middle.
"""

from __future__ import annotations

import copy
from collections.abc import Collection
from dataclasses import dataclass, field
from functools import cached_property
from inspect import signature
from pathlib import Path
from typing import Any

import diffusers
import torch
from diffusers import DiffusionPipeline
from peft.tuners.tuners_utils import BaseTunerLayer
from torch import nn

from nablaflow.errors import UserError
from nablaflow.models.folder import read_index
from nablaflow.models.from_hub import is_hub_id
from nablaflow.models.lora_inside import how_to_unload
from nablaflow.models.schedule_mark import schedule_mark
from nablaflow.places import at_home
from nablaflow.quiet import quiet_libraries
from nablaflow.storage.run_folder import INDEX

AnyPipeline = DiffusionPipeline
"""What a user may hand over; `FAMILIES` says which classes are served."""

FREE_U = ("s1", "s2", "b1", "b2")
"""Attributes that `enable_freeu` gives a UNet's blocks; without FreeU they are None or absent."""

DECODER = "vae"
"""The autoencoder's name in a pipeline."""
LIVE = "python:"
"""Begins the name that a saved configuration has for a pipeline without a folder or a hub id."""


@dataclass(frozen=True)
class LivePipeline:
    """A pipeline of the user's, with the scheduler that it has when it is handed over.

    Whoever makes images with it afterwards often gives it another.

    Attributes:
        unused: parts that a model to align does without, as when it is loaded from a folder.
        scheduler: a copy of the pipeline's.

    Raises:
        UserError: it carries a LoRA, or is spread, fused or quantized so that no copy of it can
            train.
    """

    pipeline: Any
    unused: tuple[str, ...] = ()
    scheduler: Any = field(init=False, repr=False, compare=False)

    def __post_init__(self) -> None:
        object.__setattr__(self, "scheduler", copy.deepcopy(self.pipeline.scheduler))
        for name, part in self._networks():
            _check_no_lora(type(self.pipeline), name, part)
            _check_plain(name, part)

    @cached_property
    def name(self) -> str:
        """Folder or hub id that it was loaded from; else one that no pipeline can be loaded by.

        Nor by a folder whose own scheduler has other noise levels: it was given another since.
        """
        origin = str(self.pipeline.name_or_path or "")
        folder = at_home(origin)
        if origin and (folder / INDEX).is_file() and self._has_levels_of(folder):
            return str(folder.absolute())
        return origin if is_hub_id(origin) else LIVE + type(self.pipeline).__name__

    @quiet_libraries()
    def _has_levels_of(self, folder: Path) -> bool:
        try:
            _, kind = read_index(folder)["scheduler"]
            own = getattr(diffusers, kind).from_pretrained(folder, subfolder="scheduler")
        except (UserError, OSError, ValueError, TypeError, LookupError, AttributeError):
            return False  # nor could the pipeline be loaded by it
        # In a pipeline, whose making corrects what was once written otherwise.
        made = type(self.pipeline)(**{**self.pipeline.components, "scheduler": own})
        return schedule_mark(made.scheduler) == schedule_mark(self.scheduler)

    def borrow(self, dtype: torch.dtype, of_decoder: torch.dtype | None = None) -> Any:
        """A pipeline of its own around the same weights; for what leaves the weights alone.

        Args:
            of_decoder: precision of the autoencoder; None: ``dtype``.
        """
        return self._made_of(with_the_same_weights, dtype, of_decoder or dtype)

    def copy(self, dtype: torch.dtype | None = None) -> Any:
        """A pipeline that shares nothing with the user's; in its precision without ``dtype``."""
        return self._made_of(copy.deepcopy, dtype, dtype)

    @quiet_libraries()
    def _made_of(self, make: Any, dtype: torch.dtype | None, of_decoder: torch.dtype | None) -> Any:
        # To eval, as what is read from a folder: dropout would be other noise at each image.
        parts = {
            name: make(part).to(of_decoder if name == DECODER else dtype).eval()
            for name, part in self._networks()
        }
        unused = {name: None for name in self.unused if name in self.pipeline.components}
        made = copy.copy(self.pipeline)
        # Its state is a number of steps; tokenizers are set anew at each call.
        scheduler = copy.deepcopy(self.scheduler)
        made.register_modules(**{**parts, **unused, "scheduler": scheduler})
        return made

    def _networks(self) -> list[tuple[str, nn.Module]]:
        """The parts that are networks, as they were before ``torch.compile``."""
        return [
            (name, getattr(part, "_orig_mod", part))
            for name, part in self.pipeline.components.items()
            if isinstance(part, nn.Module) and name not in self.unused
        ]


def check_has_parts(pipeline: Any, without: Collection[str]) -> None:
    """Refuse a pipeline whose parts were set to None, to save memory for one.

    Args:
        without: parts that it may lack.

    Raises:
        UserError: one that it is made of is not there.
    """
    kind = type(pipeline)
    for name, given in signature(kind).parameters.items():
        needed = given.default is given.empty and name not in without
        if needed and getattr(pipeline, name, None) is None:
            raise UserError(
                f"model: the pipeline has no {name}, which a {kind.__name__} is made of; load it "
                "whole"
            )


def _check_no_lora(kind: type[Any], name: str, network: nn.Module) -> None:
    if any(isinstance(part, BaseTunerLayer) for part in network.modules()):
        call = how_to_unload(kind, name, network)
        remedy = call or f"give the pipeline the {name} that it was trained on"
        raise UserError(f"model: the pipeline's {name} carries a LoRA; {remedy}")


def _check_plain(name: str, network: nn.Module) -> None:
    if not hasattr(network, "config"):
        kind = type(network).__name__
        raise UserError(
            f"model: the pipeline's {name} is a {kind}, which no pipeline has by itself; put the "
            "network that it wraps (.module) back in its place"
        )
    if getattr(network, "is_quantized", False):
        raise UserError(
            f"model: the pipeline's {name} is quantized; load it without quantization_config "
            "(model_quantization=nf4 has a copy of its denoiser in 4 bits)"
        )
    if any(getattr(part, "fused_projections", False) for part in network.modules()):
        # A LoRA on a projection would be beside the one that is computed with.
        raise UserError(
            f"model: the pipeline's {name} has its projections fused; call its "
            "unfuse_qkv_projections()"
        )
    if any(value.is_inference() for value in network.parameters()):
        raise UserError(
            f"model: the pipeline's {name} was made inside torch.inference_mode(), so that nothing "
            "of it can be trained; load the pipeline outside"
        )
    _check_own_forward(name, network)
    if any(value.is_meta for value in network.parameters()):
        raise UserError(
            f"model: the pipeline's {name} is on the device meta, without its weights; load the "
            "pipeline again"
        )
    if any(getattr(part, key, None) is not None for part in network.modules() for key in FREE_U):
        raise UserError(
            f"model: the pipeline's {name} has FreeU on, which no saved policy can have; call "
            "disable_freeu()"
        )


def _check_own_forward(name: str, network: nn.Module) -> None:
    """Offloading, device_map and an older way to compile put their own in its place.

    It would go on calling the user's network from inside the copy.
    """
    replaced = [part for part in network.modules() if "forward" in vars(part)]
    if any(hasattr(part, "_diffusers_hook") for part in replaced):
        raise UserError(
            f"model: the forward of the pipeline's {name} was replaced by a hook of diffusers "
            "(group offloading, layerwise casting or a cache); load the pipeline without it"
        )
    if replaced:
        raise UserError(
            f"model: the forward of the pipeline's {name} was replaced (by offloading or "
            "device_map); call remove_all_hooks(), or load it without"
        )


def with_the_same_weights(network: nn.Module) -> Any:
    """A network of its own whose parameters and buffers lie in the same memory.

    Moving or converting it leaves the other where and as it is; writing into its weights does not.
    """
    shared: dict[int, Any] = {
        id(value): nn.Parameter(value.detach(), requires_grad=value.requires_grad)
        for value in network.parameters()
    }
    shared |= {id(value): value.detach() for value in network.buffers()}
    return copy.deepcopy(network, shared)
