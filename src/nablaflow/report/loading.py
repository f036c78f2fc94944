"""The report's section on how to load what a run has saved, in diffusers."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from html import escape
from pathlib import Path
from typing import Any

from nablaflow import nano
from nablaflow.models.from_hub import at_revision, is_hub_id
from nablaflow.models.live import LIVE
from nablaflow.models.random_weights import RANDOM, SMALL

FOLDER_LEFT_OUT = "…"


@dataclass(frozen=True)
class Saved:
    """What a run has saved.

    Attributes:
        folder: of a LoRA in diffusers format, or of a whole pipeline.
        as_lora: which of the two.
        pipeline: name of the pipeline's class in diffusers.
        model: of the configuration, the reference, which a LoRA is loaded onto; where it is an
            absolute path, its last part after `FOLDER_LEFT_OUT`.
        fused: a LoRA that belongs to the reference, and its scale.
        quantized: how the reference's denoiser was, such as nf4; None: it was not.
        call: arguments by which the pipeline samples as the policy was trained to.
        scheduler: that it takes for it, of diffusers, and settings in place of the folder's own;
            None where its own will do.
        absent: parts that the model does without, see `folder_lines`.
    """

    folder: str | Path
    as_lora: bool
    pipeline: str
    model: str
    call: Mapping[str, Any]
    fused: tuple[str, float] | None = None
    quantized: str | None = None
    scheduler: tuple[str, Mapping[str, Any]] | None = None
    absent: Sequence[str] = ()

    def code(self) -> str:
        """Lines that load it and make an image."""
        given = ", ".join(f"{name}={value!r}" for name, value in self.call.items())
        if self.as_lora:
            loaded = [
                *base_lines(self.pipeline, self.model, self.absent),
                *fusing(self.fused),
                *quantizing(self.quantized),
                f"pipeline.load_lora_weights({str(self.folder)!r})",
            ]
        else:
            loaded = folder_lines(self.pipeline, str(self.folder), absent=self.absent)
        lines = [*loaded, *_scheduling(self.scheduler), f"image = pipeline({given}).images[0]"]
        return "\n".join(lines)


def base_lines(pipeline: str, model: str, absent: Sequence[str] = ()) -> list[str]:
    """Lines that load a configuration's ``model`` in diffusers, as far as they can be known.

    Args:
        pipeline: its class.
        absent: parts that it does without, see `folder_lines`.
    """
    if model.startswith(LIVE):
        return [f"pipeline = ...  # the {pipeline} that the run was given"]
    if model.startswith(RANDOM):
        name = model.removeprefix(RANDOM)
        small = ", small=True" if name.endswith(SMALL) else ""
        made = f"nf.models.random({name.removesuffix(SMALL)!r}{small})"
        return ["import nablaflow as nf", f"pipeline = {made}"]
    first = f"from diffusers import {pipeline}"
    if model in nano.MODELS:
        place = f"nf.nano.path({model!r})"
        return ["import nablaflow as nf", first, f"pipeline = {pipeline}.from_pretrained({place})"]
    return folder_lines(pipeline, model, absent=absent)


def folder_lines(
    pipeline: str, model: str, dtype: str = "float32", absent: Sequence[str] = ()
) -> list[str]:
    """Lines that load a pipeline's folder or file, every part of it in the same dtype.

    Said, since what is left unsaid is float32 to diffusers and to transformers what is in the file:
    of a folder in half precision the text encoder would then not fit the denoiser.

    Args:
        pipeline: its class.
        model: a folder, a hub id or one file.
        dtype: by torch's name.
        absent: parts that it does without: diffusers refuses a folder that lacks one, such as
            Stable Diffusion 3's T5, where it is not told so.
    """
    load = "from_single_file" if model.endswith(".safetensors") else "from_pretrained"
    on_hub = is_hub_id(model) and not model.startswith(FOLDER_LEFT_OUT)
    place, revision = at_revision(model) if on_hub else (model, None)
    given = repr(place) + (f", revision={revision!r}" if revision else "")
    without = "".join(f", {name}=None" for name in absent)
    return [
        "import torch",
        f"from diffusers import {pipeline}",
        f"pipeline = {pipeline}.{load}({given}, torch_dtype=torch.{dtype}{without})",
    ]


def _scheduling(scheduler: tuple[str, Mapping[str, Any]] | None) -> list[str]:
    if scheduler is None:
        return []
    name, told = scheduler
    asked = "".join(f", {key}={value!r}" for key, value in told.items())
    made = f"{name}.from_config(pipeline.scheduler.config{asked})"
    return [f"from diffusers import {name}", f"pipeline.scheduler = {made}  # as it was trained"]


def fusing(lora: tuple[str, float] | None) -> list[str]:
    """Lines that fuse a LoRA into the pipeline, so that another is loaded on top of it."""
    if lora is None:
        return []
    file, scale = lora
    return [
        f"pipeline.load_lora_weights({file!r})  # belongs to the reference",
        f"pipeline.fuse_lora(lora_scale={scale!r})",
        "pipeline.unload_lora_weights()",
    ]


def quantizing(quantized: str | None) -> list[str]:
    """A line on what the loaded base is not, where the reference was in 4 bits."""
    if quantized is None:
        return []
    part = f"# It trained on this model's denoiser in {quantized}: on one that is not quantized"
    return [f"{part}, images are near the run's own."]


def loading_section(saved: Saved | None) -> str:
    """HTML; nothing where nothing was saved."""
    if saved is None:
        return ""
    what = "LoRA is" if saved.as_lora else f"aligned model, a whole {saved.pipeline}, is"
    code = saved.code()
    needs = "of nablaflow they need the reference" if "nf." in code else "they need no nablaflow"
    left_out = (
        f'<p class="note">{FOLDER_LEFT_OUT} is the folder that it was in; a report names none.</p>'
        if FOLDER_LEFT_OUT in code
        else ""
    )
    return (
        "<h2>Use it</h2>"
        f"<p>The {escape(what)} in <code>{escape(str(saved.folder))}</code> beside this page, in "
        f"diffusers format. These lines make an image by it, where this page is; {needs}:</p>"
        f"<pre><code>{escape(code)}</code></pre>{left_out}"
    )
