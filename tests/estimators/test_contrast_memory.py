"""The fit of a value where memory is short: the same, in smaller parts."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

import pytest
import torch
from torch import Tensor

from nablaflow.estimators import LogFlowFit, ReferenceSamples, contrastive, fit_log_flow
from nablaflow.estimators.contrasts import Contrast
from nablaflow.exact.counter import PassCounter
from nablaflow.exact.mixture import GaussianMixture
from nablaflow.exact.model import MixtureModel
from nablaflow.exact.networks import ValueNetwork, VectorLogFlow
from nablaflow.exact.problem import Problem
from nablaflow.exact.rewards import LinearReward
from nablaflow.models import ConvLogFlow
from nablaflow.models.condition import Condition
from nablaflow.rewards import NamedReward
from nablaflow.training.fit_memory import fit_takes
from nablaflow.training.held import FLOAT

ROWS = 10


def a_contrast() -> tuple[ConvLogFlow, Contrast, Tensor]:
    """A network that has learned something, samples, and the timestep of each level."""
    generator = torch.Generator().manual_seed(0)
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        network = ConvLogFlow(3, 16, 0, channels=8)
        torch.nn.init.normal_(network.head[-1].weight)
    part = Contrast(
        x=torch.randn(ROWS, 3, 16, 16, generator=generator),
        k=torch.full((ROWS,), 2),
        weights=torch.softmax(torch.randn(ROWS, generator=generator, dtype=torch.float64), 0),
        condition=Condition(),
        prompt="",
    )
    return network, part, torch.tensor([0.0, 10.0, 500.0])


@pytest.mark.parametrize("at_once", [1, 3, 10, 96])
def test_the_gradient_is_the_same_in_parts(at_once: int):
    network, part, timestep = a_contrast()
    loss = part.loss(network(part.x, timestep[part.k], part.condition)) / contrastive.GROUPS
    loss.backward()
    found = contrastive.contrast_gradient(network, part, timestep, at_once)
    for gradient, (name, parameter) in zip(found, network.named_parameters(), strict=True):
        assert gradient is not None
        torch.testing.assert_close(gradient, parameter.grad, rtol=1e-4, atol=1e-6, msg=name)


class _Small(VectorLogFlow):
    """One that has no room for more rows than these under a gradient."""

    rows = 40

    def forward(self, x: Tensor, timestep: Tensor, condition: Condition) -> Tensor:
        if torch.is_grad_enabled() and len(x) > self.rows:
            raise torch.OutOfMemoryError("CUDA out of memory")
        return super().forward(x, timestep, condition)


class _Counted(MixtureModel):
    """Notes how many rows are predicted and decoded at once."""

    predicted: list[int]
    decoded: list[int]

    def predict(self, x: Tensor, *rest: object) -> object:
        self.predicted.append(len(x))
        return super().predict(x, *rest)

    def decode(self, x: Tensor) -> Tensor:
        self.decoded.append(len(x))
        return super().decode(x)


def a_fit(kind: type[VectorLogFlow], **sizes: int) -> tuple[_Counted, LogFlowFit]:
    prior = GaussianMixture(torch.zeros(1, 2), torch.eye(2)[None], torch.ones(1))
    problem = Problem(prior=prior, reward=LinearReward(torch.ones(2)), beta=1.0, steps=4)
    policy = ValueNetwork(2, 8, 1, inputs=2)
    model = _Counted(problem.prior, problem.process, policy, PassCounter())
    reward = NamedReward("sum", lambda images, prompts: images.flatten(1).sum(1))
    x0 = torch.randn(200, 1, 1, 2, generator=torch.Generator().manual_seed(1))
    rewards = x0.flatten(1).sum(1).double()
    samples = ReferenceSamples(x0, rewards, [""], model.condition([""]), [torch.arange(200)])
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        network = kind(2, 16, 1, PassCounter())
    model.predicted, model.decoded = [], []
    generator = torch.Generator().manual_seed(2)
    return model, fit_log_flow(network, model, reward, 1.0, samples, generator, **sizes)


@pytest.fixture
def _quick(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(contrastive, "MOST", 5)


@pytest.mark.usefixtures("_quick")
def test_a_network_without_room_for_a_contrast_gets_the_same_fit(
    capsys: pytest.CaptureFixture[str],
):
    (_, whole), (_, parts) = a_fit(VectorLogFlow), a_fit(_Small)
    assert "training.rollout_batch is now 24" in capsys.readouterr().err
    for name, value in whole.state().items():
        torch.testing.assert_close(parts.state()[name], value, rtol=1e-3, atol=1e-4, msg=name)


@pytest.mark.usefixtures("_quick")
def test_images_are_decoded_by_their_own_number_at_once():
    model, _ = a_fit(VectorLogFlow, batch=20, decode_batch=3)
    assert set(model.predicted) == {20, 10}  # of 50 that are held out
    assert set(model.decoded) == {3, 2}


def test_what_a_fit_takes_is_its_samples_its_network_and_what_a_contrast_saves(
    monkeypatch: pytest.MonkeyPatch,
):
    """Against the tensors that autograd says it saves of a real pass."""
    network, part, timestep = a_contrast()
    saved: dict[int, int] = {}

    def note(tensor: Tensor) -> Tensor:
        storage = tensor.untyped_storage()
        saved[storage.data_ptr()] = storage.nbytes()
        return tensor

    with torch.autograd.graph.saved_tensors_hooks(note, lambda tensor: tensor):
        value = network(part.x, timestep[part.k], part.condition)
    weights = {p.untyped_storage().data_ptr() for p in network.parameters()}
    activations = sum(size for where, size in saved.items() if where not in weights)
    del value
    monkeypatch.setattr("nablaflow.training.fit_memory.CONTRASTED", ROWS)
    model: Any = SimpleNamespace(
        state_shape=(3, 16, 16),
        process=SimpleNamespace(steps=2, timestep=timestep),
        condition=lambda prompts: Condition(),
    )
    none, some = (fit_takes(model, network.to("meta"), samples) for samples in (0, 7))
    assert some - none == 7 * FLOAT * 3 * 16 * 16
    parameters = FLOAT * sum(p.numel() for p in network.parameters())
    own = none - 4 * parameters
    assert activations <= own <= 1.6 * activations
