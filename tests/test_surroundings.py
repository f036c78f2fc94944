"""A run in a program that has tensors of its own: neither changes the other."""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager, nullcontext, suppress
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch

import nablaflow as nf
from nablaflow.surroundings import own_surroundings

pytestmark = pytest.mark.usefixtures("lean_runs", "train_only")
Align = Callable[..., nf.Run]


@pytest.fixture
def align(tiny_model: Path, tmp_path: Path) -> Align:
    asked: dict[str, Any] = {
        "model": str(tiny_model),
        "reward": "brightness",
        "prompts": ["a circle", "a star"],
        "method": nf.ResidualNablaDB(beta=10.0),
        "sampler": {"steps": 4},
        "adapter": {"rank": 2},
        "guard": None,
        "evaluation": {"n": 4},
        "updates": 1,
        "training": {
            "prompts_per_update": 1,
            "images_per_prompt": 2,
            "transition_fraction": 0.5,
            "trackers": [],
            "device": "cpu",
        },
    }
    return lambda name, **given: nf.align(**{**asked, "output_dir": tmp_path / name, **given})


def figures(run: nf.Run) -> list[dict[str, Any]]:
    return [{k: v for k, v in record.items() if "seconds" not in k} for record in run.metrics]


@contextmanager
def float64() -> Iterator[None]:
    torch.set_default_dtype(torch.float64)
    try:
        yield
    finally:
        torch.set_default_dtype(torch.float32)


SURROUNDINGS: dict[str, Callable[[], AbstractContextManager[Any]]] = {
    "float64": float64,
    "no_grad": torch.no_grad,
    "inference": torch.inference_mode,
    "autocast": lambda: torch.autocast("cpu", dtype=torch.bfloat16),
    "device": lambda: torch.device("meta"),
    "other seed": lambda: nullcontext(torch.manual_seed(7)),
}


def test_what_is_set_for_other_tensors_does_not_reach_it(align: Align):
    expected = figures(align("plain"))
    for name, surroundings in SURROUNDINGS.items():
        inside = surroundings()
        with inside:
            grad, dtype = torch.is_grad_enabled(), torch.get_default_dtype()
            assert figures(align(name)) == expected, name
            assert (torch.is_grad_enabled(), torch.get_default_dtype()) == (grad, dtype)


@pytest.mark.parametrize("name", SURROUNDINGS)
def test_nor_the_laboratory(name: str):
    problem = nf.exact.named_problem("ring")
    asked: dict[str, Any] = {"updates": 2, "batch": 8, "n": 100}
    expected = nf.exact.evaluate(problem, **asked)
    with SURROUNDINGS[name]():
        assert torch.equal(nf.exact.evaluate(problem, **asked).samples, expected.samples)


def test_nor_the_choice_of_beta_which_draws_no_number_of_the_programs(tiny_model: Path):
    asked: dict[str, Any] = {"reward": "warmth", "prompts": ["a star"], "sampler": {"steps": 2}}
    expected = nf.choose_beta(model=str(tiny_model), **asked)
    for surroundings in SURROUNDINGS.values():
        with surroundings():
            before = torch.get_rng_state()
            assert nf.choose_beta(model=str(tiny_model), **asked) == expected
            assert torch.equal(torch.get_rng_state(), before)


def test_nor_what_is_made_of_a_run(align: Align, monkeypatch: pytest.MonkeyPatch):
    found: list[bool] = []

    def plain(*_: Any, **__: Any) -> Any:
        clean = torch.get_default_dtype() == torch.float32 and torch.is_grad_enabled()
        clean = clean and not torch.is_autocast_enabled("cpu")
        found.append(clean and torch.get_default_device().type == "cpu")
        return torch.nn.Linear(1, 1)

    run = align("run")
    monkeypatch.setattr("nablaflow.runs.run.export_run", plain)
    run = replace(run, lora=run.folder / "model")  # whose weights are all of the pipeline
    monkeypatch.setattr("nablaflow.runs.run.load_pipeline", plain)
    for surroundings in SURROUNDINGS.values():
        with surroundings(), suppress(AttributeError):  # of the empty export
            assert not run.pipeline().weight.is_inference()
            run.export("merged")
    assert found == [True] * 2 * len(SURROUNDINGS)


def test_random_numbers_after_it_are_those_that_would_have_come(align: Align):
    torch.manual_seed(3)
    expected = torch.rand(2)
    torch.manual_seed(3)
    align("run")
    assert torch.equal(torch.rand(2), expected)


def test_a_program_may_go_to_another_folder_meanwhile(
    align: Align, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    here, there = tmp_path / "here", tmp_path / "there"
    here.mkdir()
    there.mkdir()
    monkeypatch.chdir(here)
    run = align("run", output_dir="run", on_update=lambda record: monkeypatch.chdir(there))
    assert run.folder == here / "run"
    assert len(run.metrics) == 1
    assert list(there.iterdir()) == []
    (run.folder / "lora").mkdir(exist_ok=True)
    (run.folder / "summary.json").write_text("{}")
    monkeypatch.chdir(here)
    found = nf.Run.open("run")
    monkeypatch.chdir(there)
    assert len(found.metrics) == 1
    assert found.lora.is_dir()


def test_of_two_threads_the_last_puts_back_what_the_first_found():
    torch.manual_seed(3)
    state, first = torch.get_rng_state(), own_surroundings()
    with float64():
        first.__enter__()
        torch.manual_seed(0)

        def beside() -> None:
            with own_surroundings():
                first.__exit__(None, None, None)
                assert torch.get_default_dtype() == torch.float32

        with own_surroundings():
            pass
        beside()
        assert torch.get_default_dtype() == torch.float64
        assert torch.equal(torch.get_rng_state(), state)


def test_one_within_another_is_refused_and_the_other_goes_on(align: Align):
    found: list[str] = []

    def again(record: dict[str, Any]) -> None:
        for begin in (lambda: align("inner"), lambda: in_a_thread(lambda: align("beside"))):
            with pytest.raises(nf.UserError, match="a run is under way in this process") as caught:
                begin()
            found.append(str(caught.value))

    assert len(align("outer", on_update=again).metrics) == 1
    assert len(found) == 2
    assert in_a_thread(lambda: align("after")).metrics


def in_a_thread(work: Callable[[], Any]) -> Any:
    """What it gives or raises."""
    found: list[Any] = []

    def told() -> None:
        try:
            found.append(work())
        except Exception as error:
            found.append(error)

    thread = threading.Thread(target=told)
    thread.start()
    thread.join()
    if isinstance(found[0], Exception):
        raise found[0]
    return found[0]
