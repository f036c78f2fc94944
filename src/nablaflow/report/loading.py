"""The report's section on how to load what a run has saved, in diffusers alone."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from html import escape
from pathlib import Path
from typing import Any


@dataclass(frozen=True)
class Saved:
    """What a run has saved.

    Attributes:
        folder: of a LoRA in diffusers format, or of a whole pipeline.
        as_lora: which of the two.
        pipeline: name of the pipeline's class in diffusers.
        model: folder or hub id of the reference, which a LoRA is loaded onto.
        fused: a LoRA that belongs to the reference, and its scale.
        call: arguments by which the pipeline samples as the policy was trained to.
    """

    folder: str | Path
    as_lora: bool
    pipeline: str
    model: str
    call: Mapping[str, Any]
    fused: tuple[str, float] | None = None

    def code(self) -> str:
        """Lines that load it and make an image."""
        given = ", ".join(f"{name}={value!r}" for name, value in self.call.items())
        if self.as_lora:
            loaded = [
                f"pipeline = {self.pipeline}.from_pretrained({self.model!r})",
                *fusing(self.fused),
                f"pipeline.load_lora_weights({str(self.folder)!r})",
            ]
        else:
            loaded = [f"pipeline = {self.pipeline}.from_pretrained({str(self.folder)!r})"]
        first, last = (
            f"from diffusers import {self.pipeline}",
            f"image = pipeline({given}).images[0]",
        )
        return "\n".join([first, *loaded, last])


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


def loading_section(saved: Saved | None) -> str:
    """HTML; nothing where nothing was saved."""
    if saved is None:
        return ""
    what = "LoRA is" if saved.as_lora else f"aligned model, a whole {saved.pipeline}, is"
    return (
        "<h2>Use it</h2>"
        f"<p>The {escape(what)} in <code>{escape(str(saved.folder))}</code>, in diffusers format. "
        "It needs nothing of nablaflow:</p>"
        f"<pre><code>{escape(saved.code())}</code></pre>"
    )
