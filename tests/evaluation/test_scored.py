"""The scores that ship beside the embedded models' banks: right, and for those rewards alone."""

from __future__ import annotations

from typing import Any

import pytest
import torch

from nablaflow import nano
from nablaflow.config.defaults import demo_settings
from nablaflow.config.overrides import load_config
from nablaflow.evaluation import measure
from nablaflow.evaluation.bank import spread
from nablaflow.evaluation.bank_size import BankSize
from nablaflow.evaluation.measure import Subject, bank_of
from nablaflow.evaluation.scored import FEATURES, is_of_the_package, shipped_scores
from nablaflow.features import pooled_pixels
from nablaflow.models import load_model, load_pipeline
from nablaflow.models.pipelines import PipelineModel
from nablaflow.progress import unseen
from nablaflow.rewards import SCORED, NamedReward, load
from nablaflow.rewards.pixels import warmth
from nablaflow.storage.cached import key_of, read_cached
from nablaflow.typing import Batch, Images

PROMPTS = demo_settings()["prompts"]


@pytest.fixture(scope="module", params=list(nano.MODELS))
def embedded(request: pytest.FixtureRequest) -> tuple[str, PipelineModel]:
    config = load_config(None, [], demo_settings(model=request.param))
    pipeline = load_pipeline(str(nano.path(request.param)))
    model = load_model(pipeline, config.sampler, config.adapter, torch.device("cpu"))
    return request.param, model


@torch.no_grad()
def test_they_are_what_scoring_gives(embedded: tuple[str, PipelineModel]) -> None:
    """On a twentieth of the bank, from all along it."""
    name, model = embedded
    states = (read_cached(nano.bank_path(name)) or {})["states"]
    which = torch.arange(0, len(states), 163)
    images = model.decode(states[which].float())
    texts = [PROMPTS[place] for place in spread(len(states), len(PROMPTS))[which].tolist()]
    shipped = read_cached(nano.scores_path(name)) or {}
    assert {*shipped} == {FEATURES, *SCORED}
    torch.testing.assert_close(
        shipped[FEATURES][which].float(), pooled_pixels(images), rtol=1e-3, atol=1e-4
    )
    for reward in SCORED:
        assert len(shipped[reward]) == len(states)
        torch.testing.assert_close(
            shipped[reward][which], load(reward)(images, texts), rtol=1e-3, atol=1e-4
        )


@pytest.mark.parametrize("model", nano.MODELS)
def test_they_are_of_the_bank_that_ships(model: str) -> None:
    assert key_of(nano.scores_path(model)) == key_of(nano.bank_path(model))


def namesake(images: Images, prompts: list[str]) -> Batch:
    return -warmth(images, prompts)


@pytest.mark.parametrize(
    ("reward", "known"),
    [
        *((load(name), True) for name in SCORED),
        (load({"name": "preference"}), True),
        (load(warmth), True),
        (NamedReward("warmth", namesake), False),
        (NamedReward("preference", namesake), False),
        (load({"name": "preference", "pessimism": 0.0}), False),
        (load("2*warmth"), False),
        (load("warmth + symmetry"), False),
        (load("shape_shown"), False),
    ],
    ids=lambda value: getattr(value, "name", str(value)),
)
def test_another_reward_is_scored(reward: NamedReward, known: bool) -> None:
    assert is_of_the_package(reward) is known
    key = key_of(nano.bank_path()) or ""
    assert (shipped_scores(key, reward, len(PROMPTS)) is not None) is known


def test_another_bank_is_scored() -> None:
    assert shipped_scores("another", load("warmth"), len(PROMPTS)) is None


@pytest.mark.parametrize("first", [8192, 2000])
def test_no_image_of_the_demos_bank_is_decoded(
    first: int, embedded: tuple[str, PipelineModel], monkeypatch: pytest.MonkeyPatch
) -> None:
    name, model = embedded
    whole = len((read_cached(nano.bank_path(name)) or {})["states"])
    config = load_config(None, [], demo_settings(model=name) | {"evaluation": {"bank": whole}})
    monkeypatch.setattr(measure, "states_key", lambda *_: key_of(nano.bank_path(name)))
    monkeypatch.setattr(measure, "measure_bank", None)
    size = BankSize(whole, min(first, whole))
    told: Any = (config, model, load("warmth"), PROMPTS, "the mark", 4.0, size)
    found = bank_of(Subject(*told), unseen)
    assert found is not None
    # As many as the tilt needs, where fewer were asked for.
    assert len(found) == size.first or size.first < len(found) <= whole
    shipped = read_cached(nano.scores_path(name)) or {}
    assert torch.equal(found.rewards, shipped["warmth"][: len(found)])
    assert torch.equal(found.features, shipped[FEATURES][: len(found)].float())
    assert torch.equal(found.prompt_index, spread(len(found), len(PROMPTS)))
