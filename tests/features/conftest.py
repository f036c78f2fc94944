"""Images to take features of."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor


@pytest.fixture
def images() -> Tensor:
    """Three that are not square, no pixel near the ends of its range."""
    uniform = torch.rand(3, 3, 40, 56, generator=torch.Generator().manual_seed(0))
    return 0.2 + 0.6 * uniform
