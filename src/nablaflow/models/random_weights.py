"""Stock pipelines of the published architectures with random weights: for memory, speed and tests.

What they make is noise; what an update of them costs is what it costs with the published weights.
The tokenizers are the embedded model's and a list of its words, since a vocabulary is no
architecture; they read as many tokens as the published ones.
"""

from __future__ import annotations

import os
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from numbers import Integral
from pathlib import Path
from typing import Any

import diffusers
import torch
import transformers
from tokenizers import Tokenizer
from tokenizers.models import WordLevel
from tokenizers.pre_tokenizers import ByteLevel, Whitespace
from tokenizers.processors import TemplateProcessing

from nablaflow.devices import find_device, is_dtype, named_device
from nablaflow.errors import UserError, nearest, show
from nablaflow.models.architectures import ARCHITECTURES, Blueprint
from nablaflow.nano.captions import WORDS
from nablaflow.nano.pretrain.text import build_tokenizer
from nablaflow.places import at_home
from nablaflow.quiet import quiet_libraries
from nablaflow.storage.files import folder_fault

RANDOM, SMALL = "random:", "-small"
"""``random:sd15``, or ``random:sd15-small``, is such a pipeline wherever a model is named."""
CLIP_TOKENS, T5_TOKENS = 77, 512
CHAT = (
    "{% for m in messages %}<|im_start|>{{ m['role'] }}\n{{ m['content'] }}<|im_end|>\n{% endfor %}"
    "{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}"
)
"""How a Qwen is spoken to."""


def random(
    name: str,
    folder: str | Path | None = None,
    *,
    small: bool = False,
    seed: int = 0,
    dtype: torch.dtype = torch.float32,
    device: str | torch.device = "cpu",
) -> Any:
    """A stock diffusers pipeline of a published architecture, with random weights.

    Args:
        name: ``sd15``, ``sd21`` (of 768 pixels), ``sdxl``, ``ddpm`` (of 256), ``sd35`` (medium),
            ``flux`` (FLUX.1-dev), ``flux2-klein`` (4B), ``z-image``, ``qwen-image`` or ``chroma``.
        folder: to save it in besides, in diffusers format; it must not be there yet.
        small: the same classes with a few thousand weights.
        seed: of the weights; torch's global state is left as it was.
        dtype: of the weights.
        device: they are made on; ``meta`` has shapes alone.

    Raises:
        UserError: another name, dtype or device; a seed that is no whole number; a folder that is
            there, cannot be made, or is for shapes alone.
    """
    if not isinstance(name, str) or name not in ARCHITECTURES:
        hint = nearest(str(name), ARCHITECTURES)
        raise UserError(f"models.random: {show(name)} is no architecture here; {hint}")
    if not is_dtype(dtype):
        raise UserError(
            f"models.random: dtype must be one of torch's, such as torch.float16, not {show(dtype)}"
        )
    if isinstance(seed, bool) or not isinstance(seed, Integral):
        raise UserError(f"models.random: seed must be a whole number, not {show(seed)}")
    on = _device(device)
    place = None if folder is None else _free(folder, on)
    pipeline = _build(ARCHITECTURES[name], small, int(seed), dtype, on)
    if place is not None:
        pipeline.save_pretrained(place)
    return pipeline


def random_by_name(model: str, dtype: torch.dtype, device: str | torch.device = "cpu") -> Any:
    """The pipeline that ``random:NAME`` or ``random:NAME-small`` is.

    Raises:
        UserError: another name.
    """
    name = model.removeprefix(RANDOM)
    small = name.endswith(SMALL)
    try:
        return random(name.removesuffix(SMALL), small=small, dtype=dtype, device=device)
    except UserError as error:
        raise UserError(str(error).replace("models.random", "model", 1)) from error


def _device(device: str | torch.device) -> torch.device:
    """One that is here, or that of shapes alone."""
    found = named_device(str(device), "models.random: device")
    return found if found.type == "meta" else find_device(str(found), "models.random: device")


def _free(folder: str | Path, device: torch.device) -> Path:
    if not isinstance(folder, str | os.PathLike):
        raise UserError(f"models.random: the folder must be a path, not {show(folder)}")
    place = at_home(folder)
    if device.type == "meta":
        raise UserError("models.random: shapes alone (device=meta) cannot be saved; leave one out")
    fault = folder_fault(place.parent)
    if fault is not None:
        raise UserError(f"models.random: {fault}; give another folder")
    if place.exists():
        raise UserError(f"models.random: {place} is there already; give another folder")
    return place


@quiet_libraries()
def _build(
    architecture: Blueprint, small: bool, seed: int, dtype: torch.dtype, device: torch.device
) -> Any:
    settings = architecture.small if small else architecture.full
    tokenizers = {name: _tokenizer(kind) for name, kind in architecture.tokenizers.items()}
    parts: dict[str, Any] = {}
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        for part, kind in architecture.parts.items():
            own = settings[part]
            if kind.endswith("Scheduler"):
                parts[part] = getattr(diffusers, kind)(**own)
                continue
            with device, _made_in(dtype):
                reader = tokenizers.get(part.replace("text_encoder", "tokenizer"))
                parts[part] = _network(kind, own, reader).eval()
    made = getattr(diffusers, architecture.pipeline)(**parts, **tokenizers, **architecture.options)
    made.set_progress_bar_config(disable=True)
    return made


@contextmanager
def _made_in(dtype: torch.dtype) -> Iterator[None]:
    """Within this context parameters are made in a precision, so that nothing is there twice."""
    before = torch.get_default_dtype()
    torch.set_default_dtype(dtype)
    try:
        yield
    finally:
        torch.set_default_dtype(before)


def _network(kind: str, settings: Mapping[str, Any], tokenizer: Any) -> torch.nn.Module:
    if tokenizer is None:
        return getattr(diffusers, kind)(**settings)
    encoder = getattr(transformers, kind)
    own: dict[str, Any] = {"vocab_size": len(tokenizer)}
    if kind.startswith("CLIP"):
        first, last = tokenizer.bos_token_id, tokenizer.eos_token_id
        own = {"bos_token_id": first, "eos_token_id": last, "pad_token_id": last}
    elif kind.startswith("T5"):
        own |= {"dropout_rate": 0.0}
    return encoder(encoder.config_class(**{**own, **settings}))


def _tokenizer(kind: str) -> Any:
    if kind == "t5":
        return _words_tokenizer()
    if kind == "qwen":
        return _bytes_tokenizer()
    tokenizer = build_tokenizer()
    tokenizer.model_max_length = CLIP_TOKENS
    return tokenizer


def _words_tokenizer() -> transformers.PreTrainedTokenizerFast:
    """T5's markers around the embedded model's words; all others are one token."""
    vocabulary = {word: i for i, word in enumerate(("<pad>", "</s>", "<unk>", *sorted(WORDS)))}
    tokenizer: Any = Tokenizer(WordLevel(vocabulary, unk_token="<unk>"))
    tokenizer.pre_tokenizer = Whitespace()
    tokenizer.post_processor = TemplateProcessing(
        single="$A </s>", special_tokens=[("</s>", vocabulary["</s>"])]
    )
    return transformers.PreTrainedTokenizerFast(
        tokenizer_object=tokenizer,
        pad_token="<pad>",
        eos_token="</s>",
        unk_token="<unk>",
        model_max_length=T5_TOKENS,
    )


def _bytes_tokenizer() -> transformers.Qwen2Tokenizer:
    """Qwen's markers and template around single bytes."""
    words = ("<|endoftext|>", "<|im_start|>", "<|im_end|>", *sorted(ByteLevel.alphabet()))
    tokenizer = transformers.Qwen2Tokenizer(
        vocab={word: i for i, word in enumerate(words)}, merges=[]
    )
    tokenizer.chat_template = CHAT
    return tokenizer
