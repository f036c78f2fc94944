"""What holds for all tests: no network, no window, one thread for each process."""

import gc
import os
import random
import tempfile

import hypothesis
import numpy as np
import pytest
import torch

from tests.support import shape_checks

shape_checks.install()  # before anything imports the package

os.environ.setdefault("HF_HUB_OFFLINE", "1")
os.environ.setdefault("MPLBACKEND", "Agg")
# What a user gave word for is remembered, and not in the folder of whoever runs the tests.
os.environ["XDG_STATE_HOME"] = tempfile.mkdtemp(prefix="nablaflow-state-")
# Threads that wait for each other on a busy core spin: hundreds of times slower on small tensors.
os.environ["OMP_NUM_THREADS"] = "1"  # for the processes that tests start
torch.set_num_threads(1)
# No test outlives a power cut, so none waits for the disk; that it is asked has tests of its own.
os.fsync = os.fstat

# The first example pays for imports and compilation, so a deadline would say nothing.
hypothesis.settings.register_profile("nablaflow", deadline=None, derandomize=True)
hypothesis.settings.load_profile("nablaflow")

pytest_plugins = ["tests.support.folders", "tests.support.recipes", "tests.support.tiny_run"]


def pytest_collection_finish() -> None:
    """Leave what the imports made out of every later search for garbage: it stays anyway."""
    gc.collect()
    gc.freeze()


@pytest.hookimpl(tryfirst=True)  # before any fixture
def pytest_runtest_setup() -> None:
    """Seed the global states, from which beartype draws the entry of a list that it looks at.

    So no outcome depends on chance, nor on which tests a process ran before.
    """
    random.seed(0)
    np.random.seed(0)  # noqa: NPY002, the state that is global
    torch.manual_seed(0)
