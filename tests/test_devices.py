"""Devices by name, on machines that are pretended."""

import pytest
import torch

from nablaflow.devices import best_device, find_device, is_here, peak_device_mb
from nablaflow.errors import UserError


@pytest.fixture
def two_cards(monkeypatch):
    monkeypatch.setattr("torch.cuda.is_available", lambda: True)
    monkeypatch.setattr("torch.cuda.device_count", lambda: 2)
    monkeypatch.setattr("torch.backends.mps.is_available", lambda: False)


def test_auto_is_the_best_there_is(two_cards, monkeypatch):
    assert find_device("auto", "--device") == best_device() == torch.device("cuda")
    monkeypatch.setattr("torch.cuda.is_available", lambda: False)
    assert find_device("auto", "--device") == torch.device("cpu")
    monkeypatch.setattr("torch.backends.mps.is_available", lambda: True)
    assert find_device("auto", "--device") == torch.device("mps")


def test_what_is_here(two_cards):
    assert find_device("cuda:1", "--device") == torch.device("cuda:1")
    assert [is_here(torch.device(name)) for name in ("cpu", "cuda", "cuda:2", "mps", "meta")] == [
        True,
        True,
        False,
        False,
        False,
    ]


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("cuda:2", "--device: there is no cuda:2 here; use auto or cpu"),
        ("mps", "--device: there is no mps here"),
        ("card", "--device: no such device 'card'; give auto, cpu, cuda, cuda:1 or mps"),
        ("", "--device: no such device ''"),
    ],
)
def test_what_is_not_here_is_one_line(two_cards, name, message):
    with pytest.raises(UserError, match=f"^{message}"):
        find_device(name, "--device")


def test_the_peak_of_a_cards_memory_is_what_torch_counted(monkeypatch):
    counted = {torch.device("cuda"): 3 * 2**20, torch.device("cuda:1"): 5 * 2**20}
    monkeypatch.setattr("torch.cuda.max_memory_allocated", counted.get)
    assert peak_device_mb(torch.device("cuda")) == 3.0
    assert peak_device_mb(torch.device("cuda:1")) == 5.0
    assert peak_device_mb(torch.device("cpu")) is None
