"""The method's loss as one module, so that torch.distributed wraps all that trains at once."""

from __future__ import annotations

from torch import Tensor, nn

from nablaflow.methods import Losses, Method, Networks, TrainingBatch


class Objective(nn.Module):
    """``forward(batch)`` is the method's loss; the parameters are the policy's and the flow's."""

    def __init__(self, method: Method, networks: Networks) -> None:
        super().__init__()
        self.method = method
        self.networks = networks
        self.policy = networks.model.network
        self.flow = networks.flow

    def forward(self, batch: TrainingBatch) -> tuple[Tensor, dict[str, Tensor]]:
        """Sum of the loss over the batch, and the sum of each logged figure, detached."""
        losses = self.method.losses(batch, self.networks)
        figures = {name: value.detach().sum() for name, value in _named(losses).items()}
        return losses.total.sum(), figures


def _named(losses: Losses) -> dict[str, Tensor]:
    terms = {f"loss_{name}": value for name, value in losses.terms.items()}
    return {"loss": losses.total, **terms, **losses.metrics}
