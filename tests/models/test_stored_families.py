"""The embeddings kept on disk, of each family with a T5 or a language model."""

from __future__ import annotations

import shutil
from pathlib import Path
from typing import Any

import pytest
import torch
from tokenizers import normalizers

from nablaflow.models import AdapterSettings, SamplerSettings, load_model, load_pipeline
from nablaflow.models.condition import Condition
from nablaflow.models.text_to_image import TextToImage
from tests.support.flow_parts import PIXELS

KINDS = ["sd3", "sd3-without-t5", "flux-dev", "klein", "z-image", "qwen-image", "chroma"]
LONG = [kind for kind in KINDS if kind != "sd3-without-t5"]
PROMPTS = ["a red circle", ""]
LENGTH = 24


@pytest.fixture(autouse=True)
def cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Every text encoder is heavy."""
    monkeypatch.setattr(TextToImage, "heavy_from", 1)
    monkeypatch.setenv("NABLAFLOW_CACHE", str(tmp_path / "cache"))
    return tmp_path / "cache" / "embeddings"


def model_of(folder: Path, length: int = LENGTH) -> Any:
    settings = {"height": PIXELS, "width": PIXELS, "max_sequence_length": length}
    pipeline = load_pipeline(str(folder))
    device = torch.device("cpu")
    return load_model(pipeline, SamplerSettings(**settings), AdapterSettings(rank=2), device)


def asked_of(model: Any, prompts: list[str] = PROMPTS) -> tuple[list[str], Condition]:
    """Which prompts its encoders embed, and what the condition is."""
    asked: list[str] = []
    own = model.encode
    model._embeddings._encode = lambda text: (asked.append(text), own(text))[1]
    return asked, model.condition(prompts)


@torch.no_grad()
def by_the_stock_pipeline(folder: Path, prompt: str) -> tuple[torch.Tensor, torch.Tensor | None]:
    """The tokens' embeddings and the pooled one, as diffusers' own call makes them."""
    pipeline: Any = load_pipeline(str(folder))
    kind = type(pipeline).__name__
    if kind == "StableDiffusion3Pipeline":
        given = {"do_classifier_free_guidance": False, "max_sequence_length": LENGTH}
        hidden, _, pooled, _ = pipeline.encode_prompt(prompt, None, None, **given)
        return hidden, pooled
    more = {"prompt_2": None} if kind == "FluxPipeline" else {}
    if kind in ("ChromaPipeline", "ZImagePipeline"):
        more = {"do_classifier_free_guidance": False}
    found = pipeline.encode_prompt(prompt, max_sequence_length=LENGTH, **more)
    hidden = found[0][0][None] if isinstance(found[0], list) else found[0]
    return hidden, found[1] if kind == "FluxPipeline" else None


@pytest.mark.parametrize("kind", KINDS)
def test_what_is_read_is_what_the_stock_pipeline_embeds(
    folders: dict[str, Path], cache: Path, kind: str
) -> None:
    first = model_of(folders[kind]).condition(PROMPTS)
    assert len(list(cache.iterdir())) == len(PROMPTS)
    asked, again = asked_of(model_of(folders[kind]))
    assert asked == []
    assert type(again) is type(first)
    assert again.hidden is not None
    for row, prompt in enumerate(PROMPTS):
        hidden, pooled = by_the_stock_pipeline(folders[kind], prompt)
        found = again.hidden[row, : hidden.shape[1]]
        torch.testing.assert_close(found, hidden[0], rtol=0, atol=1e-6)
        if pooled is not None:
            torch.testing.assert_close(again[row : row + 1].pooled, pooled, rtol=0, atol=1e-6)


@pytest.mark.parametrize("kind", KINDS)
def test_another_encoder_or_tokenizer_has_its_own(
    folders: dict[str, Path], cache: Path, kind: str
) -> None:
    model_of(folders[kind]).condition(PROMPTS)
    last = type(model_of(folders[kind])).encoders[-1 if kind != "sd3-without-t5" else 0]
    weights, words = model_of(folders[kind]), model_of(folders[kind])
    with torch.no_grad():
        next(getattr(weights.pipeline, last).parameters()).add_(1e-3)
    tokenizer = getattr(words.pipeline, last.replace("text_encoder", "tokenizer"))
    tokenizer.backend_tokenizer.normalizer = normalizers.Replace("red", "blue")
    others = [weights, words]
    if kind in LONG:
        others.append(model_of(folders[kind], LENGTH - 1))
    for other in others:
        assert asked_of(other)[0] == PROMPTS
    assert len(list(cache.iterdir())) == len(PROMPTS) * (1 + len(others))


@pytest.mark.parametrize("kind", KINDS)
def test_a_copy_of_the_folder_reads_the_same_files(
    folders: dict[str, Path], tmp_path: Path, kind: str
) -> None:
    model_of(folders[kind]).condition(PROMPTS)
    copy = Path(shutil.copytree(folders[kind], tmp_path / "copy"))
    assert asked_of(model_of(copy))[0] == []


@pytest.mark.parametrize("kind", KINDS)
def test_a_damaged_file_is_named_and_made_anew(
    folders: dict[str, Path], cache: Path, kind: str, capsys: pytest.CaptureFixture[str]
) -> None:
    first = model_of(folders[kind]).condition(PROMPTS[:1])
    (file,) = cache.iterdir()
    whole, model = file.read_bytes(), model_of(folders[kind])
    for damaged in (whole[:-4] + b"\0\0\1\1", whole[: len(whole) // 2], b"", whole + b"\0"):
        file.write_bytes(damaged)
        model._embeddings._rows.clear()  # as in the next run
        asked, again = asked_of(model, PROMPTS[:1])
        assert asked == PROMPTS[:1]
        assert torch.equal(again.hidden, first.hidden)  # type: ignore[arg-type]
        assert f"{file} is damaged; what it holds is made anew" in capsys.readouterr().err
        assert file.read_bytes() == whole


@pytest.mark.parametrize("kind", KINDS)
def test_nothing_that_is_kept_needs_the_encoders(folders: dict[str, Path], kind: str) -> None:
    """They are called for no prompt that is there."""
    model_of(folders[kind]).condition(PROMPTS)
    model = model_of(folders[kind])
    model.offload_encoders()
    for encoder in model._encoders():
        encoder.register_forward_pre_hook(lambda *_: pytest.fail("an encoder was called"))
    assert model.condition(PROMPTS).hidden.isfinite().all()
