"""A parser for command lines that have no dataclass of settings."""

import argparse
from typing import Any, NoReturn

from torchmpo.runs.errors import UserError


class StrictParser(argparse.ArgumentParser):
    """argparse's, with options in full; a mistake is a `UserError` and no usage is printed."""

    def __init__(self, **kwargs: Any):
        super().__init__(allow_abbrev=False, **kwargs)

    def error(self, message: str) -> NoReturn:
        """Raise UserError."""
        raise UserError(message)
