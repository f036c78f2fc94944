"""Settings of a model to align: its sampler, its adapter, the flow-score network beside it."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Annotated, Any, Literal

from pydantic import Field, field_validator, model_validator

from nablaflow.diffusion.variance import Variance
from nablaflow.settings import Settings

Pair = Annotated[list[Annotated[int, Field(ge=0, le=2**14)]], Field(min_length=2, max_length=2)]
"""Two numbers of pixels, the vertical one first."""
MOST_TOKENS = 512
"""Of `SamplerSettings.max_sequence_length`: stock pipelines take no more."""


class SamplerSettings(Settings):
    """How images are sampled, by the reference and the policy alike."""

    name: Literal["ddim", "ddpm", "sde-dpmsolver++", "memoryless", "flow-grpo", "euler"] = Field(
        default="ddim",
        description="kind of reverse kernel; of flow matching memoryless, which is ddim with eta 1 "
        "there, or flow-grpo, whose noise does not make for the tilt; euler, without noise, is for "
        "sampling, and for the methods that need none",
    )
    steps: int = Field(default=20, ge=2, le=10**5, description="K, transitions of a trajectory")
    eta: float = Field(default=1.0, gt=0, le=1, description="DDIM's share of DDPM's noise")
    guidance_scale: float = Field(
        default=1.0,
        ge=1,
        description="weight of classifier-free guidance in kernel, x0_hat and reference; 1: none",
    )
    negative_prompt: str = Field(default="", description="prompt that guidance leads away from")
    guidance_rescale: float | None = Field(
        default=None,
        gt=0,
        le=1,
        description="how far the guided prediction is brought back to the spread that the prompt's "
        "own has (arXiv 2305.08891, section 3.4), in Stable Diffusion 1, 2 and XL; null: not",
    )
    clip_skip: int | None = Field(
        default=None,
        ge=1,
        le=64,
        description="last layers of the CLIP text encoders that a prompt does not go through, "
        "counted as the stock pipeline does; the negative prompt goes through all; null: none",
    )
    sigma_floor: float = Field(
        default=0.01, gt=0, description="least standard deviation of the last reverse kernel"
    )
    variance: Variance = Field(
        default="posterior",
        description="variance of the kernels; analytic adds what x_k leaves open of x_0",
    )
    height: int | None = Field(
        default=None, ge=1, le=2**14, description="of an image, pixels; null: the network's own"
    )
    width: int | None = Field(
        default=None, ge=1, le=2**14, description="of an image, pixels; null: the network's own"
    )
    original_size: Pair | None = Field(
        default=None,
        description="height and width that a Stable Diffusion XL is told its training image had; "
        "null: the image's own",
    )
    crop: Pair | None = Field(
        default=None,
        description="and where it was cropped: pixels from the top and the left; null: [0, 0]",
    )
    target_size: Pair | None = Field(
        default=None, description="and to which height and width; null: the image's own"
    )
    prompt_chunks: int | None = Field(
        default=None,
        ge=1,
        le=2**10,
        description="pieces that every prompt is embedded in, each as long as the text encoder "
        "reads; null: one; what is longer is cut, and said",
    )
    max_sequence_length: int | None = Field(
        default=None,
        ge=1,
        le=MOST_TOKENS,
        description="tokens that flow matching's longest text encoder gives of a prompt, in Stable "
        "Diffusion 3 also where its T5 is left out; null: as many as the stock pipeline's default",
    )

    @model_validator(mode="after")
    def _rescales_guidance(self) -> SamplerSettings:
        if self.guidance_rescale and self.guidance_scale == 1.0:
            raise ValueError(
                "sampler.guidance_rescale: there is no guidance at guidance_scale=1; leave it out"
            )
        return self


OF_A_LORA = ("rank", "alpha", "rslora", "dora", "targets")
"""What `AdapterSettings` has that is of no use where every weight trains."""


class AdapterSettings(Settings):
    """What trains: a LoRA, or the whole network."""

    kind: Literal["lora", "full"] = Field(
        default="lora", description="what trains: low-rank updates (LoRA), or every weight"
    )
    rank: int = Field(default=8, ge=1, le=2**14, description="rank of the LoRA")
    alpha: float | None = Field(
        default=None, gt=0, description="the LoRA's alpha; null: as rank, a scale of 1"
    )
    rslora: bool = Field(
        default=False,
        description="scale the update by alpha over the root of the rank (arXiv 2312.03732)",
    )
    dora: bool = Field(
        default=False,
        description="train the length of each row of a weight beside the update of its direction "
        "(DoRA, arXiv 2402.09353)",
    )
    targets: Literal["auto"] | list[str] = Field(
        default="auto",
        description="layers that get a LoRA, by the end of their names; auto: the projections "
        "of attention, and the residual blocks' convolutions where those hold under a quarter",
    )
    start: str | None = Field(
        default=None,
        min_length=1,
        description="a LoRA that the policy begins at, while the reference is still the base "
        "model: a .safetensors file as diffusers, peft, kohya's scripts or ComfyUI have it, or a "
        "folder with one, such as a run's lora; null: it begins at the reference",
    )
    start_hash: str | None = Field(
        default=None,
        description="SHA-256 of that file, which a run records, so that another one is noticed",
    )
    ema_decay: float | None = Field(
        default=None,
        gt=0,
        lt=1,
        description="decay per optimizer step of a saved average of the policy",
    )

    @model_validator(mode="after")
    def _of_a_lora(self) -> AdapterSettings:
        for name in ("rslora", "dora"):
            if self.kind == "full" and getattr(self, name):
                raise ValueError(f"adapter.{name}: every weight trains; leave it out, or kind=lora")
        if self.kind == "full" and self.start is not None:
            raise ValueError(
                "adapter.start: every weight trains, and no LoRA; leave it out, or kind=lora"
            )
        return self

    def idle(self) -> Iterator[tuple[str, str]]:
        """Settings that others leave without any effect, and what would give them one."""
        for name in OF_A_LORA if self.kind == "full" else ():
            yield name, "every weight trains, and no LoRA; set adapter.kind=lora"

    @field_validator("targets", mode="before")
    @classmethod
    def _auto_or_names(cls, value: Any) -> Any:
        names = isinstance(value, list) and all(isinstance(name, str) for name in value)
        if value == "auto" or (names and value):
            return value
        raise ValueError("must be auto, or a list of layers' names such as [to_q, to_v]")


class FlowSettings(Settings):
    """The flow-score network g_phi, a small UNet."""

    channels: Literal["auto"] | list[Annotated[int, Field(ge=1, le=2**14)]] = Field(
        default="auto",
        description="channels of each level; auto: the published 64, 128, 256, 256, or as many as "
        "take at most a quarter of the denoiser's forward FLOPs",
    )
    layers_per_block: int = Field(
        default=1, ge=1, le=64, description="residual blocks at each level"
    )
    prompt_conditioned: bool = Field(
        default=True, description="cross attention on the prompt, or zeros"
    )
    ema_decay: float = Field(
        default=0.99,
        ge=0,
        lt=1,
        description="decay per optimizer step of the copy that serves as target",
    )

    @field_validator("channels", mode="before")
    @classmethod
    def _auto_or_numbers(cls, value: Any) -> Any:
        numbers = isinstance(value, list) and all(type(n) is int and n > 0 for n in value)
        if value == "auto" or (numbers and value):
            return value
        raise ValueError("must be auto, or a list of numbers of channels such as [32, 64]")
