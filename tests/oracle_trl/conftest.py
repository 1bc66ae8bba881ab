"""Only `make test-trl` has TRL 1.16.0; elsewhere the tests of this folder are not collected."""

from importlib import metadata

import torch

TRL = "1.16.0"


def _installed(distribution):
    try:
        return metadata.version(distribution)
    except metadata.PackageNotFoundError:
        return None


collect_ignore_glob = [] if _installed("trl") == TRL else ["*.py"]

torch.set_num_threads(1)
