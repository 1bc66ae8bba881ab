"""Only `make test-alpaca` has alpaca_eval 0.6.6; elsewhere these tests are not collected."""

import sys
import types
from importlib import metadata
from pathlib import Path

ALPACA_EVAL = "0.6.6"


def _installed(distribution):
    try:
        return metadata.version(distribution)
    except metadata.PackageNotFoundError:
        return None


collect_ignore_glob = ["*.py"]
if _installed("alpaca_eval") == ALPACA_EVAL:
    collect_ignore_glob = []
    # The win rates need no torch, and this environment has none: no __init__ is run.
    for name in ("torchmpo", "torchmpo.llm"):
        package = types.ModuleType(name)
        package.__path__ = [str(Path(__file__).parents[2] / name.replace(".", "/"))]
        sys.modules[name] = package
