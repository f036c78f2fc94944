"""LPIPS diversity with a network of another kind in its place; the package may not be here."""

import pytest
import torch

from nablaflow.errors import UserError
from nablaflow.metrics import lpips_distance
from nablaflow.metrics.bootstrap import Resampling
from nablaflow.metrics.catalog import METRICS
from nablaflow.metrics.contract import View
from nablaflow.metrics.lpips_distance import Lpips
from nablaflow.metrics.quadratic import euclidean


class _Difference(torch.nn.Module):
    """Mean absolute difference in the place of LPIPS; counts what is moved to a device."""

    moves = 0

    def _apply(self, *arguments, **options):
        _Difference.moves += 1
        return super()._apply(*arguments, **options)

    def forward(self, first, second, normalize):
        return (first - second).abs().mean((1, 2, 3), keepdim=True)


@pytest.fixture
def built(monkeypatch) -> list[str]:
    """The devices that networks were built for, none so far."""
    devices: list[str] = []

    def build(self, weights=None, device="cpu"):
        devices.append(str(device))
        self._network, self._device = _Difference().to(device), torch.device(device)

    monkeypatch.setattr(Lpips, "__init__", build)
    monkeypatch.setattr(_Difference, "moves", 0)
    lpips_distance._network.cache_clear()
    yield devices
    lpips_distance._network.cache_clear()


def _view(images: int, seed: int = 0) -> View:
    generator = torch.Generator().manual_seed(seed)
    rows = torch.randint(256, (2 * images, 3, 4, 4), generator=generator, dtype=torch.uint8)
    return View(rows, torch.arange(2).repeat(images), euclidean)


def _resampling() -> Resampling:
    return Resampling(torch.Generator().manual_seed(0), 20)


def test_the_network_is_built_and_moved_once_for_all_models_of_a_run(built):
    metric = METRICS["lpips"]
    metric.ready()
    for seed in range(3):
        view = _view(5, seed)
        metric.measure(view, view, _resampling())
    assert built == ["cpu"]
    assert _Difference.moves == 1


def test_it_is_the_mean_over_the_pairs_of_a_prompt(built):
    view = _view(5)
    found = METRICS["lpips"].measure(view, view, _resampling())
    rows = (view.rows.double() / 255.0).flatten(1)
    means = []
    for prompt in (0, 1):
        own = rows[view.prompt_index == prompt]
        means.append(torch.pdist(own, p=1).mean().item() / rows.shape[1])
    assert found.value == pytest.approx(sum(means) / 2, rel=1e-5)
    assert found.low <= found.value <= found.high


def test_too_few_images_are_refused_before_the_network_is_built(built):
    with pytest.raises(UserError, match="lpips: 3 images"):
        METRICS["lpips"].measure(_view(3), _view(3), _resampling())
    assert built == []


def test_a_network_that_cannot_be_had_is_asked_for_again(built, monkeypatch):
    build = Lpips.__init__

    def refuse(self, weights=None, device="cpu"):
        raise UserError("lpips: no weights")

    monkeypatch.setattr(Lpips, "__init__", refuse)
    with pytest.raises(UserError, match="no weights"):
        METRICS["lpips"].ready()
    monkeypatch.setattr(Lpips, "__init__", build)
    METRICS["lpips"].ready()
    assert built == ["cpu"]
