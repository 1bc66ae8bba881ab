"""Settings of every test: one thread per process, and the same random examples in every run."""

import torch
from hypothesis import settings

# Small tensors gain nothing from threads, and the test processes share the cores.
torch.set_num_threads(1)

# No deadline: a test must not fail because the machine was busy.
settings.register_profile("torchmpo", derandomize=True, deadline=None, max_examples=50)
settings.load_profile("torchmpo")
