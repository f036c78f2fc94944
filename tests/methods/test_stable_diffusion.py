"""The methods on a whole, if tiny, Stable Diffusion: guidance, precision, micro-batches."""

from typing import Any

import pytest
import torch
from torch import Tensor

from nablaflow.diffusion import sample_trajectories, trajectory_noise
from nablaflow.estimators import Path
from nablaflow.methods import (
    AdjointMatching,
    Method,
    NablaDB,
    NablaTD,
    Networks,
    TerminalMatching,
    TrainingBatch,
)
from nablaflow.models import (
    AdapterSettings,
    FlowSettings,
    SamplerSettings,
    UNetFlowScore,
    load_model,
)
from nablaflow.models.pipelines import PipelineModel
from nablaflow.rewards import NamedReward
from tests.support.gaussian import rows
from tests.support.paper import paper
from tests.support.paths import training_batch
from tests.support.pipelines import WIDTH, perturb, stable_diffusion, unconditional

STEPS = 4
GUIDANCE = 5.0
PROMPTS = ["a red circle", "a blue square", "a circle"]
METHODS = [paper, NablaDB]
MATCHING = [AdjointMatching(beta=1.0), TerminalMatching(beta=1.0), NablaTD(beta=1.0)]


def name_of(method: Method) -> str:
    return method.name


def redness(images: Tensor, prompts: list[str]) -> Tensor:
    """Signed by the prompt, so that exchanged prompts show."""
    sign = torch.tensor([-1.0 if "blue" in prompt else 1.0 for prompt in prompts])
    return sign * (images[:, 0] - images[:, 2] ** 2).mean((1, 2))


def load(dtype: torch.dtype = torch.float32, *, trained: bool = False) -> PipelineModel:
    pipeline = stable_diffusion()
    pipeline.unet.to(dtype)
    pipeline.text_encoder.to(dtype)
    model = load_model(
        pipeline,
        SamplerSettings(steps=STEPS, guidance_scale=GUIDANCE),
        AdapterSettings(rank=2, targets=["to_q", "to_k", "to_v", "to_out.0"]),
        torch.device("cpu"),
    )
    if trained:
        perturb(model.network)
    return model


def flow_for(model: PipelineModel, width: int = WIDTH) -> UNetFlowScore:
    torch.manual_seed(3)
    flow = UNetFlowScore(FlowSettings(channels=[8, 16]), model.state_shape[0], 8, width)
    perturb(flow, scale=0.05)
    return flow


def sample(model: PipelineModel) -> Path:
    condition = model.condition(PROMPTS)
    found = sample_trajectories(
        lambda x, k: model.predict(x, k, condition),
        model.process,
        model.state_shape,
        trajectory_noise([1, 2, 3]),
        model.device,
        torch.tensor([[1, 3], [2, 4], [1, 4]]),
        keep_states=True,
    )
    return Path(found.x0, found.states, condition, PROMPTS, found.transitions)


def rollout(model: PipelineModel) -> TrainingBatch:
    return sample(model).batch()


def estimated(model: PipelineModel, method: Method, networks: Networks) -> TrainingBatch:
    """A rollout with the method's value gradients, if it has an estimator."""
    return training_batch(sample(model), method.value_estimator(), networks, method.beta)


def test_an_untrained_policy_is_the_reference_under_guidance() -> None:
    model = load()
    batch = rollout(model)
    networks = Networks(model, NamedReward("redness", redness))
    metrics = paper(beta=1.0).losses(batch, networks).metrics
    assert not metrics["mean_shift"].any()
    assert not metrics["kl"].any()
    perturb(model.network)
    moved = paper(beta=1.0).losses(batch, networks).metrics
    assert moved["kl"].min() > 1e-4


def test_the_forward_looking_gradient_goes_through_the_guided_prediction() -> None:
    """The same gradient from the bare network: two halves, guidance, Tweedie, decoder, reward."""
    model = load()
    batch = rollout(model)
    beta = 2.0
    networks = Networks(model, NamedReward("redness", redness))
    method = paper(beta=beta, weighting="constant")
    losses = method.losses(batch, networks)
    bare: Any = stable_diffusion()
    level = batch.transitions.k - 1
    alpha_bar = model.process.alpha_bar[level].reshape(-1, 1, 1, 1)
    x = batch.transitions.x_next.clone().requires_grad_()
    timestep = model.process.timestep[level]
    positive = bare.unet(x, timestep, batch.condition.hidden).sample
    negative = bare.unet(x, timestep, batch.condition.negative.hidden).sample
    epsilon = negative + GUIDANCE * (positive - negative)
    x0_hat = (x - (1 - alpha_bar).sqrt() * epsilon) / alpha_bar.sqrt()
    ended = (level == 0).reshape(-1, 1, 1, 1)
    clean = torch.where(ended, x, x0_hat)
    images = (bare.vae.decode(clean / 0.4).sample / 2 + 0.5).clamp(0, 1)
    (gradient,) = torch.autograd.grad(redness(images, batch.prompts).sum(), x)
    expected = beta * torch.where(ended, 1.0, alpha_bar) * gradient
    norms = expected.flatten(1).norm(dim=1)
    assert norms.min() > 1e-4
    torch.testing.assert_close(losses.metrics["value_gradient_norm"], norms, rtol=1e-3, atol=1e-6)
    # An untrained policy without a flow: the forward residual is this gradient and nothing else.
    forward = losses.terms["forward"].detach()
    torch.testing.assert_close(forward, expected.square().flatten(1).mean(1), rtol=2e-3, atol=1e-9)


@pytest.mark.parametrize("method", [*[kind(beta=1.0) for kind in METHODS], *MATCHING], ids=name_of)
@pytest.mark.parametrize("precision", ["half weights", "autocast"])
def test_the_reward_and_its_gradient_are_float32_in_mixed_precision(
    method: Method, precision: str
) -> None:
    model = load(torch.bfloat16 if precision == "half weights" else torch.float32)
    seen: list[torch.dtype] = []

    def watched(images: Tensor, prompts: list[str]) -> Tensor:
        seen.append(images.dtype)
        images.register_hook(lambda gradient: seen.append(gradient.dtype))
        product = images[:, 0].flatten(1) @ images[:, 1].flatten(1).T  # autocast would lower it
        seen.append(product.dtype)
        return redness(images, prompts)

    flow = flow_for(model)
    networks = Networks(model, NamedReward("watched", watched), flow, flow)
    with torch.autocast("cpu", torch.bfloat16, enabled=precision == "autocast"):
        losses = method.losses(estimated(model, method, networks), networks)
    assert set(seen) == {torch.float32}
    assert len(seen) >= 3
    assert {term.dtype for term in losses.terms.values()} == {torch.float32}
    assert losses.total.isfinite().all()
    losses.total.sum().backward()
    trained = [p for p in model.network.parameters() if p.requires_grad]
    assert {p.dtype for p in trained} == {torch.float32}
    assert all(p.grad.isfinite().all() for p in trained)


@pytest.mark.parametrize("kind", METHODS)
@pytest.mark.parametrize("graph", [False, True])
def test_micro_batches_add_up_to_the_batch(kind: type[Method], graph: bool) -> None:
    model = load(trained=True)
    flow = flow_for(model)
    networks = Networks(model, NamedReward("redness", redness), flow, flow)
    method = kind(beta=1.0, reverse_policy_graph=graph, forward_flow="attached")
    batch = rollout(model)
    parameters = [p for p in [*model.network.parameters(), *flow.parameters()] if p.requires_grad]

    def summed(*parts: Tensor) -> tuple[Tensor, Tensor]:
        total = sum(method.losses(rows(batch, part), networks).total.sum() for part in parts)
        found = torch.autograd.grad(total, parameters, allow_unused=True)
        flat = torch.cat([g.flatten() for g in found if g is not None])
        return total.detach(), flat

    order = torch.tensor([5, 0, 3, 1, 4, 2])
    whole, parts = summed(torch.arange(6)), summed(*order.split(2))
    torch.testing.assert_close(parts[0], whole[0], rtol=1e-4, atol=0.0)
    scale = float(whole[1].abs().max())
    torch.testing.assert_close(parts[1], whole[1], rtol=1e-3, atol=1e-4 * scale)


@pytest.mark.parametrize(
    "settings",
    [
        {},
        {"reverse_policy_graph": True},
        {"forward_looking_predictor": "reference"},
    ],
    ids=["published", "graph", "reference"],
)
def test_gradient_checkpointing_changes_no_gradient(settings: dict[str, Any]) -> None:
    """A checkpointed layer runs again in the backward pass; it must be the same layer then."""
    model = load(trained=True)
    model.allow_second_derivatives()
    flow = flow_for(model)
    networks = Networks(model, NamedReward("redness", redness), flow, flow)
    method = paper(beta=1.0, **settings)
    batch = rollout(model)
    parameters = [p for p in model.network.parameters() if p.requires_grad]

    def gradients() -> tuple[Tensor, ...]:
        return torch.autograd.grad(method.losses(batch, networks).total.sum(), parameters)

    plain = gradients()
    network: Any = model.network
    network.enable_gradient_checkpointing()
    network.train()
    runs: list[int] = []
    network.down_blocks[0].resnets[0].register_forward_pre_hook(lambda *_: runs.append(1))
    found = gradients()
    assert len(runs) > 3, "layers ran again"
    for ours, theirs in zip(found, plain, strict=True):
        torch.testing.assert_close(ours, theirs, rtol=1e-4, atol=1e-7)


@pytest.mark.parametrize(
    "method",
    [paper(beta=1.0, reverse_weight=0.0), AdjointMatching(beta=1.0)],
    ids=name_of,
)
def test_a_faint_reward_keeps_its_gradient_in_fp16(method: Method) -> None:
    """Unscaled, a gradient of 1e-8 is 0 in half precision."""
    model = load(torch.float16)

    def value(scale: float) -> Tensor:
        reward = NamedReward("redness", lambda images, texts: scale * redness(images, texts))
        networks = Networks(model, reward)
        batch = estimated(model, method, networks)
        return method.losses(batch, networks).metrics["value_gradient_norm"]

    torch.testing.assert_close(value(1e-8) * 1e8, value(1.0), rtol=1e-2, atol=1e-6)
    assert value(1e-38).isfinite().all(), "gradients below the smallest normal number"


def test_the_flow_score_is_float32_under_autocast() -> None:
    model = load()
    flow = flow_for(model)
    x = torch.randn(2, *model.state_shape, generator=torch.Generator().manual_seed(0))
    inputs = (x, torch.tensor([3, 700]), model.condition(PROMPTS[:2]))
    with torch.autocast("cpu", torch.bfloat16):
        mixed = flow(*inputs)
    assert torch.equal(mixed, flow(*inputs))


@pytest.mark.parametrize(
    "method",
    [*[kind(beta=1.0, reverse_policy_graph=True) for kind in METHODS], *MATCHING],
    ids=name_of,
)
def test_an_unconditional_model_is_trained_alike(method: Method) -> None:
    model = load_model(
        unconditional(),
        SamplerSettings(steps=STEPS, name="ddpm"),
        AdapterSettings(rank=2),
        torch.device("cpu"),
    )
    flow = flow_for(model, width=0)
    networks = Networks(model, NamedReward("redness", redness), flow, flow)
    losses = method.losses(estimated(model, method, networks), networks)
    losses.total.sum().backward()
    trained = [p for p in model.network.parameters() if p.requires_grad]
    assert all(p.grad.isfinite().all() for p in trained)
    assert max(float(p.grad.abs().max()) for p in trained) > 0
