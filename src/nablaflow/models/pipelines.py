"""Models to align that live in a diffusers pipeline: what the families share."""

from __future__ import annotations

import abc
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import torch
from diffusers.models.attention_processor import Attention, AttnProcessor, AttnProcessor2_0
from jaxtyping import Float
from torch import Tensor

from nablaflow.diffusion.process import ReverseProcess
from nablaflow.diffusion.samplers import build_process
from nablaflow.models.adapters import Adapter, FullAdapter, LoraAdapter
from nablaflow.models.conditioning import check_network
from nablaflow.models.contract import DiffusionModel
from nablaflow.models.settings import AdapterSettings, SamplerSettings

PLAIN_ATTENTION_UP_TO = 1024  # tokens


def use_plain_attention(network: torch.nn.Module) -> None:
    """Attention as two matrix products: it can be differentiated twice, the fused one only once.

    Set for good and not around a call, since gradient checkpointing makes the call again later.
    """
    for part in _attentions(network):
        part.set_processor(AttnProcessor())


@contextmanager
def fused_attention(network: torch.nn.Module) -> Iterator[None]:
    """Within this context attention is computed as in a stock pipeline, to the last digit."""
    before = [(part, part.processor) for part in _attentions(network)]
    for part, _ in before:
        stock: Any = AttnProcessor2_0()
        part.set_processor(stock)
    try:
        yield
    finally:
        for part, processor in before:
            part.set_processor(processor)


def _attentions(network: torch.nn.Module) -> list[Attention]:
    return [part for part in network.modules() if isinstance(part, Attention)]


def make_adapter(network: Any, settings: AdapterSettings) -> Adapter:
    """The policy that the settings ask for, on ``network``."""
    if settings.kind == "full":
        return FullAdapter(network)
    alpha = float(settings.rank) if settings.alpha is None else settings.alpha
    return LoraAdapter(network, settings.rank, alpha, settings.targets)


class PipelineModel(DiffusionModel):
    """A diffusers pipeline with a UNet; subclasses add conditioning and decoding.

    Attributes:
        left_open: variance of x_0 given x_k, by k, that the kernels have besides their own; None:
            they have their own alone.
    """

    pipeline: Any
    left_open: Float[Tensor, "levels"] | None

    def __init__(
        self,
        pipeline: Any,
        sampler: SamplerSettings,
        adapter: AdapterSettings,
        device: torch.device,
    ) -> None:
        check_network(pipeline.unet)
        self.pipeline, self._sampler, self.left_open = pipeline, sampler, None
        self.process = self._process(None)  # refuses a schedule before any work
        height, width = self.state_size(pipeline, sampler)
        self.state_shape = (int(pipeline.unet.config["in_channels"]), height, width)
        self.pipeline = pipeline.to(device)
        self.device = device
        unet = pipeline.unet.to(memory_format=torch.channels_last)
        unet.eval()  # no dropout: the policy that trains is the one that sampled
        # On a processor the fused attention's backward pass is slow; few tokens need no fusing.
        if device.type == "cpu" and height * width <= PLAIN_ATTENTION_UP_TO:
            use_plain_attention(unet)
        self.adapter = make_adapter(unet, adapter)
        self.network = self.adapter.network
        self.parameterization = pipeline.scheduler.config.get("prediction_type", "epsilon")
        self.guidance_scale = sampler.guidance_scale

    @staticmethod
    @abc.abstractmethod
    def state_size(pipeline: Any, sampler: SamplerSettings) -> tuple[int, int]:
        """(height, width) of a state.

        Raises:
            UserError: one is asked for that the model does not have.
        """

    def note_on(self, prompts: Sequence[str]) -> str | None:
        """One line about what the model does not read of the prompts, if there is such."""
        return None

    def _process(self, left_open: Tensor | None) -> ReverseProcess:
        s = self._sampler
        config = self.pipeline.scheduler.config
        return build_process(config, s.name, s.steps, s.eta, s.sigma_floor, left_open)

    def widen_kernels(self, left_open: Float[Tensor, "levels"]) -> None:
        """Give reference and policy the kernels of ``sampler.variance: analytic``.

        Args:
            left_open: see `nablaflow.diffusion.variance`.

        Raises:
            UserError: the sampler has such kernels already.
        """
        self.process = self._process(left_open)
        self.left_open = left_open

    def allow_second_derivatives(self) -> None:
        use_plain_attention(self.network)

    @contextmanager
    def reference(self) -> Iterator[None]:
        with self.adapter.reference():
            yield
