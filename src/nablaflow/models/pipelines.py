"""Models to align that live in a diffusers pipeline: what a family says, and what all share."""

from __future__ import annotations

import abc
from collections.abc import Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, contextmanager
from inspect import signature
from typing import Any, ClassVar

import torch
from diffusers.loaders.lora_base import LoraBaseMixin
from jaxtyping import Float
from torch import Tensor

from nablaflow.diffusion.process import ReverseProcess
from nablaflow.diffusion.samplers import build_process
from nablaflow.diffusion.schedule import note_uneven
from nablaflow.diffusion.stock import STOCK, told_to
from nablaflow.errors import UserError
from nablaflow.models.adapters import Adapter, FullAdapter, LoraAdapter
from nablaflow.models.attention import fused_attention, use_plain_attention
from nablaflow.models.conditioning import check_network
from nablaflow.models.decoders import DecodesImages
from nablaflow.models.kohya import Layout
from nablaflow.models.lora_places import Denoiser
from nablaflow.models.lora_start import begin_at, read_start, targets_of
from nablaflow.models.lora_targets import automatic_targets
from nablaflow.models.parts import check_scheduler
from nablaflow.models.settings import AdapterSettings, SamplerSettings
from nablaflow.typing import Images

PLAIN_ATTENTION_UP_TO = 1024  # tokens


class PipelineModel(DecodesImages):
    """A family of diffusers pipelines.

    A family is a subclass in a file of its own, and a line in `nablaflow.models.load.FAMILIES`. It
    says how it conditions, predicts and decodes (`nablaflow.models.contract`), and with what
    follows how it is loaded, saved, checked and sampled in stock form. The defaults are those of
    a pipeline with a UNet and a scheduler of betas.

    Attributes:
        serves: classes of the pipelines.
        denoiser: name of the pipeline's part that is aligned.
        encoders: and of those that are needed for conditions only.
        load_options: for ``from_pretrained``: parts that are not needed and often not there.
        may_lack: parts that a folder may have or not, and that change what the model is.
        call_defaults: how a stock pipeline samples if nothing is said, as sampler settings.
        reads: sampler settings that have an effect; another one is refused.
        published_layers: names that the published checkpoint has for the denoiser's layers; None:
            those who read its LoRAs know diffusers' names too.
        left_open: variance of x_0 given x_k, by k, that the kernels have besides their own; None:
            they have their own alone.
    """

    serves: ClassVar[tuple[type[Any], ...]]
    denoiser: ClassVar[str] = "unet"
    encoders: ClassVar[tuple[str, ...]] = ()
    load_options: ClassVar[dict[str, Any]] = {}
    may_lack: ClassVar[tuple[str, ...]] = ()
    call_defaults: ClassVar[dict[str, Any]]
    reads: ClassVar[frozenset[str]] = frozenset(
        {"name", "steps", "eta", "sigma_floor", "variance", "height", "width"}
    )
    published_layers: ClassVar[Layout | None] = None

    left_open: Float[Tensor, "levels"] | None

    def __init__(
        self,
        pipeline: Any,
        sampler: SamplerSettings,
        adapter: AdapterSettings,
        device: torch.device,
    ) -> None:
        self._check_read(pipeline, sampler)
        check_scheduler(pipeline.scheduler)
        self.check(pipeline)
        self.pipeline, self._sampler, self.left_open = pipeline, sampler, None
        self.process = self.make_process(None)  # refuses a schedule before any work
        self.state_shape = self.shape_of_states(pipeline, sampler)
        self.pipeline, self.device = pipeline.to(device), device
        network = getattr(pipeline, self.denoiser).to(memory_format=torch.channels_last)
        network.eval()  # no dropout: the policy that trains is the one that sampled
        # On a processor the fused attention's backward pass is slow; few tokens need no fusing.
        _, height, width = self.state_shape
        if device.type == "cpu" and height * width <= PLAIN_ATTENTION_UP_TO:
            use_plain_attention(network)
        self.adapter = self._make_adapter(network, adapter)
        self.network = self.adapter.network
        self.parameterization = pipeline.scheduler.config.get("prediction_type", "epsilon")
        self.guidance_scale = sampler.guidance_scale
        self.guidance_rescale = sampler.guidance_rescale or 0.0

    @classmethod
    def part(cls) -> Denoiser:
        """The denoiser's name in the pipeline, and those of its layers in the checkpoint."""
        return Denoiser(cls.denoiser, cls.published_layers)

    # --- before its weights are read, and before any work -----------------------------------------

    @classmethod
    def check_index(cls, parts: Mapping[str, Any]) -> None:
        """Refuse a folder by its list of parts, ``model_index.json``.

        Raises:
            UserError: it is of the class, but not of the kind that is served.
        """

    @classmethod
    def check(cls, pipeline: Any) -> None:
        """Refuse a pipeline whose parts do not fit each other or this family.

        Raises:
            UserError: so it is.
        """
        called = "UNet" if cls.denoiser == "unet" else cls.denoiser
        check_network(getattr(pipeline, cls.denoiser), called=called)

    @classmethod
    def defaults_of(cls, pipeline: Any) -> dict[str, Any]:
        """`call_defaults`, for families whose pipelines differ in them."""
        return dict(cls.call_defaults)

    @classmethod
    def _check_read(cls, pipeline: Any, sampler: SamplerSettings) -> None:
        for name, field in type(sampler).model_fields.items():
            if name not in cls.reads and getattr(sampler, name) != field.default:
                raise UserError(
                    f"sampler.{name}: a {type(pipeline).__name__} has no use for it; leave it out"
                )

    # --- its states, its kernels, its policy ------------------------------------------------------

    @staticmethod
    @abc.abstractmethod
    def shape_of_states(pipeline: Any, sampler: SamplerSettings) -> tuple[int, int, int]:
        """(channel, height, width) of a state.

        Raises:
            UserError: a size is asked for that the model does not have.
        """

    def make_process(self, left_open: Float[Tensor, "levels"] | None) -> ReverseProcess:
        """The kernels that the settings ask for, on the schedule of the pipeline's scheduler.

        Raises:
            UserError: the schedule has no such kernels.
        """
        s = self._sampler
        scheduler = self.pipeline.scheduler
        # Which a configuration has only where it was read from a folder.
        config = {**scheduler.config, "_class_name": type(scheduler).__name__}
        return build_process(config, s.name, s.steps, s.eta, s.sigma_floor, left_open)

    def widen_kernels(self, left_open: Float[Tensor, "levels"]) -> None:
        """Give reference and policy the kernels of ``sampler.variance: analytic``.

        Args:
            left_open: see `nablaflow.diffusion.variance`.

        Raises:
            UserError: the sampler has such kernels already.
        """
        self.process = self.make_process(left_open)
        self.left_open = left_open

    @staticmethod
    def lora_targets(network: Any) -> list[str]:
        """Names of the layers that get a LoRA where nobody says so."""
        return automatic_targets(network)

    def _make_adapter(self, network: Any, settings: AdapterSettings) -> Adapter:
        if settings.kind == "full":
            return FullAdapter(network)
        start = read_start(self.pipeline, self.part(), settings)
        if start is not None:
            targets = targets_of(start, network, settings.targets)
        else:
            targets = self.lora_targets(network) if settings.targets == "auto" else settings.targets
        alpha = float(settings.rank) if settings.alpha is None else settings.alpha
        kind = {"rslora": settings.rslora, "dora": settings.dora}
        adapter = LoraAdapter(network, settings.rank, alpha, targets, **kind)
        if start is not None:
            begin_at(adapter, start)
        return adapter

    def allow_second_derivatives(self) -> None:
        use_plain_attention(self.network)

    def checkpoint_activations(self) -> None:
        """From now on compute them again in the backward pass, which costs no memory for them."""
        network: Any = self.network
        network.enable_gradient_checkpointing()

    @contextmanager
    def reference(self) -> Iterator[None]:
        with self.adapter.reference():
            yield

    # --- its prompts and its images ---------------------------------------------------------------

    def note_on(self, prompts: Sequence[str], *, trains: bool = True) -> str | None:
        """Lines about what the model does not read of the prompts, and about its steps, if any.

        Args:
            trains: whether a run follows, so that a remedy may be a setting.
        """
        s = self._sampler
        return note_uneven(self.pipeline.scheduler.config, s.name, s.steps, settable=trains)

    @property
    def heavy_encoders(self) -> bool:
        """Whether `encoders` are so large that they leave the accelerator if nobody says not to."""
        return False

    def offload_encoders(self) -> None:
        """From now on keep `encoders` on the CPU, but for the time that they embed a prompt."""

    # --- in stock form ----------------------------------------------------------------------------

    @property
    def saves_lora(self) -> bool:
        """Whether a LoRA is saved as such: where a stock pipeline of the class takes one."""
        return isinstance(self.adapter, LoraAdapter) and isinstance(self.pipeline, LoraBaseMixin)

    def stock_call(self, prompt: str) -> dict[str, Any]:
        """Arguments by which a stock pipeline's call makes an image as the policy does."""
        return {}

    def stock_steps(self) -> dict[str, Any]:
        """Further ones, by which it takes the sampler's steps, and its noise where it asks."""
        call: dict[str, Any] = {"num_inference_steps": self.process.steps}
        asked = (type(self.pipeline).__call__, self.pipeline.scheduler.step)
        own = all("eta" in signature(f).parameters for f in asked)
        if self._sampler.name == "ddim" and (own or self.stock_scheduler() is not None):
            call["eta"] = self._sampler.eta
        return call

    def stock_scheduler(self) -> tuple[str, dict[str, Any]] | None:
        """Class in diffusers that takes the sampler's steps, and what it needs to be told.

        None where the folder's own takes them, or the pipeline's call has no use for the class:
        DDIM's noise has to be asked for, and a pipeline that always asks so takes no other.
        """
        name, scheduler, kind = self._sampler.name, self.pipeline.scheduler, type(self.pipeline)
        asks = "eta" in signature(kind.__call__).parameters
        fits = asks if name == "ddim" else not asks or hasattr(kind, "prepare_extra_step_kwargs")
        stock = STOCK.get(name) if fits else None
        if stock is None or (isinstance(scheduler, stock) and name != "sde-dpmsolver++"):
            return None
        config = {**scheduler.config, "_class_name": type(scheduler).__name__}
        return stock.__name__, told_to(name, config)

    @torch.no_grad()
    def stock_image(self, pipeline: Any, prompt: str, **options: Any) -> Images:
        """One image by a stock pipeline's own call, through the decoder that is here.

        Args:
            options: of the call besides `stock_call`, such as the generator.
        """
        return self.decode(self.call_stock(pipeline, prompt, output_type="latent", **options))

    def stock_image_by_its_own_decoder(self, pipeline: Any, prompt: str, **options: Any) -> Images:
        """`stock_image`, the decoder the pipeline's too, where a family knows how to ask for it."""
        return self.stock_image(pipeline, prompt, **options)

    def call_stock(self, pipeline: Any, prompt: str, **options: Any) -> Any:
        """What a stock pipeline returns for `stock_call` and further options."""
        return pipeline(**self.stock_call(prompt), **options, return_dict=False)[0]

    def as_in_stock(self) -> AbstractContextManager[None]:
        """Within this context the policy computes as in a stock pipeline, to the last digit."""
        return fused_attention(self.network)
