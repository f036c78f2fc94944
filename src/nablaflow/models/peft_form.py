"""A LoRA as peft's ``save_pretrained`` writes it: a file, and beside it one with its scales.

The tensors go by the paths of the layers in the network that peft was given, without a word of
their scale. That is alpha over rank, or over its root (rsLoRA), by ``adapter_config.json``, in
which some layers may have an alpha of their own (``alpha_pattern``).
"""

from __future__ import annotations

import dataclasses
import json
import math
import re
from collections.abc import Collection, Mapping
from numbers import Real
from pathlib import Path
from typing import Any

import torch
from peft import LoraConfig
from peft.utils.other import get_pattern_key
from safetensors import safe_open
from torch import Tensor

from nablaflow.errors import UserError
from nablaflow.models.kohya_scales import ALPHA

PREFIX = "base_model.model."
"""Before the path of a layer."""
SETTINGS = "adapter_config.json"
DOWN = ".lora_A.weight"
MAGNITUDE = ".lora_magnitude_vector"
"""Of a DoRA: with ``.weight`` behind it, or not."""
TAKES_FROM_BASE = ("pissa", "corda", "olora", "loftq", "lora_ga")
"""How peft's ``init_lora_weights`` begins where a LoRA starts at a part of the base's weights."""
VARIANTS = (
    "use_qalora",
    *(f.name for f in dataclasses.fields(LoraConfig) if f.metadata.get("is_lora_variant")),
)
"""Settings of peft by which the update of a layer is not ``scale * up @ down``."""
_UNREADABLE = (OSError, ValueError, RecursionError, TypeError, KeyError, AttributeError, re.error)


def is_pefts(names: Collection[str]) -> bool:
    """By the names of a file's tensors."""
    return any(name.startswith(PREFIX) for name in names)


def settings_beside(file: Path) -> Path:
    """Where such a file's scales stand."""
    return file.with_name(SETTINGS)


def check_settings(file: Path, setting: str) -> None:
    """Refuse such a file whose scales are not beside it, or are of another kind of adapter.

    Raises:
        UserError: one line, with the remedy.
    """
    beside = settings_beside(file)
    if not beside.is_file():
        raise UserError(
            f"{setting}: {file} is as peft's save_pretrained writes it, and the {SETTINGS} that "
            "has its scale is not beside it; put it there"
        )
    try:
        found = _settings(file)
        for path, rank in _ranks(file).items():
            _scale(found, path, rank)
    except _UNREADABLE as error:
        raise UserError(
            f"{setting}: {beside} is no configuration of a LoRA ({error!r}); get it again"
        ) from error
    if found.get("peft_type") != "LORA":
        raise UserError(
            f"{setting}: {file} is a {found.get('peft_type')} of peft, which is not read here; "
            "give a LoRA, or merge it into the model"
        )
    check_kind(found, file, setting)
    _check_lengths(bool(found.get("use_dora")), file, setting)


def _check_lengths(dora: bool, file: Path, setting: str) -> None:
    """Refuse a DoRA with a layer whose lengths are not in the file, and lengths of none."""
    with safe_open(file, "pt") as opened:
        names = opened.keys()
        ranked = {name.removesuffix(DOWN) for name in names if name.endswith(DOWN)}
        long = {name.partition(MAGNITUDE)[0] for name in names if MAGNITUDE in name}
    if long != (ranked if dora else set()):
        raise UserError(
            f"{setting}: use_dora is {dora} in {settings_beside(file)}, and {file} has the lengths "
            f"(lora_magnitude_vector) of {len(long)} of {len(ranked)} layers; get both again"
        )


def check_kind(found: Mapping[str, Any], file: Path, setting: str) -> None:
    """Refuse a LoRA that is another with peft than its two factors on the base model.

    Args:
        found: peft's settings.

    Raises:
        UserError: so it is.
    """
    begun = found.get("init_lora_weights")
    if isinstance(begun, str) and begun.lower().startswith(TAKES_FROM_BASE):
        raise UserError(
            f"{setting}: {file} began at {begun}, which takes a part out of the base model's "
            "weights, and the file has it in its factors alone; save it by peft's "
            "save_pretrained(…, path_initial_model_for_weight_conversion=…), or merge it into "
            "the model"
        )
    other = next((name for name in VARIANTS if name != "use_dora" and found.get(name)), None)
    if other is not None:
        raise UserError(
            f"{setting}: {file} is a LoRA with {other}, whose update is not read here; merge it "
            "into the model"
        )


def with_scales(state: Mapping[str, Tensor], file: Path) -> dict[str, Tensor]:
    """The tensors by the layers' paths alone, and each layer's scale as kohya's files have it."""
    settings = _settings(file)
    found = {name.removeprefix(PREFIX): value for name, value in state.items()}
    alphas = {
        f"{path}{ALPHA}": torch.tensor(rank * _scale(settings, path, rank))
        for path, rank in _ranks(file).items()
    }
    return found | alphas


def _settings(file: Path) -> dict[str, Any]:
    found = json.loads(settings_beside(file).read_text(encoding="utf-8"))
    if not isinstance(found, dict):
        raise TypeError("no object")
    return found


def _ranks(file: Path) -> dict[str, int]:
    """By the layers' paths, from the file's header."""
    with safe_open(file, "pt") as opened:
        return {
            name.removeprefix(PREFIX).removesuffix(DOWN): opened.get_slice(name).get_shape()[0]
            for name in opened.keys()  # noqa: SIM118, which is no mapping
            if name.endswith(DOWN)
        }


def _scale(settings: Mapping[str, Any], path: str, rank: int) -> float:
    alpha = _of_layer(settings, "alpha_pattern", path, settings["lora_alpha"])
    if not isinstance(alpha, Real) or not math.isfinite(alpha) or not alpha:
        raise ValueError(f"lora_alpha is {alpha!r}")
    told = _of_layer(settings, "rank_pattern", path, settings["r"])
    if told != rank:
        raise ValueError(f"r is {told!r} and the rank of {path} {rank}")
    return float(alpha) / (math.sqrt(rank) if settings.get("use_rslora") else rank)


def _of_layer(settings: Mapping[str, Any], pattern: str, path: str, other: Any) -> Any:
    own = settings.get(pattern) or {}
    return own.get(get_pattern_key(list(own), path), other)
