"""What holds for all tests: no network, no window, one share of the cores for each process."""

import os

import hypothesis

os.environ.setdefault("HF_HUB_OFFLINE", "1")
os.environ.setdefault("MPLBACKEND", "Agg")
# Read when torch is first imported; more threads than cores would slow every worker down.
_workers = int(os.environ.get("PYTEST_XDIST_WORKER_COUNT", "1"))
os.environ.setdefault("OMP_NUM_THREADS", str(max(1, (os.cpu_count() or 1) // _workers)))

# The first example pays for imports and compilation, so a deadline would say nothing.
hypothesis.settings.register_profile("nablaflow", deadline=None, derandomize=True)
hypothesis.settings.load_profile("nablaflow")
