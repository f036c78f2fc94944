"""A layer in 4 bits: against NF4 by hand, by its published levels, and finite differences."""

from __future__ import annotations

import copy

import pytest
import torch
from torch import Tensor, nn
from torch.autograd import gradcheck, gradgradcheck
from torch.utils.checkpoint import checkpoint

from nablaflow.models.four_bits import Linear4bit, sizes_of
from nablaflow.shapes import META, Shapes

bitsandbytes = pytest.importorskip("bitsandbytes")

LEVELS = torch.tensor(
    [
        *(-1.0, -0.6961928009986877, -0.5250730514526367, -0.39491748809814453),
        *(-0.28444138169288635, -0.18477343022823334, -0.09105003625154495, 0.0),
        *(0.07958029955625534, 0.16093020141124725, 0.24611230194568634, 0.33791524171829224),
        *(0.44070982933044434, 0.5626170039176941, 0.7229568362236023, 1.0),
    ]
)
"""QLoRA, appendix E."""


def by_hand(weights: Tensor) -> Tensor:
    """To the nearest level in blocks of 64, by scales that are exact."""
    blocks = weights.float().flatten().split(64)
    found = []
    for block in blocks:
        scale = block.abs().max()
        nearest = (block[:, None] / scale - LEVELS).abs().argmin(1)
        found.append(LEVELS[nearest] * scale)
    return torch.cat(found).view_as(weights)


def layer(rows: int = 24, columns: int = 32, *, bias: bool = True) -> nn.Linear:
    return nn.Linear(columns, rows, bias=bias)


@pytest.mark.parametrize("shape", [(24, 32), (64, 128), (24, 96), (25, 30), (7, 9)])
def test_its_weights_are_the_published_levels(shape: tuple[int, int]):
    """The scales are in 8 bits, a hundredth of the largest of them off at most."""
    plain = layer(*shape)
    found, wanted = Linear4bit(plain).weights(), by_hand(plain.weight.detach())
    scale = plain.weight.detach().abs().max()
    torch.testing.assert_close(found, wanted, rtol=0, atol=0.01 * float(scale))
    assert (found - plain.weight).abs().max() > 0.02 * scale


def test_it_computes_with_them():
    quantized, x = Linear4bit(layer()), torch.randn(3, 5, 32)
    wanted = x @ quantized.weights().T + quantized.bias
    torch.testing.assert_close(quantized(x), wanted)
    torch.testing.assert_close(quantized.plain()(x), wanted)


def test_bitsandbytes_own_layer_computes_the_same():
    plain, x = layer(64, 128), torch.randn(6, 128)
    theirs = bitsandbytes.nn.Linear4bit(128, 64, compute_dtype=torch.float32, quant_type="nf4")
    theirs.load_state_dict(plain.state_dict())
    theirs.to("cpu")
    torch.testing.assert_close(Linear4bit(plain)(x), theirs(x))


@pytest.mark.parametrize("bias", [True, False])
def test_gradients_of_its_input_by_finite_differences(bias: bool):
    quantized = Linear4bit(layer(8, 8, bias=bias))

    def bent(x: Tensor) -> Tensor:
        """float32 inside, where differences would be rounded away: the product is linear."""
        return torch.tanh(quantized(x.float()).double())

    x = torch.randn(2, 8, dtype=torch.float64, requires_grad=True)
    near = {"eps": 1e-2, "atol": 2e-3}
    assert gradcheck(bent, (x,), **near)
    assert gradgradcheck(bent, (x,), **near)


def test_checkpointing_and_autocast_leave_the_gradient():
    quantized, x = Linear4bit(layer()), torch.randn(4, 32, requires_grad=True)
    (wanted,) = torch.autograd.grad(quantized(x).square().sum(), x)
    again = checkpoint(quantized, x, use_reentrant=False)
    torch.testing.assert_close(torch.autograd.grad(again.square().sum(), x)[0], wanted)
    with torch.autocast("cpu", torch.bfloat16):
        out = quantized(x)
    assert out.dtype == torch.bfloat16
    (found,) = torch.autograd.grad(out.float().square().sum(), x)
    torch.testing.assert_close(found, wanted, rtol=0.05, atol=0.05)


def test_another_precision_leaves_the_weights():
    """Scales that were cast would be others."""
    quantized = Linear4bit(layer().bfloat16())
    before = quantized.weights()
    assert before.dtype == torch.bfloat16
    raised = copy.deepcopy(quantized).float()
    assert torch.equal(raised.weights(), before)
    assert torch.equal(copy.deepcopy(raised).half().weights(), before)
    assert raised.bias.dtype == torch.float32


@pytest.mark.parametrize("shape", [(24, 32), (256, 320)])
def test_on_shapes_it_is_counted_as_bitsandbytes_allocates(shape: tuple[int, int]):
    """0.5 bytes a weight, one for each 64, and 4 for each 64 x 256 (QLoRA, section 3)."""
    plain = layer(*shape)
    packed, state = bitsandbytes.functional.quantize_4bit(
        plain.weight.detach(), compress_statistics=True, quant_type="nf4"
    )
    theirs = (packed, state.absmax, state.offset, state.state2.absmax, state.state2.code)
    held = sum(value.untyped_storage().nbytes() for value in theirs)
    for made in (Linear4bit(plain), Linear4bit(copy.deepcopy(plain).to(META))):
        own = [value.numel() * value.element_size() for value in made.buffers()]
        assert sum(own) == held
    count = plain.weight.numel()
    blocks = -(-count // 64)
    tables = 256 * 4 + 4
    assert held == -(-count // 2) + blocks + 4 * -(-blocks // 256) + tables


def test_on_shapes_its_weights_are_there_for_its_call_alone():
    quantized = Linear4bit(layer(256, 320).bfloat16().to(META))
    x = torch.zeros(2, 320, dtype=torch.bfloat16, device=META, requires_grad=True)
    with Shapes() as shapes:
        out = quantized(x)
        assert shapes.now == 2 * 2 * 256
        assert shapes.peak >= 2 * 256 * 320
        shapes.peak = 0
        out.sum().backward()
    assert shapes.peak >= 2 * 256 * 320


def test_its_size_is_that_of_the_layer():
    plain = layer(bias=False)
    assert sizes_of(Linear4bit(plain)) == sizes_of(plain) == {"weight": 24 * 32}
    inside = nn.Sequential(Linear4bit(layer()), nn.ReLU())
    assert sizes_of(inside) == {"0.bias": 24, "0.weight": 24 * 32}
