"""One integer seed for every stream of random numbers in a run.

A stream is named by what it is for: ``derive_seed(run_seed, "minibatches", generation)``. Two runs
that name the same stream draw the same numbers, whatever ran before, in however many processes.
"""

import hashlib
import json

import torch


def derive_seed(*names: int | str) -> int:
    """Hash the name of a stream to a seed in [0, 2⁶³).

    >>> derive_seed(0, "minibatches", 3) == derive_seed(0, "minibatches", 3)
    True
    >>> derive_seed(0, "minibatches", 3) == derive_seed(0, "minibatches", 4)
    False
    """
    digest = hashlib.blake2b(json.dumps(names).encode(), digest_size=8).digest()
    return int.from_bytes(digest, "little") >> 1


def generator(*names: int | str) -> torch.Generator:
    """A CPU generator that starts at ``derive_seed(*names)``."""
    return torch.Generator().manual_seed(derive_seed(*names))
