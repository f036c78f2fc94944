"""What the card of an exported policy says, from the run that it is of."""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from nablaflow import nano
from nablaflow.config.overrides import plain_config
from nablaflow.config.recipe import Config
from nablaflow.errors import UserError
from nablaflow.hub import is_local
from nablaflow.models import ModelSource
from nablaflow.models.file_mark import pinned
from nablaflow.models.formats import KOHYA_FILE
from nablaflow.models.from_hub import at_revision
from nablaflow.models.load import absent_parts
from nablaflow.models.pipelines import PipelineModel
from nablaflow.report.card import Card, card_text
from nablaflow.report.loading import base_lines, folder_lines, fusing, quantizing
from nablaflow.report.privacy import without_folders_in
from nablaflow.runs.belonging import check_figures, is_of
from nablaflow.runs.pretrained import fused_lora
from nablaflow.storage.manifest import update_of
from nablaflow.storage.run_folder import LORA_FILE, SUMMARY


@dataclass(frozen=True)
class Taken:
    """What of a run is exported.

    Attributes:
        update: after which the policy was taken.
        strength: of what was trained: 1 is the policy.
        average: whether it is the policy's average over the updates.
        calibrated: the strength that ``training.calibrate`` left it at; 1: as trained.
    """

    update: int
    strength: float
    average: bool
    calibrated: float = 1.0


def card_of(
    config: Config,
    model: PipelineModel,
    source: ModelSource,
    taken: Taken,
    form: str,
    dtype: str,
    figures: dict[str, Any] | None,
) -> Card:
    """What the card says.

    Args:
        figures: of the run, if they are of this very policy.
    """
    plain = without_folders_in(plain_config(config))
    base = pinned(plain["model"], config.model_hash)
    hub_id = None if is_local(config.model) else at_revision(config.model)[0]
    kind, lora = type(model.pipeline).__name__, fused_lora(source)
    facts = {
        "base model": base,
        "pipeline": kind,
        **_fused_told(lora),
        **_quantized_told(config, form),
        "reward": _shown(plain["reward"]),
        "method": plain["method"]["name"],
        "beta": f"{config.method.beta:g}" if isinstance(config.method.beta, float) else "none",
        "sampler": f"{config.sampler.name}, {config.sampler.steps} steps",
        "guidance scale": _guidance_told(config),
        "adapter": str(model.adapter.coverage).removeprefix("adapter: "),
        "updates": str(taken.update),
        **_strength_told(taken),
        "weights": dtype,
        **_average_told(config, average=taken.average),
    }
    return Card(
        f"the embedded model {base}" if base in nano.MODELS else base,
        hub_id,
        _content(form, config),
        kind,
        facts,
        figures,
        _loading(form, model, base, lora, dtype, config.model_quantization),
    )


_CONTENT = {
    "diffusers": f"A LoRA in diffusers format, `{LORA_FILE}`; its scale is in its weights.",
    "kohya": f"A LoRA by kohya's names, `{KOHYA_FILE}`, for ComfyUI and A1111.",
    "merged": "A whole pipeline in diffusers format; nothing has to be loaded beside it.",
}


def _content(form: str, config: Config) -> str:
    whole = form == "kohya" and config.adapter.dora
    kept = " A DoRA: it has what is added to each whole weight (`diff`)." if whole else ""
    return _CONTENT[form] + kept


def _guidance_told(config: Config) -> str:
    sampler = config.sampler
    told = [f"{sampler.guidance_scale:g}"]
    told += [f"rescaled by {sampler.guidance_rescale:g}"] if sampler.guidance_rescale else []
    told += [f"clip skip {sampler.clip_skip}"] if sampler.clip_skip is not None else []
    return ", ".join(told)


def _strength_told(taken: Taken) -> dict[str, str]:
    """Nothing of a policy as it was trained."""
    whole = taken.strength * taken.calibrated
    if taken.strength == taken.calibrated == 1:
        return {}
    left = f"; training.calibrate left {taken.calibrated:.3g}" if taken.calibrated != 1 else ""
    return {"strength": f"{whole:.3g} of what was trained, in the weights{left}"}


def _average_told(config: Config, *, average: bool) -> dict[str, str]:
    """Which of the two it is, where a run has both."""
    decay = config.adapter.ema_decay
    if decay is None:
        return {}
    kept = f"its average over the updates, decay {decay:g}"
    return {"policy": kept if average else "that of the last update"}


def _fused_told(lora: tuple[str, float] | None) -> dict[str, str]:
    return {} if lora is None else {"fused into the base model": f"{lora[0]} at {lora[1]:g}"}


def _quantized_told(config: Config, form: str) -> dict[str, str]:
    """What the adapter trained on, and what became of it in a whole pipeline."""
    if config.model_quantization is None:
        return {}
    told = f"{config.model_quantization}, the linear layers of the denoiser's blocks"
    if form == "merged":
        told += "; the weights here are what those 4 bits stand for, with the adapter in them"
    return {"quantization of the base model": told}


def _loading(
    form: str,
    model: PipelineModel,
    base: str,
    lora: tuple[str, float] | None,
    dtype: str,
    quantized: str | None,
) -> str:
    """How what was written is loaded, and what has to be loaded besides."""
    if form == "kohya":
        first = "" if lora is None else f" beside {lora[0]} at strength {lora[1]:g}"
        return (
            f"Put `{KOHYA_FILE}` into the folder of LoRAs (ComfyUI: `models/loras`; A1111: "
            f"`models/Lora`), and load it at strength 1 on the base model{first}."
            + "".join(f" {line.removeprefix('# ')}" for line in quantizing(quantized))
        )
    kind = type(model.pipeline).__name__
    if form == "merged":
        lines = folder_lines(kind, "this/folder", dtype, absent_parts(model.pipeline))
    else:
        lines = [*base_lines(kind, base, absent_parts(model.pipeline)), *fusing(lora)]
        lines += quantizing(quantized)
        lines += ['pipeline.load_lora_weights("this/folder")']
    return "\n".join(["```python", *lines, "```"])


def _shown(spec: Any) -> str:
    return spec if isinstance(spec, str) else json.dumps(spec, sort_keys=True)


def summary_of(run: Path, checkpoint: Path) -> dict[str, Any] | None:
    """The figures of the run, if they are of the policy in this checkpoint of it.

    Raises:
        UserError: they cannot be read, or are of another run's.
    """
    file = run / SUMMARY
    if not file.is_file():
        return None
    try:
        summary = json.loads(file.read_text(encoding="utf-8"))
        own = summary if summary["updates"] == update_of(checkpoint) else None
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise _damaged(file, error) from None
    if own is None:
        return None
    check_figures(run, own)
    return own if is_of(own, checkpoint) else None


def text_of(card: Card, run: Path) -> str:
    try:
        return card_text(card)
    except (KeyError, TypeError, ValueError, AttributeError) as error:
        raise _damaged(run / SUMMARY, error) from None


def _damaged(file: Path, error: Exception) -> UserError:
    return UserError(
        f"{file} is damaged ({type(error).__name__}); remove it to export without its figures"
    )
