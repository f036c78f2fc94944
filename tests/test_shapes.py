"""Code on shapes alone against the same code on real tensors, whose bytes torch itself counts."""

from __future__ import annotations

import torch
import torch.utils.checkpoint
from torch import Tensor, nn
from torch.nn.attention import SDPBackend, sdpa_kernel

from nablaflow.shapes import META, Shapes, weights_come_back


def saved_bytes(network: nn.Module, x: Tensor) -> int:
    own = {value.untyped_storage()._cdata for value in network.parameters()}
    kept: dict[int, Tensor] = {}

    def keep(value: Tensor) -> Tensor:
        kept[value.untyped_storage()._cdata] = value
        return value

    with torch.autograd.graph.saved_tensors_hooks(keep, lambda value: value):
        result = network(x)
    kept[result.untyped_storage()._cdata] = result
    return sum(v.untyped_storage().nbytes() for key, v in kept.items() if key not in own)


def test_what_is_held_for_backward_is_what_autograd_saves():
    network = nn.Sequential(nn.Conv2d(3, 8, 3), nn.SiLU(), nn.Conv2d(8, 4, 3), nn.Sigmoid())
    expected = saved_bytes(network, torch.zeros(5, 3, 12, 12))
    twin = network.to(META)
    with Shapes() as shapes:
        result = twin(torch.zeros(5, 3, 12, 12, device=META))
        assert result.requires_grad
        assert shapes.now == expected
        del result
        assert shapes.now == 0
    assert shapes.peak >= expected


def test_what_is_freed_again_counts_for_the_peak_alone():
    with Shapes() as shapes:
        kept = torch.zeros(1000, device=META)
        torch.zeros(500, device=META)
        torch.zeros(250, device=META)
    assert shapes.now == 4 * len(kept) == 4000
    assert shapes.peak == 6000


def test_a_value_that_is_asked_for_is_told_and_real_tensors_keep_theirs():
    with Shapes():
        states, k = torch.zeros(4, 2, device=META), torch.tensor([3, 1, 2, 1])
        assert states.isfinite().all()
        assert states[k > 1].shape == (2, 2)
        assert torch.where((k > 1)[:, None], states, 1.0).is_meta
        assert k.tolist() == [3, 1, 2, 1]
        assert states.cpu().is_meta
        states[k == 1] = 5.0


def test_attention_holds_no_matrix_of_all_pairs():
    """What a fused kernel keeps: query, key, value, result, and a number for each query."""
    tokens, heads, width = 4096, 8, 40
    with Shapes() as shapes:
        q, k, v = (
            torch.zeros(1, heads, tokens, width, device=META, requires_grad=True) for _ in range(3)
        )
        result = torch.nn.functional.scaled_dot_product_attention(q, k, v)
        result.sum().backward()
    assert result.shape == q.shape
    assert shapes.peak < 10 * heads * tokens * width * 4 < heads * tokens * tokens * 4


def test_attention_that_may_not_be_fused_writes_the_matrix():
    """As two matrix products do on any device: one number for each pair, and the softmax's."""
    tokens, heads, width = 1024, 8, 40
    with Shapes() as shapes, sdpa_kernel(SDPBackend.MATH):
        q, k, v = (torch.zeros(1, heads, tokens, width, device=META) for _ in range(3))
        torch.nn.functional.scaled_dot_product_attention(q, k, v)
    assert heads * tokens * tokens * 4 < shapes.peak < 3 * heads * tokens * tokens * 4


def test_a_layer_that_is_computed_again_saves_the_same():
    """Checkpointing compares what its two passes save; attention must be the same in both."""
    x = torch.zeros(1, 2, 16, 8, device=META, requires_grad=True)

    def layer(x: Tensor) -> Tensor:
        return torch.nn.functional.scaled_dot_product_attention(x, x, x) * 2.0

    with Shapes():
        result = torch.utils.checkpoint.checkpoint(layer, x, use_reentrant=False)
        (gradient,) = torch.autograd.grad(result.sum(), x)
    assert gradient.shape == x.shape


def test_a_view_of_what_was_there_before_is_no_memory():
    """A linear layer looks at its weight from the other side; a view of what is new keeps it."""
    layer = nn.Linear(100, 100, bias=False, device=META)
    with Shapes() as shapes:
        x = torch.zeros(1, 100, device=META, requires_grad=True)
        y = layer(x)
        assert shapes.now == shapes.peak == 4 * (len(x[0]) + len(y[0]))
        y.sum().backward()
        assert layer.weight.grad is not None
        assert shapes.now >= 4 * 100 * 100, "its gradient is new"
        view = torch.zeros(50, device=META).view(5, 10)
        before = shapes.now
        del view
        assert shapes.now == before - 200


def test_a_network_that_is_moved_to_where_shapes_are_has_its_weights_after() -> None:
    network = nn.Sequential(nn.Linear(2, 3), nn.BatchNorm1d(3))
    before = {name: value.clone() for name, value in network.state_dict().items()}
    with weights_come_back():
        network.to(META)
        network.to(META)  # as a reward does that is called twice
        other = nn.Linear(2, 2).to(META)
        assert network[0].weight.is_meta
    assert other.weight.is_meta, "nothing is kept of what was made meanwhile"
    assert network.state_dict().keys() == before.keys()
    for name, value in network.state_dict().items():
        assert torch.equal(value, before[name]), name
    assert network[0].weight.requires_grad
    with weights_come_back():
        network.to(torch.float64)
    assert network[0].weight.dtype == torch.float64, "any other move is as it was asked for"
