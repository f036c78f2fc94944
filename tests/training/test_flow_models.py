"""The whole loop on models of flow matching: every method, saved and resumed."""

from __future__ import annotations

import copy
import math
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch

from nablaflow.errors import UserError
from nablaflow.methods import METHODS
from nablaflow.runs.setup import Parts
from nablaflow.training.loop import Trainer
from tests.support.flow_pipelines import FLOW_FAMILIES

MakeParts = Callable[..., Parts]
KINDS = ["sd3", "flux-dev", "klein"]
QUICK = ["residual-nabla-db", "nabla-td", "ddpo"]


@pytest.fixture(scope="module")
def folders(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    root = tmp_path_factory.mktemp("flow")
    for name in KINDS:
        FLOW_FAMILIES[name]().save_pretrained(root / name)
    return {name: root / name for name in KINDS}


def overrides(folder: Path, method: str) -> list[str]:
    size = ["sampler.height=16", "sampler.width=16"]
    of_model = [f"model={folder}", "adapter.targets=auto", "sampler.name=memoryless", *size]
    extra = ["method.estimator=adjoint"] if method == "value-matching" else []
    return [*of_model, f"method={method}", *extra]


def assert_trains(trainer: Trainer) -> None:
    before = copy.deepcopy(trainer.checkpoint().tensors["policy"])
    record = trainer.step()
    after = trainer.checkpoint().tensors["policy"]
    assert all(math.isfinite(value) for value in record.values()), record
    assert any(not torch.equal(before[name], after[name]) for name in before)


@pytest.mark.parametrize("family", KINDS)
@pytest.mark.parametrize("method", QUICK)
def test_a_method_trains(
    make_parts: MakeParts, folders: dict[str, Path], family: str, method: str
) -> None:
    assert_trains(make_parts(*overrides(folders[family], method)).trainer)


@pytest.mark.slow
@pytest.mark.parametrize("family", KINDS)
@pytest.mark.parametrize("method", [name for name in METHODS if name not in QUICK])
def test_every_other_method_trains(
    make_parts: MakeParts, folders: dict[str, Path], family: str, method: str
) -> None:
    assert_trains(make_parts(*overrides(folders[family], method)).trainer)


def test_the_untouched_policy_is_the_reference_on_its_own_paths(
    make_parts: MakeParts, folders: dict[str, Path]
) -> None:
    trainer = make_parts(*overrides(folders["sd3"], "residual-nabla-db")).trainer
    record: dict[str, Any] = trainer.step()
    assert record["kl"] == pytest.approx(0.0, abs=1e-6)


@pytest.mark.parametrize("family", KINDS)
def test_a_resumed_run_goes_on_as_it_would_have(
    make_parts: MakeParts, folders: dict[str, Path], family: str
) -> None:
    given = overrides(folders[family], "residual-nabla-db")
    whole, first, second = (make_parts(*given).trainer for _ in range(3))
    whole.step()
    first.step()
    second.restore(first.checkpoint())
    whole.step()
    second.step()
    expected, found = (t.checkpoint().tensors["policy"] for t in (whole, second))
    assert all(torch.equal(expected[name], found[name]) for name in expected)


def test_the_exact_step_is_refused_under_noise_that_is_not_memoryless(
    make_parts: MakeParts, folders: dict[str, Path]
) -> None:
    given = overrides(folders["sd3"], "nabla-td")
    with pytest.raises(UserError, match=r"method\.step: .*flow-grpo"):
        make_parts(*given, "sampler.name=flow-grpo", "method.step=exact")
    assert_trains(make_parts(*given, "sampler.name=flow-grpo", "method.step=published").trainer)


def test_euler_is_no_sampler_to_train_with(make_parts: MakeParts, folders: dict[str, Path]) -> None:
    with pytest.raises(UserError, match=r"sampler\.name: euler adds no noise"):
        make_parts(*overrides(folders["sd3"], "ddpo"), "sampler.name=euler")
