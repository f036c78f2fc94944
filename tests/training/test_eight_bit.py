"""AdamW of 8 bits: taken where it was asked for, refused in one line where it cannot work."""

from __future__ import annotations

import sys
from collections.abc import Callable
from types import SimpleNamespace

import pytest
import torch

from nablaflow.errors import UserError
from nablaflow.runs.setup import Parts
from nablaflow.training.eight_bit import eight_bit_adamw, refuse_divided

CPU, GPU = torch.device("cpu"), torch.device("cuda")


class Stored(torch.optim.AdamW):
    """In place of bitsandbytes' own, which needs a GPU."""


@pytest.fixture
def installed(monkeypatch: pytest.MonkeyPatch) -> None:
    package = SimpleNamespace(optim=SimpleNamespace(AdamW8bit=Stored))
    monkeypatch.setitem(sys.modules, "bitsandbytes", package)


def test_without_the_package_one_line_names_it(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setitem(sys.modules, "bitsandbytes", None)
    with pytest.raises(UserError, match=r"optimizer.name: .* pip install '.\[bitsandb"):
        eight_bit_adamw(GPU)


@pytest.mark.usefixtures("installed")
def test_it_is_the_packages_on_a_gpu_and_refused_elsewhere():
    assert eight_bit_adamw(GPU) is Stored
    with pytest.raises(UserError, match=r"optimizer.name: .* training is on the cpu"):
        eight_bit_adamw(CPU)


def test_a_run_on_the_processor_is_refused_before_it_trains(make_parts: Callable[..., Parts]):
    """Whether the package is there or not."""
    with pytest.raises(UserError, match=r"use optimizer\.name=adamw"):
        make_parts("optimizer.name=adamw8bit")


def test_processes_that_divide_the_weights_are_refused():
    with pytest.raises(UserError, match="FSDP2"):
        refuse_divided()
