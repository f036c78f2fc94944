"""What holds for all tests: no network, no window, one share of the cores for each process."""

import os

import hypothesis
import torch

os.environ.setdefault("HF_HUB_OFFLINE", "1")
os.environ.setdefault("MPLBACKEND", "Agg")
# Threads of several workers on one core wait for each other in a loop: hundreds of times slower.
_workers = int(os.environ.get("PYTEST_XDIST_WORKER_COUNT", "1"))
_threads = max(1, (os.cpu_count() or 1) // _workers)
os.environ["OMP_NUM_THREADS"] = str(_threads)  # for the processes that tests start
torch.set_num_threads(_threads)

# The first example pays for imports and compilation, so a deadline would say nothing.
hypothesis.settings.register_profile("nablaflow", deadline=None, derandomize=True)
hypothesis.settings.load_profile("nablaflow")
