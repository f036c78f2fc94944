"""Settings of a model to align: its sampler, its adapter, the flow-score network beside it."""

from __future__ import annotations

from typing import Literal

from pydantic import BaseModel, ConfigDict, Field


class Settings(BaseModel):
    """Base of every group: unknown keys are errors, no silent conversion, values do not change."""

    model_config = ConfigDict(extra="forbid", frozen=True, strict=True, allow_inf_nan=False)


class SamplerSettings(Settings):
    """How images are sampled, by the reference and the policy alike."""

    name: Literal["ddim", "ddpm", "sde-dpmsolver++"] = Field(
        default="ddim", description="kind of reverse kernel"
    )
    steps: int = Field(default=20, ge=2, description="K, transitions of a trajectory")
    eta: float = Field(default=1.0, gt=0, le=1, description="DDIM's share of DDPM's noise")
    guidance_scale: float = Field(
        default=1.0,
        ge=1,
        description="classifier-free guidance in kernel, x0_hat and reference; 1: none",
    )
    negative_prompt: str = Field(default="", description="the other end of the guidance")
    sigma_floor: float = Field(
        default=0.01, gt=0, description="least standard deviation of the last reverse kernel"
    )
    height: int | None = Field(
        default=None, ge=1, description="of an image, pixels; null: as its UNet's sample_size says"
    )
    width: int | None = Field(default=None, ge=1, description="of an image, as height")
    prompt_chunks: int | None = Field(
        default=None,
        ge=1,
        description="pieces that every prompt is embedded in, each as long as the text encoder "
        "reads; null: one; what is longer is cut, and said",
    )


class AdapterSettings(Settings):
    """What trains: a LoRA, or the whole network."""

    kind: Literal["lora", "full"] = Field(
        default="lora", description="low-rank updates or every weight"
    )
    rank: int = Field(default=8, ge=1, description="rank of the updates")
    alpha: float | None = Field(
        default=None, gt=0, description="scale of the updates; default: the rank"
    )
    targets: list[str] = Field(
        default=["to_q", "to_k", "to_v", "to_out.0"],
        min_length=1,
        description="layers that get an update, by the end of their names",
    )
    ema_decay: float | None = Field(
        default=None, gt=0, lt=1, description="decay per update of a saved average of the policy"
    )


class FlowSettings(Settings):
    """The flow-score network g_phi, a small UNet."""

    channels: list[int] = Field(
        default=[64, 128, 256, 256], min_length=1, description="channels of each level"
    )
    layers_per_block: int = Field(default=1, ge=1, description="residual blocks at each level")
    prompt_conditioned: bool = Field(
        default=True, description="cross attention on the prompt, or zeros"
    )
    ema_decay: float = Field(
        default=0.99, ge=0, lt=1, description="decay per update of the copy that serves as target"
    )
