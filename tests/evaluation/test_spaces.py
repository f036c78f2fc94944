"""What metrics look at, by name."""

import pytest
import torch
from transformers import BatchEncoding

from nablaflow import features
from nablaflow.config.settings import EvaluationSettings
from nablaflow.errors import UserError
from nablaflow.evaluation import spaces
from nablaflow.evaluation.plan import EvaluationPlan
from nablaflow.evaluation.spaces import Space, check_features, load_space
from nablaflow.features import FeatureExtractor, pooled_pixels
from nablaflow.metrics.quadratic import cosine, euclidean
from nablaflow.rewards.clip import ClipSimilarity, read_clip
from nablaflow.rewards.clip_score import ClipScore
from tests.support.clip import TINY, random_checkpoint, write_folder

CPU = torch.device("cpu")


def test_pixels_are_pooled_pixels():
    images = torch.rand(3, 3, 16, 16, generator=torch.Generator().manual_seed(0))
    space = load_space("pixels", CPU)
    assert space.dim == 192
    assert space.distance is euclidean
    torch.testing.assert_close(space.look(images, ["a"] * 3), pooled_pixels(images))


def test_pictures_are_eight_bits():
    images = torch.tensor([0.0, 0.5, 1.2]).reshape(1, 3, 1, 1)
    assert load_space("pictures", CPU).look(images, ["a"]).flatten().tolist() == [0, 128, 255]


def test_unknown_features_are_one_line():
    with pytest.raises(UserError, match=r"--features: no features 'pixel'; did you mean pixels\?"):
        check_features("pixel")


def test_default_metrics_that_are_refused_are_left_out_and_named_ones_are_errors():
    plan = EvaluationPlan.of(None, "pixels", 8, 2, CPU)
    assert list(plan.metrics) == ["reward", "diversity", "vendi", "mmd"]
    assert list(plan.spaces) == ["pixels"]
    with pytest.raises(UserError, match="frechet: 8 images are too few, 193 are needed"):
        EvaluationPlan.of(["frechet"], "pixels", 8, 2, CPU)
    assert list(EvaluationPlan.of(["frechet"], "pixels", 193, 2, CPU).metrics) == ["frechet"]


@pytest.mark.parametrize(
    ("names", "words"),
    [
        (["vendy"], r"^evaluation\.metrics: no metric 'vendy'; did you mean vendi\?$"),
        (
            ["reward"],
            r"^evaluation\.metrics: reward is measured always, as reward_mean;",
        ),
        (["frechet"], r"^frechet: 8 images are too few, 193 are needed; use evaluation\.n=193$"),
    ],
)
def test_a_summary_s_further_metrics_are_refused_by_their_setting(names: list[str], words: str):
    with pytest.raises(UserError, match=words):
        EvaluationPlan.of_summary(EvaluationSettings(n=8, metrics=names), 2, CPU)


@pytest.mark.parametrize(
    ("name", "n", "enough"),
    [("reward", 6, True), ("diversity", 11, False), ("diversity", 12, True), ("recall", 19, False)],
)
def test_least_numbers_are_of_all_images(name: str, n: int, enough: bool):
    """Three prompts: images go around, so 11 leave one of them three."""
    if enough:
        assert list(EvaluationPlan.of([name], "pixels", n, 3, CPU).metrics) == [name]
        return
    with pytest.raises(UserError, match=name):
        EvaluationPlan.of([name], "pixels", n, 3, CPU)


def test_weights_that_are_missing_stop_before_any_work(monkeypatch):
    def missing(device: torch.device) -> Space:
        raise UserError("inception: no weights here")

    monkeypatch.setitem(spaces._OTHERS, "inception", missing)
    with pytest.raises(UserError, match="no weights here"):
        EvaluationPlan.of(["fid"], "pixels", 4096, 2, CPU)


def test_clip_features_and_clip_score_share_one_network(tmp_path, monkeypatch):
    write_folder(tmp_path, TINY, random_checkpoint(TINY))
    apart = features.load("clip", weights=str(tmp_path))
    loaded = []

    def network(settings: ClipScore) -> ClipSimilarity:
        loaded.append(settings)
        return ClipSimilarity(read_clip(tmp_path, "clip"), _one_token, 100.0)

    def again(name: str, *, device: torch.device) -> FeatureExtractor:
        raise AssertionError(f"{name} is loaded a second time")

    monkeypatch.setattr(ClipScore, "network", network)
    monkeypatch.setattr(spaces, "load", again)
    plan = EvaluationPlan.of(["clip-score", "diversity"], "clip", 8, 2, CPU)
    assert len(loaded) == 1
    assert plan.spaces["clip"].distance is cosine
    assert plan.spaces["clip"].dim == apart.dim
    images = torch.rand(3, 3, 40, 40, generator=torch.Generator().manual_seed(0))
    found = plan.spaces["clip"].look(images, ["a"] * 3)
    torch.testing.assert_close(found, apart(images))
    assert plan.spaces["clip-score"].look(images, ["a"] * 3).shape == (3,)


def _one_token(prompts: list[str], **options: object) -> BatchEncoding:
    ids = torch.tensor([[3, 2]] * len(prompts))
    return BatchEncoding({"input_ids": ids, "attention_mask": torch.ones_like(ids)})
