"""Prompts beyond what the text encoder reads, against the tokenizer's and encoder's own call."""

import copy
import logging
from types import SimpleNamespace
from typing import Any

import pytest
import torch

from nablaflow import nano
from nablaflow.errors import UserError
from nablaflow.models import AdapterSettings, SamplerSettings, load_model, load_pipeline
from nablaflow.models.cut_prompts import Reader, is_silent, note_cuts
from nablaflow.models.long_prompts import pieces, room
from tests.support.flow_pipelines import flux, sd3
from tests.support.pipelines import stable_diffusion, stable_diffusion_xl

SHORT = "a red circle"


@pytest.fixture(scope="module")
def pipeline() -> Any:
    return stable_diffusion()


def model(pipeline: Any, chunks: int | None) -> Any:
    fresh = copy.copy(pipeline)
    fresh.register_modules(unet=copy.deepcopy(pipeline.unet))
    settings = SamplerSettings(steps=2, prompt_chunks=chunks)
    return load_model(fresh, settings, AdapterSettings(rank=1), torch.device("cpu"))


def long(pipeline: Any, end: str) -> str:
    return " ".join(["red"] * room(pipeline.tokenizer)) + f" {end}"


def test_a_note_names_what_is_cut_and_what_is_then_the_same(pipeline: Any) -> None:
    tokenizer = pipeline.tokenizer
    assert note_cuts([Reader(tokenizer)], [SHORT, "a circle"]) is None
    prompts = [SHORT, long(pipeline, "circle"), long(pipeline, "square")]
    note = note_cuts([Reader(tokenizer)], prompts)
    assert note is not None
    assert "\n" not in note
    assert "2 of 3 (67%)" in note
    assert f"the {tokenizer.model_max_length} tokens" in note
    assert "loses 'circle'" in note
    assert "loses 'square'" in note
    assert "2 of them are then the same" in note
    assert note.endswith("sampler.prompt_chunks=2")
    assert note_cuts([Reader(tokenizer, 2)], prompts) is None


def test_where_no_setting_can_be_given_a_remedy_names_none(pipeline: Any) -> None:
    prompts = [SHORT, long(pipeline, "circle")]
    note = note_cuts([Reader(pipeline.tokenizer)], prompts, settable=False) or ""
    assert note.endswith("; shorten them")
    pieces = note_cuts([Reader(pipeline.tokenizer, 2)], [3 * long(pipeline, "circle ")]) or ""
    assert f"the 2 pieces of {pipeline.tokenizer.model_max_length} tokens" in pieces


def guided(pipeline: Any, negative: str, chunks: int | None = None, scale: float = 3.0) -> Any:
    settings = SamplerSettings(
        steps=2, prompt_chunks=chunks, guidance_scale=scale, negative_prompt=negative
    )
    fresh = copy.copy(pipeline)
    fresh.register_modules(unet=copy.deepcopy(pipeline.unet))
    return load_model(fresh, settings, AdapterSettings(rank=1), torch.device("cpu"))


def test_a_negative_prompt_that_is_cut_is_named_too(pipeline: Any) -> None:
    negative = long(pipeline, "square")
    note = guided(pipeline, negative).note_on([SHORT])
    assert note.startswith("sampler.negative_prompt: it is longer than the ")
    assert "loses 'square'" in note
    assert note.endswith("sampler.prompt_chunks=2")
    assert len(guided(pipeline, negative).note_on([negative]).splitlines()) == 2
    assert guided(pipeline, negative, chunks=2).note_on([SHORT]) is None
    assert guided(pipeline, "red").note_on([SHORT]) is None


def test_a_negative_prompt_that_nothing_reads_is_said(pipeline: Any) -> None:
    note = guided(pipeline, "red", scale=1.0).note_on([SHORT])
    assert "not read without guidance" in note
    assert guided(pipeline, "", scale=1.0).note_on([SHORT]) is None


# --- several encoders -----------------------------------------------------------------------------


def of_flow(pipeline: Any, **sampler: Any) -> Any:
    settings = SamplerSettings(**{"steps": 2, "name": "memoryless", **sampler})
    return load_model(pipeline, settings, AdapterSettings(rank=1), torch.device("cpu"))


@pytest.mark.parametrize("build", [sd3, flux])
def test_what_a_clip_cuts_and_a_t5_reads_is_a_note_without_a_remedy(build: Any) -> None:
    """FLUX.1's CLIP reads the whole alone, Stable Diffusion 3's two give tokens as well."""
    model = of_flow(build())
    prompts = [SHORT, *("red " * 20 + end for end in ("circle", "square"))]
    first, second = (model.condition([prompt]) for prompt in prompts[1:])
    assert first.pooled.equal(second.pooled), "all that is CLIP's alone"
    assert not first.hidden.equal(second.hidden)
    *_, note = model.note_on(prompts).splitlines()
    assert note.startswith("prompts: 2 of 3 (67%) are longer than a text encoder reads: ")
    assert "CLIP reads 16 tokens and cuts 2 of them: 'red " in note
    assert "circle'" in note
    assert note.endswith("; the T5 reads all of them")


def test_what_a_t5_cuts_too_has_its_remedy_and_only_where_a_setting_can_be_given() -> None:
    model = of_flow(sd3(), max_sequence_length=24)
    prompts = [SHORT, "red " * 20, *("red " * 30 + end for end in ("circle", "square"))]
    first, second = (model.condition([prompt]) for prompt in prompts[2:])
    assert first.hidden.equal(second.hidden)
    note = model.note_on(prompts)
    assert "are longer than a text encoder reads: CLIP reads 16 tokens and cuts 3 of them" in note
    assert " and 1 more; the T5 reads 24 tokens and cuts 2 of them: " in note
    assert "; 2 of them are then the same as another prompt; shorten them" in note
    assert note.endswith(", or set sampler.max_sequence_length=32")
    assert model.note_on(prompts, trains=False).endswith("; shorten them")


def test_a_t5_that_is_silent_reads_nothing() -> None:
    """As the embedded model's: it gives zeros, as there are where there is none."""
    silent: Any = sd3()
    assert not is_silent(silent.text_encoder_3)
    silent.text_encoder_3.encoder.final_layer_norm.weight.data.zero_()
    assert is_silent(silent.text_encoder_3)
    ends = ["red " * 20 + end for end in ("circle", "square")]
    for pipeline in (silent, sd3(t5=False)):
        model = of_flow(pipeline)
        first, second = (model.condition([prompt]) for prompt in ends)
        assert first.hidden.equal(second.hidden)
        note = model.note_on(ends)
        assert "(100%) are longer than the 16 tokens that the text encoder reads" in note
        assert note.endswith("; 2 of them are then the same as another prompt; shorten them")
    assert is_silent(load_pipeline(nano.path("flow")).text_encoder_3)


def test_a_negative_prompt_is_measured_by_each_encoder() -> None:
    model = of_flow(sd3(), guidance_scale=3.0, negative_prompt="red " * 20 + "square")
    note = model.note_on([SHORT])
    assert note.startswith("sampler.negative_prompt: it is longer than a text encoder reads: ")
    assert "CLIP reads 16 tokens and cuts it: " in note
    assert note.endswith("; the T5 reads all of it")


def test_clips_that_read_unlike_are_named_by_their_parts() -> None:
    pipeline = stable_diffusion_xl()
    pipeline.tokenizer_2.model_max_length = 12
    note = model(pipeline, None).note_on(["a " * 12 + "circle"])
    assert "its text_encoder_2 reads 12 tokens and cuts them: " in note
    assert note.endswith(
        "; its text_encoder reads all of them; shorten them, or set sampler.prompt_chunks=2"
    )


def test_the_libraries_do_not_say_it_again(pipeline: Any, caplog: pytest.LogCaptureFixture) -> None:
    for name in ("diffusers", "transformers"):
        logging.getLogger(name).addHandler(caplog.handler)
    try:
        pipeline.tokenizer.deprecation_warnings.clear()  # of what it has said once
        read = guided(pipeline, long(pipeline, "square"))
        assert read.note_on([2 * long(pipeline, "circle ")]) is not None
        read.condition([long(pipeline, "circle")])
    finally:
        for name in ("diffusers", "transformers"):
            logging.getLogger(name).removeHandler(caplog.handler)
    assert caplog.records == []


def test_a_prompt_that_fits_is_embedded_in_its_first_piece_as_ever(pipeline: Any) -> None:
    plain, parts = (model(pipeline, chunks).condition([SHORT]).hidden for chunks in (None, 2))
    assert plain is not None
    assert parts is not None
    length = plain.shape[1]
    assert parts.shape[1] == 2 * length
    torch.testing.assert_close(parts[:, :length], plain)


def test_the_second_piece_is_the_rest_of_the_prompt(pipeline: Any) -> None:
    tokenizer = pipeline.tokenizer
    own, _ = pieces(tokenizer, long(pipeline, "circle"), 2)
    rest = tokenizer(
        "circle", padding="max_length", max_length=tokenizer.model_max_length
    ).input_ids
    assert own[1].tolist() == rest
    first, second = (
        model(pipeline, 2).condition([long(pipeline, end)]).hidden for end in ("circle", "square")
    )
    assert first is not None
    assert second is not None
    assert (first - second).abs().max() > 1e-3


@pytest.mark.parametrize("build", [stable_diffusion, stable_diffusion_xl])
def test_a_word_of_several_vectors_is_read_as_the_stock_pipeline_does(build: Any) -> None:
    """Textual inversion has a token for each vector of a word, and the prompt the first."""
    pipeline = build()
    for name in ("", "_2")[: 1 + hasattr(pipeline, "text_encoder_2")]:
        tokenizer = getattr(pipeline, f"tokenizer{name}")
        tokenizer.add_tokens(["<fox>", "<fox>_1"])
        encoder = getattr(pipeline, f"text_encoder{name}")
        encoder.resize_token_embeddings(len(tokenizer), mean_resizing=False)
    prompt = "a <fox> circle"
    with torch.no_grad():
        wanted = pipeline.encode_prompt(
            prompt,
            device=torch.device("cpu"),
            num_images_per_prompt=1,
            do_classifier_free_guidance=False,
        )[0]
    found = model(pipeline, 1).condition([prompt]).hidden
    torch.testing.assert_close(found, wanted, rtol=0, atol=1e-6)


@pytest.mark.parametrize("build", [stable_diffusion, stable_diffusion_xl])
@pytest.mark.parametrize("side", ["padding_side", "truncation_side"])
@pytest.mark.parametrize("count", [None, 1])
def test_tokens_are_on_the_side_where_the_stock_pipeline_has_them(
    build: Any, side: str, count: int | None
) -> None:
    """Which the tokenizer's folder says."""
    pipeline = build()
    for part in ("tokenizer", "tokenizer_2"):
        if hasattr(pipeline, part):
            setattr(getattr(pipeline, part), side, "left")
    prompt = SHORT if side == "padding_side" else f"blue {long(pipeline, 'circle')}"
    wanted = stock_embedding(pipeline, prompt)
    torch.testing.assert_close(model(pipeline, count).condition([prompt]).hidden, wanted)
    note = model(pipeline, count).note_on([prompt])
    assert side == "padding_side" or "loses 'blue" in (note or "")


@torch.no_grad()
def stock_embedding(pipeline: Any, prompt: str) -> torch.Tensor:
    given = {"num_images_per_prompt": 1, "do_classifier_free_guidance": False}
    return pipeline.encode_prompt(prompt, device=torch.device("cpu"), **given)[0]


def test_pieces_are_padded_on_the_side_that_one_is(pipeline: Any) -> None:
    tokenizer = copy.deepcopy(pipeline.tokenizer)
    tokenizer.padding_side = "left"
    one, mask = pieces(tokenizer, SHORT, 1)
    two, masks = pieces(tokenizer, SHORT, 2)
    assert two[0].tolist() == one[0].tolist()
    assert masks[0].tolist() == mask[0].tolist()
    assert mask.tolist()[0][0] == 0


def test_padding_is_left_out_where_the_text_encoder_is_to(pipeline: Any) -> None:
    masked = copy.copy(pipeline)
    masked.register_modules(text_encoder=copy.deepcopy(pipeline.text_encoder))
    masked.text_encoder.config.use_attention_mask = True
    wanted = stock_embedding(masked, SHORT)
    for count in (None, 1):
        torch.testing.assert_close(model(masked, count).condition([SHORT]).hidden, wanted)
    assert (wanted - stock_embedding(pipeline, SHORT)).abs().max() > 1e-3


def test_without_a_beginning_there_are_no_pieces() -> None:
    class Bare:
        model_max_length = 8
        num_special_tokens_to_add = staticmethod(lambda: 0)

        def __call__(self, text: str) -> Any:
            return SimpleNamespace(input_ids=[])

    with pytest.raises(UserError, match=r"^sampler\.prompt_chunks: .* leave it out"):
        pieces(Bare(), SHORT, 2)
