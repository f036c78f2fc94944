"""Models against the stock pipelines that they come from."""

from contextlib import nullcontext
from pathlib import Path
from typing import Any

import pytest
import torch
from diffusers import DPMSolverMultistepScheduler, PNDMScheduler
from diffusers.models.attention_processor import Attention
from diffusers.models.resnet import ResnetBlock2D
from torch import Tensor

from nablaflow.diffusion import trajectory_noise
from nablaflow.errors import UserError
from nablaflow.models import AdapterSettings, SamplerSettings, load_model, load_pipeline
from nablaflow.models.adapters import load_trainable_state, swapped, trainable_state
from nablaflow.models.lora_targets import automatic_targets
from nablaflow.models.pipelines import PipelineModel
from nablaflow.report.loading import Saved
from tests.support.pipelines import (
    LATENT,
    PIXELS,
    PROMPT,
    perturb,
    render,
    stable_diffusion,
    unconditional,
)

CPU = torch.device("cpu")
KINDS = ["lora", "full"]
FAMILIES = ["sd", "sd2", "ddpm"]


def load(folder: Path, adapter: dict[str, Any] | None = None, **sampler: Any) -> PipelineModel:
    return load_model(
        load_pipeline(str(folder)),
        SamplerSettings(**{"steps": 4, **sampler}),
        AdapterSettings(**(adapter or {})),
        CPU,
    )


@torch.no_grad()
def sample(model: PipelineModel, seeds: list[int], *, reference: bool = False) -> Tensor:
    prompts, noise = [PROMPT] * len(seeds), trajectory_noise(seeds)
    with model.reference() if reference else nullcontext():
        drawn = model.sample(prompts, noise)
    return model.decode(drawn.x0)


@pytest.mark.parametrize("family", ["sd", "sd2"])
@pytest.mark.parametrize("guidance", [1.0, 5.0])
def test_sampling_gives_the_stock_pipelines_image(
    folders: dict[str, Path], family: str, guidance: float
) -> None:
    """The same noise through the pipeline's own call: text, guidance, kernels and decoder."""
    model = load(folders[family], guidance_scale=guidance)
    stock = load_pipeline(str(folders[family]))
    expected = [
        render(stock, steps=4, seed=seed, guidance_scale=guidance, eta=1.0) for seed in (3, 8)
    ]
    torch.testing.assert_close(sample(model, [3, 8]), torch.cat(expected), rtol=0, atol=1e-4)
    assert (expected[0] - expected[1]).abs().max() > 0.02


@pytest.mark.parametrize("told", [{}, {"clip_sample": False}], ids=["unsaid", "said"])
def test_the_reports_lines_sample_as_the_policy_whatever_scheduler_the_folder_has(
    tmp_path: Path, told: dict[str, bool]
) -> None:
    """Stable Diffusion 1.5 names PNDM, which adds no noise, and says nothing of clipping."""
    pipeline = stable_diffusion()
    betas = {"beta_start": 0.00085, "beta_end": 0.012, "beta_schedule": "scaled_linear"}
    pipeline.scheduler = PNDMScheduler(**betas, skip_prk_steps=True, steps_offset=1)
    pipeline.scheduler.register_to_config(**told)
    pipeline.save_pretrained(tmp_path)
    model = load(tmp_path, guidance_scale=5.0)
    call = model.stock_call(PROMPT) | model.stock_steps()
    kind, scheduler = type(pipeline).__name__, model.stock_scheduler()
    code = Saved(tmp_path, False, kind, "", call, scheduler=scheduler).code()
    names: dict[str, Any] = {}
    exec("\n".join(code.splitlines()[:-1]), names)
    assert "eta=1.0" in code.splitlines()[-1]
    found = render(names["pipeline"], steps=4, seed=3, guidance_scale=5.0, eta=1.0)
    torch.testing.assert_close(found, sample(model, [3]), rtol=0, atol=1e-4)


@pytest.mark.parametrize("sampler", ["ddpm", "sde-dpmsolver++"])
@pytest.mark.parametrize("made", [stable_diffusion, unconditional])
def test_the_reports_lines_sample_by_the_runs_sampler(
    tmp_path: Path, made: Any, sampler: str
) -> None:
    """A folder's own PNDM adds no noise."""
    pipeline = made()
    given = {"beta_schedule": "scaled_linear", "timestep_spacing": "leading"}
    pipeline.scheduler = PNDMScheduler(**given, skip_prk_steps=True)
    pipeline.save_pretrained(tmp_path)
    model = load(tmp_path, name=sampler, sigma_floor=1e-9)
    call, kind = model.stock_call(PROMPT) | model.stock_steps(), type(pipeline).__name__
    code = Saved(tmp_path, False, kind, "", call, scheduler=model.stock_scheduler()).code()
    names: dict[str, Any] = {}
    exec("\n".join(code.splitlines()[:-1]), names)
    text = {} if made is unconditional else {"guidance_scale": 1.0}
    found = render(names["pipeline"], steps=4, seed=3, **text)
    torch.testing.assert_close(found, sample(model, [3]), rtol=0, atol=1e-4)
    assert "eta" not in call


def test_a_folders_own_scheduler_is_left_where_it_takes_the_steps(
    folders: dict[str, Path],
) -> None:
    assert load(folders["sd"]).stock_scheduler() is None
    assert load(folders["ddpm"]).stock_scheduler() is None, "its pipeline asks for no noise"


@pytest.mark.parametrize("family", ["sd", "sd2"])
def test_sampling_with_sde_dpmsolver_gives_the_stock_pipelines_image(
    folders: dict[str, Path], family: str
) -> None:
    model = load(folders[family], name="sde-dpmsolver++", guidance_scale=3.0)
    stock: Any = load_pipeline(str(folders[family]))
    stock.scheduler = DPMSolverMultistepScheduler.from_config(
        stock.scheduler.config,
        algorithm_type="sde-dpmsolver++",
        solver_order=1,
        final_sigmas_type="sigma_min",
    )
    expected = render(stock, steps=4, seed=3, guidance_scale=3.0)
    torch.testing.assert_close(sample(model, [3]), expected, rtol=0, atol=1e-4)


def test_sampling_an_unconditional_model_gives_the_stock_pipelines_image(
    folders: dict[str, Path],
) -> None:
    model = load(folders["ddpm"], name="ddpm", sigma_floor=1e-9)
    stock = load_pipeline(str(folders["ddpm"]))
    expected = torch.cat([render(stock, steps=4, seed=seed) for seed in (3, 8)])
    torch.testing.assert_close(sample(model, [3, 8]), expected, rtol=0, atol=1e-4)


def embed(pipeline: Any, prompt: str) -> Tensor:
    tokens = pipeline.tokenizer(
        prompt, padding="max_length", max_length=pipeline.tokenizer.model_max_length
    )
    return pipeline.text_encoder(torch.tensor([tokens.input_ids]))[0]


@torch.no_grad()
def by_hand(pipeline: Any, x: Tensor, timestep: Tensor, scale: float, negative: str) -> Tensor:
    """The guided output of a bare pipeline's network."""
    if not hasattr(pipeline, "text_encoder"):
        return pipeline.unet(x, timestep).sample
    with_prompt, without = (
        pipeline.unet(x, timestep, embed(pipeline, text).expand(len(x), -1, -1)).sample
        for text in (PROMPT, negative)
    )
    return without + scale * (with_prompt - without)


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize(
    ("family", "scale"), [("sd", 1.0), ("sd", 5.0), ("sd2", 5.0), ("ddpm", 1.0)]
)
def test_reference_and_policy_start_as_the_bare_network_and_only_the_policy_moves(
    folders: dict[str, Path], family: str, scale: float, kind: str
) -> None:
    bare = load_pipeline(str(folders[family]))
    negative = {} if family == "ddpm" else {"negative_prompt": "a blue square"}
    model = load(folders[family], {"kind": kind}, guidance_scale=scale, **negative)
    x = torch.randn(3, *model.state_shape, generator=torch.Generator().manual_seed(1))
    k = torch.tensor([1, 3, 4])
    output = by_hand(bare, x, model.process.timestep[k], scale, "a blue square")
    alpha_bar = model.process.alpha_bar[k].reshape(-1, 1, 1, 1)
    if family == "sd2":
        x0_hat = alpha_bar.sqrt() * x - (1 - alpha_bar).sqrt() * output
    else:
        x0_hat = (x - (1 - alpha_bar).sqrt() * output) / alpha_bar.sqrt()
    if family == "ddpm":
        x0_hat = x0_hat.clamp(-1, 1)
    condition = model.condition([PROMPT] * 3)
    with torch.no_grad():
        policy = model.predict(x, k, condition).x0_hat
        torch.testing.assert_close(policy, x0_hat, rtol=1e-4, atol=1e-4)
        perturb(model.network)
        with model.reference():
            reference = model.predict(x, k, condition).x0_hat
        torch.testing.assert_close(reference, x0_hat, rtol=1e-4, atol=1e-4)
        moved = model.predict(x, k, condition).x0_hat
    assert (moved - policy).abs().max() > 0.01


@pytest.mark.parametrize("kind", KINDS)
def test_the_policy_is_back_after_an_error_inside_the_reference(
    folders: dict[str, Path], kind: str
) -> None:
    model = load(folders["sd"], {"kind": kind})
    perturb(model.network)
    before = sample(model, [1])
    with pytest.raises(RuntimeError, match="inside"), model.reference():
        raise RuntimeError("inside")
    assert torch.equal(sample(model, [1]), before)
    assert (sample(model, [1], reference=True) - before).abs().max() > 1e-3


@pytest.mark.parametrize("family", FAMILIES)
def test_a_lora_trains_only_low_rank_factors_of_the_layers_named(
    folders: dict[str, Path], family: str
) -> None:
    model = load(folders[family], {"rank": 3, "targets": ["to_q", "to_v"]})
    names = list(trainable_state(model.network))
    assert names
    assert all("lora_" in name for name in names)
    assert {part for name in names for part in name.split(".") if part.startswith("to_")} == {
        "to_q",
        "to_v",
    }
    ranks = {
        (value.shape[0] if "lora_A" in name else value.shape[1])
        for name, value in trainable_state(model.network).items()
    }
    assert ranks == {3}


def test_states_and_images_have_the_sizes_promised(folders: dict[str, Path]) -> None:
    for family, image in (("sd", PIXELS), ("ddpm", LATENT)):
        model = load(folders[family])
        assert model.image_size == (image, image)
        images = sample(model, [1])
        assert images.shape == (1, 3, image, image)
        assert 0 <= images.min() <= images.max() <= 1


def test_a_grey_model_gives_grey_rgb_images() -> None:
    pipeline = unconditional(channels=1)
    model = load_model(pipeline, SamplerSettings(steps=2), AdapterSettings(), CPU)
    x0 = torch.linspace(-1, 1, LATENT**2).reshape(1, 1, LATENT, LATENT)
    images = model.decode(x0)
    for channel in images[0]:
        torch.testing.assert_close(channel, (x0[0, 0] + 1) / 2)


@pytest.mark.parametrize("family", ["sd", "ddpm"])
def test_decoding_passes_gradients_on(folders: dict[str, Path], family: str) -> None:
    model = load(folders[family])
    x0 = 0.1 * torch.randn(1, *model.state_shape, generator=torch.Generator().manual_seed(0))
    x0.requires_grad_()
    model.decode(x0).sum().backward()
    assert x0.grad.isfinite().all()
    assert x0.grad.abs().max() > 0


@pytest.mark.parametrize("kind", KINDS)
def test_saved_parameters_come_back(folders: dict[str, Path], kind: str) -> None:
    model = load(folders["sd"], {"kind": kind})
    start = sample(model, [1])
    state = trainable_state(model.network)
    perturb(model.network)
    moved = sample(model, [1])
    with swapped(model.network, state):
        assert torch.equal(sample(model, [1]), start)
    assert torch.equal(sample(model, [1]), moved)
    load_trainable_state(model.network, state)
    assert torch.equal(sample(model, [1]), start)


def test_a_lora_for_another_model_is_refused(folders: dict[str, Path]) -> None:
    small, other = load(folders["sd"]), load(folders["ddpm"])
    before = trainable_state(small.network)
    with pytest.raises(ValueError, match="another network"):
        load_trainable_state(small.network, trainable_state(other.network))
    assert all(torch.equal(before[name], v) for name, v in trainable_state(small.network).items())


@pytest.mark.parametrize("changes", [{"rank": 3}, {"targets": ["to_q"]}])
def test_a_lora_of_another_shape_is_refused_and_nothing_is_half_loaded(
    folders: dict[str, Path], changes: dict[str, Any]
) -> None:
    model, other = load(folders["sd"]), load(folders["sd"], changes)
    perturb(other.network)
    before = trainable_state(model.network)
    with pytest.raises(ValueError, match="another network"):
        load_trainable_state(model.network, trainable_state(other.network))
    assert all(torch.equal(before[name], v) for name, v in trainable_state(model.network).items())


def bare_layers(folder: Path, *endings: str) -> dict[str, torch.nn.Module]:
    """The layers of the bare network whose paths end so."""
    network: Any = load_pipeline(str(folder)).unet
    ends = tuple(f".{ending}" for ending in endings)
    return {name: part for name, part in network.named_modules() if name.endswith(ends)}


PROJECTIONS = ("to_q", "to_k", "to_v", "to_out.0")
CONVOLUTIONS = ("conv1", "conv2", "conv_shortcut")


@pytest.mark.parametrize("family", ["sd", "ddpm"])
def test_convolutions_are_adapted_where_attention_holds_little(
    folders: dict[str, Path], family: str
) -> None:
    """Under a quarter of either tiny network's parameters."""
    targets = PROJECTIONS + CONVOLUTIONS
    model = load(folders[family])
    wanted = bare_layers(folders[family], *targets)
    names = {name.split(".lora_")[0] for name in trainable_state(model.network)}
    assert names == set(wanted)
    covered = model.adapter.coverage
    parameters = sum(p.numel() for part in wanted.values() for p in part.parameters())
    bare: Any = load_pipeline(str(folders[family])).unet
    total = sum(p.numel() for p in bare.parameters())
    assert (covered.adapted, covered.total) == (parameters, total)
    assert covered.trained == sum(v.numel() for v in trainable_state(model.network).values())
    assert sum(covered.layers.values()) == len(wanted)
    assert f"{parameters / total:.0%} of the network's" in str(covered)


def test_a_network_without_attention_has_its_convolutions_adapted() -> None:
    network = torch.nn.Sequential(ResnetBlock2D(in_channels=4, temb_channels=None, groups=2))
    assert automatic_targets(network) == ["conv1", "conv2"]


def test_attention_alone_is_adapted_where_it_holds_much() -> None:
    network = torch.nn.Sequential(
        ResnetBlock2D(in_channels=4, temb_channels=None, groups=2), Attention(64, 4, 4, 16)
    )
    assert automatic_targets(network) == list(PROJECTIONS)


def test_a_network_with_neither_needs_names() -> None:
    with pytest.raises(UserError, match=r"adapter\.targets: auto finds neither"):
        automatic_targets(torch.nn.Sequential(torch.nn.Linear(2, 2)))


def test_targets_that_no_layer_has_are_refused(folders: dict[str, Path]) -> None:
    with pytest.raises(UserError, match=r"adapter\.targets.*to_nowhere"):
        load(folders["sd"], {"targets": ["to_nowhere"]})
    with pytest.raises(UserError, match=r"adapter\.targets: no layer is called to_vv"):
        load(folders["sd"], {"targets": ["to_q", "to_vv"]})
    with pytest.raises(UserError, match=r"adapter\.targets: not all of .*to_out\.0"):
        load(folders["sd"], {"targets": ["to_q", "to_out"]})


def test_guidance_of_an_unconditional_model_is_refused(folders: dict[str, Path]) -> None:
    with pytest.raises(UserError, match=r"sampler\.guidance_scale"):
        load(folders["ddpm"], guidance_scale=3.0)


@pytest.mark.parametrize("setting", [{"negative_prompt": "fog"}, {"prompt_chunks": 2}])
def test_a_setting_that_the_model_does_not_read_is_refused(
    folders: dict[str, Path], setting: dict[str, Any]
) -> None:
    with pytest.raises(UserError, match=rf"sampler\.{next(iter(setting))}: a DDPMPipeline has no"):
        load(folders["ddpm"], **setting)


def test_encoders_that_are_moved_off_are_back_for_a_prompt_alone(
    folders: dict[str, Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    model, stay = load(folders["sd"], guidance_scale=3.0), load(folders["sd"], guidance_scale=3.0)
    moves: list[str] = []
    encoder = model.pipeline.text_encoder
    monkeypatch.setattr(encoder, "to", lambda device: moves.append(str(device)))
    model.device = torch.device("meta")  # stands for an accelerator
    model.offload_encoders()
    with model._encoders_at_work():  # type: ignore[attr-defined]
        moves.append("at work")
    assert moves == ["cpu", "meta", "at work", "cpu"]
    model.device = CPU
    found, wanted = (m.condition([PROMPT, "a star"]) for m in (model, stay))
    assert torch.equal(found.hidden, wanted.hidden)
    assert torch.equal(found.negative.hidden, wanted.negative.hidden)


def test_encoders_leave_a_stock_pipelines_call_before_its_denoiser_is_at_work(
    folders: dict[str, Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    """So that the largest of both is held at once, and not their sum."""
    model = load(folders["sd"], guidance_scale=3.0)
    events: list[str] = []
    pipeline = model.pipeline
    monkeypatch.setattr(pipeline.text_encoder, "to", lambda place: events.append(str(place)))
    model._rest = torch.device("meta")  # type: ignore[attr-defined]
    encode = pipeline.encode_prompt

    def encoding(*given: Any, **options: Any) -> Any:
        events.append("encoder")
        return encode(*given, **options)

    monkeypatch.setattr(pipeline, "encode_prompt", encoding)
    forward = model.network.forward

    def denoising(*given: Any, **options: Any) -> Any:
        events.append("denoiser")
        return forward(*given, **options)

    monkeypatch.setattr(model.network, "forward", denoising)
    model.stock_image(pipeline, PROMPT, num_inference_steps=2)
    assert events == ["cpu", "encoder", "meta", "denoiser", "meta", "denoiser", "meta"]
    assert not model.network._forward_pre_hooks


def test_a_network_that_learns_its_variance_is_refused() -> None:
    pipeline = unconditional()
    pipeline.unet.register_to_config(out_channels=6)
    with pytest.raises(UserError, match="learned variance"):
        load_model(pipeline, SamplerSettings(), AdapterSettings(), CPU)


def test_a_distilled_network_with_a_guidance_embedding_is_refused() -> None:
    pipeline = stable_diffusion()
    pipeline.unet.register_to_config(time_cond_proj_dim=8)
    with pytest.raises(UserError, match="guidance embedding"):
        load_model(pipeline, SamplerSettings(), AdapterSettings(), CPU)
