"""Models to align that live in a diffusers pipeline: what the families share."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import AbstractContextManager, contextmanager, nullcontext
from typing import Any

import torch
from torch.nn.attention import SDPBackend, sdpa_kernel

from nablaflow.diffusion.samplers import build_process
from nablaflow.errors import UserError
from nablaflow.models.adapters import Adapter, FullAdapter, LoraAdapter
from nablaflow.models.contract import DiffusionModel
from nablaflow.models.settings import AdapterSettings, SamplerSettings

PLAIN_ATTENTION_UP_TO = 1024  # tokens


def attention_kernels(device: torch.device, tokens: int) -> AbstractContextManager[Any]:
    """On a processor the fused attention's backward pass is slow; few tokens need no fusing."""
    if device.type == "cpu" and tokens <= PLAIN_ATTENTION_UP_TO:
        return sdpa_kernel(SDPBackend.MATH)
    return nullcontext()


def make_adapter(network: Any, settings: AdapterSettings) -> Adapter:
    """The policy that the settings ask for, on ``network``."""
    if settings.kind == "full":
        return FullAdapter(network)
    alpha = float(settings.rank) if settings.alpha is None else settings.alpha
    return LoraAdapter(network, settings.rank, alpha, settings.targets)


class PipelineModel(DiffusionModel):
    """A diffusers pipeline with a UNet; subclasses add conditioning and decoding."""

    pipeline: Any

    def __init__(
        self,
        pipeline: Any,
        sampler: SamplerSettings,
        adapter: AdapterSettings,
        device: torch.device,
    ) -> None:
        self.pipeline = pipeline.to(device)
        self.device = device
        unet = pipeline.unet.to(memory_format=torch.channels_last)
        if unet.config.in_channels != unet.config.out_channels:
            raise UserError(
                "model: its UNet does not return what it is given (learned variance or "
                "inpainting); use a text-to-image or unconditional model"
            )
        self.adapter = make_adapter(unet, adapter)
        self.network = self.adapter.network
        config = pipeline.scheduler.config
        self.process = build_process(
            config, sampler.name, sampler.steps, sampler.eta, sampler.sigma_floor
        )
        self.parameterization = config.get("prediction_type", "epsilon")
        self.guidance_scale = sampler.guidance_scale

    @contextmanager
    def reference(self) -> Iterator[None]:
        with self.adapter.reference():
            yield
