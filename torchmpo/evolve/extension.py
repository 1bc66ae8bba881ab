"""A search that goes on beyond its end: ``--resume --generations N``.

It gets the bits of one that was told N at the start. So what was made at the old end, and would be
made otherwise at the new one, is made again: the final comparison, and the rivals' settings where
their number of trials follows from the length of the search.
"""

from pathlib import Path

from torchmpo.evolve.checkpoints import load_checkpoint
from torchmpo.evolve.setup import Setup
from torchmpo.runs.errors import UserError
from torchmpo.runs.json_files import read_json


def check_longer(setup: Setup, out: Path) -> None:
    """Refuse what could not have the bits of one long search.

    Raises:
        UserError: the learning rate was tuned with trials whose number follows from the length.
    """
    config, path = setup.config, out / "learning_rate.json"
    if not _is_longer(setup, out):
        return
    if config.learning_rate is None and config.rival_trials is None and path.exists():
        found = read_json(path)
        tried = found.get("trials") if isinstance(found, dict) else None
        if isinstance(tried, int) and max(1, tried) != setup.rival_trials:
            raise UserError(
                f"--resume: the learning rate of the run in {out} is the best of {tried}, and a "
                f"search of {config.generations} generations tries {setup.rival_trials}: "
                "choose another --out, or give rival_trials from the start"
            )


def forget_the_old_end(setup: Setup, out: Path) -> None:
    """Remove what was made at the end of a shorter search, if ``out`` has one."""
    if not _is_longer(setup, out):
        return
    (out / "comparison.json").unlink(missing_ok=True)
    if setup.config.rival_trials is None:
        (out / "rivals.json").unlink(missing_ok=True)


def _is_longer(setup: Setup, out: Path) -> bool:
    """Whether ``out`` has a search that ended before this one does."""
    checkpoint = load_checkpoint(out / "checkpoints")
    last = checkpoint.info[-1] if checkpoint is not None else None
    if last is None or last["mean"] is not None:
        return False
    return last["generation"] < setup.search.generations
