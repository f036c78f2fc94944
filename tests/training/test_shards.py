"""What FSDP2 divides, in a group of one process: dividing is torch's, its use is ours."""

from __future__ import annotations

import copy
from collections.abc import Iterator

import pytest
import torch
from torch import nn

from nablaflow.models.adapters import load_trainable_state, trainable_parameters, trainable_state
from nablaflow.models.divided import is_divided, part_like, plain_copy, whole_of
from nablaflow.training.processes import BUCKET, buckets
from nablaflow.training.shards import Shards

CPU = torch.device("cpu")


@pytest.fixture(scope="module", autouse=True)
def _group() -> Iterator[None]:
    store = torch.distributed.HashStore()
    torch.distributed.init_process_group("gloo", store=store, rank=0, world_size=1)
    yield
    torch.distributed.destroy_process_group()


class Block(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.conv = nn.Conv2d(4, 4, 3, padding=1)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return x + self.conv(x).tanh()


class Network(nn.Module):
    _repeated_blocks = ("Block",)

    def __init__(self) -> None:
        super().__init__()
        self.inside = nn.Conv2d(4, 4, 1).requires_grad_(False)
        self.blocks = nn.ModuleList([Block(), Block()])

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        x = self.inside(x)
        for block in self.blocks:
            x = block(x)
        return x


def make() -> nn.Module:
    """As a denoiser is: channels_last, which FSDP2 refuses for a parameter."""
    torch.manual_seed(0)
    return Network().to(memory_format=torch.channels_last)


def loss(network: nn.Module, x: torch.Tensor) -> torch.Tensor:
    """With second derivatives, as the published form has."""
    x = x.detach().requires_grad_()
    found = network(x)
    (slope,) = torch.autograd.grad(found.square().sum(), x, create_graph=True)
    return found.square().mean() + slope.square().mean()


def test_steps_on_parts_are_the_steps_of_the_whole():
    x = torch.randn(2, 4, 5, 5, generator=torch.Generator().manual_seed(1))
    plain, network = make(), make()
    wanted = torch.optim.AdamW(trainable_parameters(plain), lr=0.1)
    shards = Shards(network, CPU, 1)
    optimizer = torch.optim.AdamW(trainable_parameters(network), lr=0.1)
    shards.gather()
    for _ in range(3):
        wanted.zero_grad()
        loss(plain, x).backward()
        wanted.step()
        with torch.no_grad():
            network(x)  # a rollout
        loss(network, x).backward()
        with shards.divided():
            assert all(is_divided(value) for value in trainable_parameters(network))
            optimizer.step()
        assert not any(is_divided(value) for value in network.parameters())
        torch.testing.assert_close(trainable_state(network), trainable_state(plain))
    state, plainly = whole_of(optimizer.state_dict()), wanted.state_dict()
    for row, values in plainly["state"].items():
        torch.testing.assert_close(state["state"][row], values)


def test_a_state_is_put_back_in_parts_and_stays():
    network = make()
    shards = Shards(network, CPU, 1)
    shards.gather()
    state = {name: value + 1.0 for name, value in trainable_state(network).items()}
    with shards.divided():
        load_trainable_state(network, state)
    torch.testing.assert_close(trainable_state(network), state)
    with shards.divided():
        pass
    torch.testing.assert_close(trainable_state(network), state)


@torch.no_grad()
def test_weights_that_are_changed_while_gathered_are_those_of_every_pass():
    """As calibration changes them: it tries strengths, and what it settles on is measured."""
    plain, network = make(), make()
    shards = Shards(network, CPU, 1)
    shards.gather()
    x = torch.randn(2, 4, 5, 5, generator=torch.Generator().manual_seed(1))
    for change in (1.0, 0.5):
        state = {name: value + change for name, value in trainable_state(plain, CPU).items()}
        for own in (plain, network):
            load_trainable_state(own, state)
        for _ in range(2):
            torch.testing.assert_close(network(x), plain(x))
        torch.testing.assert_close(trainable_state(network, CPU), state)


def test_a_copy_of_a_divided_network_is_one_as_before():
    network = make()
    twin = copy.deepcopy(network)
    shards = Shards(network, CPU, 1)
    shards.gather()
    with pytest.raises(AssertionError):
        copy.deepcopy(network)
    made = plain_copy(network, CPU, torch.get_default_dtype())
    assert type(made) is Network
    torch.testing.assert_close(made.state_dict(), twin.state_dict())
    made.blocks[0].conv.weight.data.zero_()
    assert trainable_state(network)["blocks.0.conv.weight"].any()
    x = torch.randn(1, 4, 5, 5)
    torch.testing.assert_close(plain_copy(network, CPU, x.dtype)(x), network(x))


def test_what_is_not_divided_stays_as_it_is():
    value = torch.ones(3)
    assert part_like(value, torch.zeros(3)) is value
    assert whole_of({"a": [value]})["a"][0] is value
    assert plain_copy(nn.Linear(1, 1), CPU, torch.bfloat16).weight.dtype == torch.bfloat16


def test_buckets_keep_the_order_one_type_each_and_the_size():
    big = torch.empty(BUCKET // 4 + 1)
    small = [torch.empty(5) for _ in range(3)]
    half = torch.empty(5, dtype=torch.float16)
    given = [small[0], small[1], big, small[2], half]
    found = list(buckets(given))
    assert [[id(t) for t in bucket] for bucket in found] == [
        [id(small[0]), id(small[1])],
        [id(big)],
        [id(small[2])],
        [id(half)],
    ]
