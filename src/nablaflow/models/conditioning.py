"""Which inputs a UNet asks for; those that nobody here gives are refused before any work."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from peft.tuners.tuners_utils import BaseTunerLayer

from nablaflow.errors import UserError

PLAIN = (None, "text", "text_proj")
"""Kinds of added conditioning that are made of the prompt's embedding alone."""


def check_network(network: Any, added: Sequence[str | None] = PLAIN, called: str = "UNet") -> None:
    """Refuse a network that is no denoiser of its input given a timestep and maybe a prompt.

    Args:
        added: kinds of added conditioning that its family gives.
        called: what the user is told that it is.

    Raises:
        UserError: it needs another input, returns another output, or carries a LoRA.
    """
    config = network.config
    if config.in_channels != (config.out_channels or config.in_channels):
        raise UserError(
            f"model: its {called} does not return what it is given (learned variance or "
            "inpainting); use a text-to-image or unconditional model"
        )
    if config.get("time_cond_proj_dim") is not None:
        raise UserError(
            "model: a distilled model with a guidance embedding has no reference score; "
            "use the model it was distilled from"
        )
    for name in ("class_embed_type", "num_class_embeds"):
        if config.get(name) is not None:
            _refuse(called, name, config[name], "class labels")
    for name, given in (("addition_embed_type", added), ("encoder_hid_dim_type", PLAIN)):
        value = getattr(config, name, None)  # which an IP-Adapter sets, and not the item
        if value == "ip_image_proj" and config.get(name) != value:
            raise UserError(
                f"model: its {called} carries an IP-Adapter, which needs an image at each call; "
                "call unload_ip_adapter() on the pipeline first"
            )
        if value not in given:
            _refuse(called, name, value, "more than what this pipeline gives")
    if any(isinstance(part, BaseTunerLayer) for part in network.modules()):
        raise UserError(
            f"model: its {called} carries a LoRA; call fuse_lora() and unload_lora_weights() on "
            "the pipeline first"
        )


def _refuse(called: str, name: str, value: Any, what: str) -> None:
    raise UserError(
        f"model: its {called} is conditioned on {what} ({name} is {value!r}), which is not given "
        "here; use a text-to-image or unconditional model without"
    )


def check_text_encoder(pipeline: Any) -> None:
    """Refuse a text encoder of another model: its embeddings do not fit the UNet.

    Raises:
        UserError: the widths differ.
    """
    check_widths(pipeline.unet, pipeline.text_encoder.config.hidden_size)


def check_clip_skip(encoders: Sequence[Any], skip: int | None) -> None:
    """Refuse to leave out all layers of a CLIP; other text encoders leave none out.

    Raises:
        UserError: the shallowest has no more.
    """
    if skip is None:
        return
    configs = [encoder.config for encoder in encoders if encoder is not None]
    found = [one.num_hidden_layers for one in configs if one.model_type.startswith("clip")]
    if not found:
        raise UserError("sampler.clip_skip: this model has no CLIP to read prompts; leave it out")
    layers = min(found)
    if skip >= layers:
        raise UserError(
            f"sampler.clip_skip: a CLIP of this model has {layers} layers; leave out fewer"
        )


def check_widths(unet: Any, width: int) -> None:
    """Refuse text encoders whose embeddings, ``width`` in all, do not fit the UNet.

    Raises:
        UserError: the widths differ.
    """
    wanted = unet.config.get("encoder_hid_dim") or unet.config.cross_attention_dim
    wanted = wanted if isinstance(wanted, int) else wanted[0]
    if wanted != width:
        raise UserError(
            f"model: its UNet reads prompts of width {wanted} and its text encoder writes {width}; "
            "they are of two models, copy the whole of one"
        )
