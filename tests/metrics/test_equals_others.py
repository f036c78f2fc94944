"""The same figures as torchmetrics, torch-fidelity and lpips give, to 1e-3, where they are here."""

import math
import warnings

import pytest
import torch

from nablaflow.errors import UserError
from nablaflow.metrics.frechet import frechet_between_gaussians
from nablaflow.metrics.frechet_influence import sample_moments
from nablaflow.metrics.kid import kernel_distance

DOUBLE = torch.float64


def _images(n: int, seed: int) -> torch.Tensor:
    return torch.rand(n, 3, 64, 64, generator=torch.Generator().manual_seed(seed))


def _features(n: int, d: int, seed: int) -> torch.Tensor:
    generator = torch.Generator().manual_seed(seed)
    return torch.randn(n, d, generator=generator) * torch.linspace(0.1, 2.0, d) + 0.1 * seed


def _frechet(x: torch.Tensor, y: torch.Tensor) -> float:
    return frechet_between_gaussians(sample_moments(x), sample_moments(y)).item()


def _ones(n: int) -> torch.Tensor:
    return torch.ones(1, n, dtype=DOUBLE)


@pytest.fixture
def random_inception(tmp_path, monkeypatch):
    """torch-fidelity's network with random weights, in a file: there are no others offline."""
    package = pytest.importorskip("torch_fidelity.feature_extractor_inceptionv3")
    kind = package.FeatureExtractorInceptionV3
    with monkeypatch.context() as patch, torch.random.fork_rng():
        torch.manual_seed(0)
        patch.setattr(package, "load_state_dict_from_url", lambda *a, **k: {})
        patch.setattr(kind, "load_state_dict", lambda self, state: None)
        network = kind("inception-v3-compat", ["2048"])
    path = tmp_path / "inception.pth"
    torch.save(network.state_dict(), path)
    return network, path


@pytest.mark.parametrize(("n", "d"), [(64, 20), (30, 100)])
def test_frechet_distance_of_torchmetrics(n: int, d: int):
    theirs = pytest.importorskip("torchmetrics.image.fid")
    x, y = _features(n, d, 1).double(), _features(n + 10, d, 2).double()
    expected = theirs._compute_fid(x.mean(0), x.T.cov(), y.mean(0), y.T.cov()).item()
    found = _frechet(x, y)
    assert found == pytest.approx(expected, rel=1e-3)


def test_frechet_distance_of_torch_fidelity():
    theirs = pytest.importorskip("torch_fidelity.metric_fid")
    x, y = _features(64, 20, 1).double(), _features(80, 20, 2).double()
    statistics = [{"mu": f.mean(0).numpy(), "sigma": f.T.cov().numpy()} for f in (x, y)]
    expected = theirs.fid_statistics_to_metric(*statistics, verbose=False)
    found = _frechet(x, y)
    assert found == pytest.approx(expected["frechet_inception_distance"], rel=1e-3)


def test_kernel_distance_of_torch_fidelity_and_torchmetrics():
    """Of one subset that is the whole sample."""
    fidelity = pytest.importorskip("torch_fidelity.metric_kid")
    metrics = pytest.importorskip("torchmetrics.image.kid")
    x, y = _features(50, 16, 1).double(), _features(50, 16, 2).double()
    found = kernel_distance(x, y, _ones(50), _ones(50)).item()
    theirs = fidelity.kid_features_to_metric(
        x, y, kid_subsets=1, kid_subset_size=50, verbose=False, rng_seed=0
    )
    assert found == pytest.approx(theirs["kernel_inception_distance_mean"], rel=1e-3)
    assert found == pytest.approx(metrics.poly_mmd(x, y).item(), rel=1e-3)


def test_precision_and_recall_of_torch_fidelity():
    theirs = pytest.importorskip("torch_fidelity.metric_prc")
    from nablaflow.metrics.prdc import Neighbourhoods

    x, y = _features(60, 4, 1), _features(60, 4, 2)
    near, ones = Neighbourhoods.of(x, y, k=3), torch.ones(60, dtype=DOUBLE)
    expected = theirs.prc_features_to_metric(x, y, prc_neighborhood=3, verbose=False)
    assert near.precision(ones, ones).item() == pytest.approx(expected["precision"], abs=1e-3)
    assert near.recall(ones, ones).item() == pytest.approx(expected["recall"], abs=1e-3)


def test_inception_features_are_torch_fidelitys(random_inception):
    from nablaflow.metrics.inception import Inception

    network, path = random_inception
    images = _images(4, 0)
    found = Inception(path)(images)
    assert found.shape == (4, 2048)
    torch.testing.assert_close(found, network((images * 255).round().byte())[0])


def test_inception_refuses_other_weights(random_inception, tmp_path):
    from nablaflow.metrics.inception import Inception

    other = tmp_path / "other.pth"
    torch.save({"a": torch.zeros(1)}, other)
    with pytest.raises(UserError, match="not torch-fidelity's"):
        Inception(other)


def test_fid_and_kid_of_torchmetrics_from_images_on(random_inception):
    """The whole way from pixels, with the same random network on both sides."""
    fid = pytest.importorskip("torchmetrics.image.fid")
    from nablaflow.metrics.inception import Inception

    network, path = random_inception
    x, y = _images(8, 0), _images(8, 1) ** 2
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        theirs = fid.FrechetInceptionDistance(
            feature=_Doubled(network), normalize=False, input_img_size=(3, 64, 64)
        ).set_dtype(DOUBLE)
    theirs.update((y * 255).round().byte(), real=True)
    theirs.update((x * 255).round().byte(), real=False)
    ours = Inception(path)
    found = _frechet(ours(x).double(), ours(y).double())
    assert found == pytest.approx(theirs.compute().item(), rel=1e-3)


class _Doubled(torch.nn.Module):
    """Features in float64, whose size torchmetrics finds by a trial."""

    def __init__(self, network: torch.nn.Module) -> None:
        super().__init__()
        self.hidden, self.num_features = [network], 2048  # its own precision stays

    def forward(self, images: torch.Tensor) -> torch.Tensor:
        return self.hidden[0](images)[0].double()


@pytest.fixture
def random_lpips(tmp_path):
    """The package's network on a trunk of random weights, and the trunk's file."""
    package = pytest.importorskip("lpips")
    models = pytest.importorskip("torchvision.models")
    with torch.random.fork_rng():
        torch.manual_seed(0)
        trunk = models.alexnet(weights=None)
    path = tmp_path / "alexnet.pth"
    torch.save(trunk.state_dict(), path)
    network = package.LPIPS(net="alex", pnet_rand=True, verbose=False)
    layers = {
        f"slice{s}.{i}.{part}": trunk.state_dict()[f"features.{i}.{part}"]
        for s, i in enumerate((0, 3, 6, 8, 10), start=1)
        for part in ("weight", "bias")
    }
    network.net.load_state_dict(layers)
    return network, path


def test_lpips_is_the_packages_own(random_lpips):
    from nablaflow.metrics.lpips_distance import Lpips

    network, path = random_lpips
    images = _images(4, 0)
    matrix = Lpips(path).matrix(images)
    assert torch.equal(matrix, matrix.T)
    expected = network(images[:1], images[2:3], normalize=True).item()
    assert matrix[0, 2].item() == pytest.approx(expected, rel=1e-3)
    assert math.isfinite(expected)
    assert expected > 0


def test_lpips_refuses_other_weights(random_lpips, tmp_path):
    from nablaflow.metrics.lpips_distance import Lpips

    other = tmp_path / "other.pth"
    torch.save({"a": torch.zeros(1)}, other)
    with pytest.raises(UserError, match="not torchvision's AlexNet"):
        Lpips(other)
