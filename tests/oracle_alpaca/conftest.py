"""Only `make test-alpaca` has alpaca_eval 0.6.6; elsewhere these tests are not collected."""

from importlib import metadata

ALPACA_EVAL = "0.6.6"


def _installed(distribution):
    try:
        return metadata.version(distribution)
    except metadata.PackageNotFoundError:
        return None


collect_ignore_glob = [] if _installed("alpaca_eval") == ALPACA_EVAL else ["*.py"]
