"""Families of flow matching against the stock pipelines that they come from."""

from pathlib import Path
from typing import Any

import pytest
import torch
from diffusers import FlowMatchHeunDiscreteScheduler
from diffusers.pipelines.flux.pipeline_flux import FluxPipeline
from torch import Tensor

from nablaflow.diffusion import sample_trajectories, trajectory_noise
from nablaflow.errors import UserError
from nablaflow.models import AdapterSettings, SamplerSettings, load_model, load_pipeline
from nablaflow.models.adapters import trainable_state
from nablaflow.models.attention import fused_attention
from nablaflow.models.export import save_policy
from nablaflow.models.packed_latents import packed, positions, unpacked
from nablaflow.models.pipelines import PipelineModel
from nablaflow.models.rehearsal import rehearse
from tests.support.flow_parts import FEW, PIXELS
from tests.support.flow_pipelines import FLOW_FAMILIES, sd3
from tests.support.padded_pipelines import PADDED_FAMILIES
from tests.support.pipelines import PROMPT, perturb

CPU = torch.device("cpu")
STEPS = 4
SAME = 1e-4
GUIDANCE = {
    **{"sd3": 4.0, "sd3-without-t5": 1.0, "flux-dev": 3.5, "klein": 3.0},
    **{"z-image": 3.0, "qwen-image": 4.0, "chroma": 3.0},
}
"""Of those that read it."""
KINDS = ["sd3", "flux-dev", "klein", *PADDED_FAMILIES]
"""One of each class of pipeline."""


def load(
    folder: Path, adapter: dict[str, Any] | None = None, dtype: Any = torch.float32, **sampler: Any
) -> PipelineModel:
    given = {"steps": STEPS, "height": PIXELS, "width": 2 * PIXELS, "name": "euler"}
    if folder.name in GUIDANCE:
        given["guidance_scale"] = GUIDANCE[folder.name]
    torch.manual_seed(0)
    return load_model(
        load_pipeline(str(folder), dtype, exact_decoder=True),
        SamplerSettings(**{**given, **sampler}),
        AdapterSettings(**{"rank": 2, **(adapter or {})}),
        CPU,
    )


@torch.no_grad()
def sample(model: PipelineModel, seeds: list[int]) -> Tensor:
    condition = model.condition([PROMPT] * len(seeds))
    drawn = sample_trajectories(
        lambda x, k: model.predict(x, k, condition),
        model.process,
        model.state_shape,
        trajectory_noise(seeds),
        CPU,
    )
    return model.decode(drawn.x0)


def guided(family: str) -> dict[str, Any]:
    """By the stock call's own arguments."""
    scale = GUIDANCE.get(family, 1.0)
    if family == "z-image":  # positive + g (positive - negative)
        return {"guidance_scale": scale - 1.0}
    if family == "qwen-image":
        return {"true_cfg_scale": scale, "negative_prompt": ""}
    return {"guidance_scale": scale}


def stock_image(folder: Path, seed: int, lora: Path | None = None, **call: Any) -> Tensor:
    """By the stock pipeline's own call, decoder and all, at a size that is not square."""
    pipeline: Any = load_pipeline(str(folder))
    if lora is not None:
        pipeline.load_lora_weights(lora)
    pipeline.set_progress_bar_config(disable=True)
    images = pipeline(
        prompt=PROMPT,
        height=PIXELS,
        width=2 * PIXELS,
        **guided(folder.name),
        num_inference_steps=STEPS,
        generator=torch.Generator().manual_seed(seed),
        output_type="np",
        **call,
    ).images
    return torch.from_numpy(images).permute(0, 3, 1, 2)


@pytest.mark.parametrize("family", FLOW_FAMILIES)
def test_the_euler_sampler_gives_the_stock_pipelines_image(
    folders: dict[str, Path], family: str
) -> None:
    """Text, guidance, packing, the shift by size, the network's units, the decoder."""
    model = load(folders[family])
    assert model.image_size == (PIXELS, 2 * PIXELS)
    expected = [stock_image(folders[family], seed) for seed in (3, 8)]
    torch.testing.assert_close(sample(model, [3, 8]), torch.cat(expected), rtol=0, atol=SAME)
    assert (expected[0] - expected[1]).abs().max() > 0.02


@pytest.mark.parametrize("family", [*KINDS, "sd3-without-t5"])
def test_as_many_tokens_are_given_as_asked_for(folders: dict[str, Path], family: str) -> None:
    model = load(folders[family], max_sequence_length=3)
    expected = stock_image(folders[family], 3, max_sequence_length=3)
    torch.testing.assert_close(sample(model, [3]), expected, rtol=0, atol=SAME)
    assert (expected - stock_image(folders[family], 3)).abs().max() > 10 * SAME
    assert model.stock_call(PROMPT)["max_sequence_length"] == 3


def test_a_prompt_is_cut_at_the_tokens_asked_for_where_there_is_a_t5(
    folders: dict[str, Path],
) -> None:
    shorter = load(folders["sd3"], max_sequence_length=3)
    assert "a red circle" in (shorter.note_on(["a red circle"]) or "")
    without = load(folders["sd3-without-t5"], max_sequence_length=1, name="memoryless")
    assert without.note_on(["a red circle"]) is None, "its tokens are CLIP's and zeros"


@pytest.mark.parametrize("family", ["klein", "z-image"])
def test_a_templates_tokens_count_among_those_that_are_read(
    folders: dict[str, Path], family: str
) -> None:
    """So a prompt is named as cut just where another end of it changes nothing."""
    template = len("<|im_start|>")  # each letter is a token to a tiny model's tokenizer
    model = load(folders[family], max_sequence_length=template + 8, name="memoryless")
    for length in range(6, 11):
        ends = ["q" * (length - 1) + end for end in "xy"]
        first, second = (model.condition([prompt]).hidden for prompt in ends)
        assert first is not None
        assert second is not None
        note = model.note_on(ends) or ""
        assert ("loses" in note) == torch.equal(first, second)
        assert ("are then the same as another prompt" in note) == torch.equal(first, second)
    assert f"max_sequence_length={template + 9}" in (model.note_on(["q" * 9]) or "")
    assert "loses 'qq'" in (load(folders[family], max_sequence_length=1).note_on(["qq"]) or "")


@pytest.mark.parametrize("family", ["sd3", "flux-dev", "klein", "chroma"])
def test_a_tokenizers_own_length_cuts_nothing(folders: dict[str, Path], family: str) -> None:
    """The stock pipelines ask it for as many tokens as the settings say."""
    model: Any = load(folders[family], name="memoryless")
    getattr(model.pipeline, model.tokenizers[-1]).model_max_length = 20
    ends = ["a " * 30 + end for end in ("circle", "square")]
    first, second = (model.condition([prompt]).hidden for prompt in ends)
    assert first is not None
    assert second is not None
    assert not torch.equal(first, second)
    note = model.note_on(ends) or ""
    assert "truncated" not in note
    assert "shorten" not in note


@pytest.mark.parametrize(("given", "said"), [(3, "=4"), (None, "=512"), (512, None)])
def test_more_tokens_are_the_remedy_where_a_pipeline_takes_more(
    folders: dict[str, Path], given: int | None, said: str | None
) -> None:
    """Stable Diffusion 3's default is half of what its pipeline takes."""
    model = load(folders["sd3"], max_sequence_length=given, name="memoryless")
    prompt = "a red circle" if given == 3 else "red " * 600
    note = model.note_on([prompt]) or ""
    assert "shorten them" in note
    assert note.endswith("shorten them" if said is None else f"sampler.max_sequence_length{said}")


@pytest.mark.parametrize("family", FLOW_FAMILIES)
def test_a_saved_lora_gives_the_policys_image_in_the_stock_pipeline(
    folders: dict[str, Path], tmp_path: Path, family: str
) -> None:
    model = load(folders[family], {"alpha": 3.0}, **FEW)
    untouched = sample(model, [3])
    perturb(model.network)
    policy = sample(model, [3])
    saved = save_policy(model, str(folders[family]), tmp_path)
    assert saved == tmp_path / "lora"
    found = stock_image(folders[family], 3, saved, **FEW)
    torch.testing.assert_close(policy, found, rtol=0, atol=SAME)
    assert (policy - untouched).abs().max() > 0.02


@pytest.mark.parametrize("family", KINDS)
def test_a_fully_trained_transformer_is_saved_whole(
    folders: dict[str, Path], tmp_path: Path, family: str
) -> None:
    model = load(folders[family], {"kind": "full"}, **FEW)
    perturb(model.network, scale=0.05)
    saved = save_policy(model, str(folders[family]), tmp_path)
    renamed = saved.rename(tmp_path / family)  # the guidance of a test goes by the folder's name
    found = stock_image(renamed, 3, **FEW)
    torch.testing.assert_close(sample(model, [3]), found, rtol=0, atol=SAME)


@pytest.mark.parametrize("family", KINDS)
def test_rehearsal_passes_under_memoryless_noise(
    folders: dict[str, Path], tmp_path: Path, family: str
) -> None:
    model = load(folders[family], name="memoryless", **FEW)
    assert rehearse(model, str(folders[family]), tmp_path) is None
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("family", KINDS)
def test_the_reference_stays_when_the_policy_moves(folders: dict[str, Path], family: str) -> None:
    model = load(folders[family], **FEW)
    condition = model.condition([PROMPT])
    x = torch.randn(1, *model.state_shape, generator=torch.Generator().manual_seed(0))
    k = torch.tensor([2])
    with torch.no_grad():
        before = model.predict(x, k, condition)
        perturb(model.network)
        with model.reference():
            assert torch.equal(model.predict(x, k, condition).x0_hat, before.x0_hat)
        assert (model.predict(x, k, condition).x0_hat - before.x0_hat).abs().max() > 0.01


@pytest.mark.parametrize("family", KINDS)
def test_the_policy_can_be_differentiated_twice(folders: dict[str, Path], family: str) -> None:
    """By finite differences of its first derivative along a direction."""
    model = load(folders[family], **FEW)
    model.allow_second_derivatives()
    condition = model.condition([PROMPT])
    generator = torch.Generator().manual_seed(0)
    x, direction = torch.randn(2, 1, *model.state_shape, generator=generator)
    k = torch.tensor([2])

    def slope(at: Tensor) -> Tensor:
        leaf = at.clone().requires_grad_()
        energy = model.predict(leaf, k, condition).x0_hat.square().sum()
        return torch.autograd.grad(energy, leaf, create_graph=True)[0]

    leaf = x.clone().requires_grad_()
    energy = model.predict(leaf, k, condition).x0_hat.square().sum()
    (gradient,) = torch.autograd.grad(energy, leaf, create_graph=True)
    (second,) = torch.autograd.grad((gradient * direction).sum(), leaf)
    step = 3e-3
    difference = (slope(x + step * direction) - slope(x - step * direction)) / (2 * step)
    error = (second - difference.detach()).norm() / second.norm()
    assert error < 0.02


@pytest.mark.parametrize("family", KINDS)
def test_plain_attention_predicts_what_the_fused_does(
    folders: dict[str, Path], family: str
) -> None:
    model = load(folders[family], **FEW)
    condition = model.condition([PROMPT])
    x = torch.randn(1, *model.state_shape, generator=torch.Generator().manual_seed(0))
    k = torch.tensor([2])
    with torch.no_grad():
        plain = model.predict(x, k, condition).x0_hat
        with fused_attention(model.network):
            fused = model.predict(x, k, condition).x0_hat
    torch.testing.assert_close(plain, fused, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("family", KINDS)
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_in_half_precision_kernels_and_images_are_float32(
    folders: dict[str, Path], family: str, dtype: torch.dtype
) -> None:
    whole, half = (load(folders[family], dtype=kind, **FEW) for kind in (torch.float32, dtype))
    condition = half.condition([PROMPT])
    x = torch.randn(1, *half.state_shape, generator=torch.Generator().manual_seed(0))
    k = torch.tensor([2])
    with torch.no_grad():
        found = half.predict(x, k, condition)
        expected = whole.predict(x, k, whole.condition([PROMPT]))
    assert found.x0_hat.dtype == found.epsilon.dtype == torch.float32
    assert (found.x0_hat - expected.x0_hat).norm() < 0.05 * expected.x0_hat.norm()
    assert half.decode(found.x0_hat).dtype == torch.float32
    assert all(value.dtype == torch.float32 for value in trainable_state(half.network).values())


def test_encoders_off_the_accelerator_embed_as_before(folders: dict[str, Path]) -> None:
    model = load(folders["sd3"])
    before = model.condition([PROMPT, "a blue square"])
    other = load(folders["sd3"])
    other.offload_encoders()
    after = other.condition([PROMPT, "a blue square"])
    assert before.hidden is not None
    assert before.pooled is not None
    assert torch.equal(before.hidden, after.hidden)  # type: ignore[arg-type]
    assert torch.equal(before.pooled, after.pooled)  # type: ignore[arg-type]
    assert (before.pooled[0] - before.pooled[1]).abs().max() > 0


def test_packing_is_the_stock_pipelines() -> None:
    x = torch.randn(2, 4, 6, 10, generator=torch.Generator().manual_seed(0))
    expected = FluxPipeline._pack_latents(x, 2, 4, 6, 10)
    assert torch.equal(packed(x), expected)
    assert torch.equal(unpacked(expected, 6, 10), x)
    ids = FluxPipeline._prepare_latent_image_ids(2, 3, 5, "cpu", torch.float32)
    assert torch.equal(positions(3, 5), ids)


# --- what is refused, and what is said ------------------------------------------------------------


def test_what_flux_is_not_given_is_refused(folders: dict[str, Path]) -> None:
    with pytest.raises(UserError, match=r"sampler\.guidance_scale: .*schnell"):
        load(folders["flux-schnell"], guidance_scale=2.0)
    with pytest.raises(UserError, match=r"sampler\.guidance_scale: a distilled"):
        load(folders["klein-distilled"], guidance_scale=2.0)
    for family in ("flux-dev", "klein"):
        with pytest.raises(UserError, match=r"sampler\.negative_prompt"):
            load(folders[family], negative_prompt="blue")


def test_a_distilled_model_is_said_to_be_one(folders: dict[str, Path]) -> None:
    note = load(folders["flux-dev"]).note_on([PROMPT])
    assert note is not None
    assert "the reference is the model at sampler.guidance_scale=3.5" in note
    assert load(folders["flux-schnell"], name="memoryless").note_on([PROMPT]) is None


def test_noise_that_makes_for_no_tilt_is_said(folders: dict[str, Path]) -> None:
    note = load(folders["sd3"], name="flow-grpo").note_on([PROMPT])
    assert note is not None
    assert "not the tilt" in note
    assert load(folders["sd3"], name="memoryless").note_on([PROMPT]) is None


def test_another_scheduler_than_eulers_is_said() -> None:
    """A stock pipeline of the folder takes Heun's steps, and its images are others."""
    kinds: dict[Any, bool] = {"euler": True, "memoryless": False}
    for name, said in kinds.items():
        pipeline: Any = sd3()
        pipeline.scheduler = FlowMatchHeunDiscreteScheduler(shift=3.0)
        model = load_model(pipeline, SamplerSettings(name=name), AdapterSettings(), CPU)
        line = "own scheduler, FlowMatchHeunDiscreteScheduler, takes other steps than euler"
        assert (line in (model.note_on([PROMPT]) or "")) == said


def test_a_prompt_is_measured_by_each_encoder(folders: dict[str, Path]) -> None:
    long = " ".join(["red"] * 300)
    note = load(folders["sd3"]).note_on([long])
    assert note is not None
    assert "CLIP reads 16 tokens and cuts them: " in note
    assert "the T5 reads 256 tokens and cuts them: " in note
    assert "prompt_chunks" not in note
    assert load(folders["flux-dev"], guidance_scale=1.0).note_on([" ".join(["red"] * 200)])


def test_sizes_that_do_not_fit_are_refused(folders: dict[str, Path]) -> None:
    with pytest.raises(UserError, match=r"sampler\.height: 18 pixels .* multiple of 4.*use 1?6|20"):
        load(folders["sd3"], height=18)
    with pytest.raises(UserError, match=r"sampler\.width: .*up to 32 pixels"):
        load(folders["sd3"], width=64)


def test_a_scheduler_of_betas_is_refused() -> None:
    pipeline = sd3()
    pipeline.scheduler.register_to_config(use_karras_sigmas=True)
    with pytest.raises(UserError, match="use_karras_sigmas"):
        load_model(pipeline, SamplerSettings(name="memoryless"), AdapterSettings(), CPU)


def test_an_inpainting_transformer_is_refused() -> None:
    pipeline = sd3()
    pipeline.transformer.register_to_config(in_channels=9)
    with pytest.raises(UserError, match="does not return what it is given"):
        load_model(pipeline, SamplerSettings(), AdapterSettings(), CPU)
