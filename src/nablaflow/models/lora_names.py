"""What the names of a file's tensors say: a LoRA that is read here, or what else it is."""

from __future__ import annotations

import json
import re
from pathlib import Path

from diffusers.loaders.lora_base import LORA_ADAPTER_METADATA_KEY
from safetensors import SafetensorError, safe_open

from nablaflow.errors import UserError
from nablaflow.models.kohya_scales import ALPHA, alone
from nablaflow.models.peft_form import check_kind, check_settings, is_pefts

OTHERS = {"hada_": "a LoHa", "lokr_": "a LoKr", "oft_": "an OFT"}
"""Other adapters than LoRAs, by what the names of their tensors have in them."""
ENDS = {
    (".diff", ".diff_b"): "an update of whole weights (.diff)",
    (".w_norm", ".b_norm"): "an update of norms (w_norm)",
    (".on_input", ".ia3_l"): "an IA3",
    (".a1.weight", ".b1.weight"): "a GLoRA",
}
"""And by what they end with, in part or whole."""
_BEFORE_LAYERS = re.compile(r"lora_(unet|te\d?|transformer)_")
"""Which says of no tensor what it is."""

FLOATING = ("F", "BF")
"""How the kinds of floating-point numbers begin in a file's header."""


def names_in(file: Path, setting: str) -> list[str]:
    """Names of its tensors."""
    try:
        with safe_open(file, framework="pt") as opened:
            return list(opened.keys())
    except (SafetensorError, OSError) as error:
        raise UserError(f"{setting}: {file} cannot be read ({error}); get it again") from error


def says_its_scales(file: Path) -> bool:
    """Whether a file has peft's configuration in its header, as diffusers writes it."""
    with safe_open(file, framework="pt") as opened:
        return LORA_ADAPTER_METADATA_KEY in (opened.metadata() or {})


def _check_header(file: Path, setting: str) -> None:
    """Refuse by peft's configuration in a file's header, and one that is none."""
    with safe_open(file, framework="pt") as opened:
        written = (opened.metadata() or {}).get(LORA_ADAPTER_METADATA_KEY, "{}")
    try:
        found = json.loads(written)
    except (ValueError, RecursionError):
        found = None
    if not isinstance(found, dict):
        raise UserError(
            f"{setting}: {file} has no settings by name in its header's {LORA_ADAPTER_METADATA_KEY}"
            ", where its scale stands; get it again, or write it again by save_lora_weights"
        )
    for name, value in found.items():
        check_kind({name.rpartition(".")[2]: value}, file, setting)


def check_names(file: Path, setting: str) -> None:
    """Refuse by the names of its tensors what is none, and what the loading would leave out."""
    names = names_in(file, setting)
    if any("dora_scale" in name for name in names):
        raise UserError(
            f"{setting}: {file} is a DoRA by kohya's names, whose lengths diffusers leaves out; "
            "save it in diffusers' format"
        )
    _check_plain(names, file, setting)
    _check_values(file, setting)
    if is_pefts(names):
        check_settings(file, setting)
    for name in alone(names):
        raise UserError(
            f"{setting}: {file} has a scale, {name}, that is beside no factors of a layer and "
            "would be lost; save the LoRA in diffusers' format or by kohya's names"
        )
    alpha = next((name for name in names if name.endswith(ALPHA)), None)
    if alpha is not None and says_its_scales(file):
        raise UserError(
            f"{setting}: {file} has a scale in {alpha} and in its header too, which may differ; "
            "remove one of them"
        )
    _check_header(file, setting)


def _check_plain(names: list[str], file: Path, setting: str) -> None:
    """Refuse other adapters, and what is none."""
    marks = [kind for mark, kind in OTHERS.items() if any(mark in name for name in names)]
    ends = [kind for end, kind in ENDS.items() if any(name.endswith(end) for name in names)]
    for kind in (*marks, *ends):
        raise UserError(f"{setting}: {file} is {kind} and no LoRA, or not alone; give a LoRA")
    plain = [name for name in names if not name.endswith(ALPHA)]
    said = {name: _BEFORE_LAYERS.sub("", name).lower() for name in plain}
    other = next((name for name in plain if "lora" not in said[name]), None)
    if other is not None or not names:
        raise UserError(
            f"{setting}: {file} is no LoRA ({f'it holds {other}' if other else 'it is empty'}); "
            "give the file that load_lora_weights takes"
        )


def _check_values(file: Path, setting: str) -> None:
    """Refuse factors that are no floating-point numbers, or none, and scales that make nothing."""
    with safe_open(file, framework="pt") as opened:
        for name in opened.keys():  # noqa: SIM118, which is no mapping
            given = opened.get_slice(name)
            kind, shape = given.get_dtype(), given.get_shape()
            if 0 in shape:
                raise UserError(
                    f"{setting}: {file} has no numbers in {name} (it is {shape}), as of a rank "
                    "of 0 or a save that was not gathered; save the LoRA again"
                )
            if name.endswith(ALPHA):
                if not opened.get_tensor(name).any():
                    raise nothing(setting, file, f"{name} is 0")
            elif not kind.startswith(FLOATING):
                raise UserError(
                    f"{setting}: {file} is quantized ({name} is of {kind}), which is not read "
                    "here; use the LoRA in float32, float16 or bfloat16"
                )


def nothing(setting: str, file: Path, why: str) -> UserError:
    """That the update of a layer is multiplied by zero, which is no LoRA to begin at or to fuse."""
    return UserError(
        f"{setting}: {file} is scaled to nothing ({why}), though some programs read that as the "
        "rank; write the alpha that it was trained with into it, or leave the LoRA out"
    )
