"""Networks whose every part bends, and transitions of theirs, for the residuals' tests."""

from __future__ import annotations

import pytest

from nablaflow.methods import Networks, TrainingBatch
from tests.support.bent import bent_networks
from tests.support.gaussian import any_transitions


@pytest.fixture
def networks() -> Networks:
    return bent_networks()


@pytest.fixture
def batch(networks: Networks) -> TrainingBatch:
    return any_transitions(networks.model, each=2, seed=5)
