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
from torchmpo.runs.options import read_settings


def check_not_shorter(setup: Setup, out: Path) -> None:
    """Refuse a search that has made more generations than its settings say.

    Raises:
        UserError: somebody has edited its config.yaml.
    """
    checkpoint, wanted = load_checkpoint(out / "checkpoints"), setup.config.generations
    made = checkpoint.info[-1]["generation"] if checkpoint is not None else 0
    if made > wanted:
        raise UserError(
            f"{out / 'config.yaml'} has been changed: generations is {wanted}, but the run has "
            f"made {made}; put it back, or choose another --out"
        )


def check_longer(setup: Setup, out: Path) -> None:
    """Refuse what could not have the bits of one long search.

    Raises:
        UserError: the learning rate, or the antagonist of a curriculum, was tuned with trials whose
            number follows from the length.
    """
    config, path, other = setup.config, out / "learning_rate.json", out / "antagonist.json"
    rate = config.learning_rate is None and path.exists()
    antagonist = setup.antagonist is not None and other.exists()
    if config.rival_trials is not None or not (rate or antagonist):
        return
    # More rivals alone leave the rate as it is.
    if read_settings(out / "config.yaml")["generations"] == config.generations:
        return
    if antagonist:
        raise UserError(
            f"--resume: the antagonist of the run in {out} was tuned with as many trials as follow "
            "from its generations, and kinds of data were drawn by it: choose another --out, or "
            "give rival_trials from the start"
        )
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
    checkpoint = load_checkpoint(out / "checkpoints")
    last = checkpoint.info[-1] if checkpoint is not None else None
    if last is None or last["mean"] is not None or last["generation"] >= setup.search.generations:
        return
    (out / "comparison.json").unlink(missing_ok=True)
    if setup.config.rival_trials is None:
        (out / "rivals.json").unlink(missing_ok=True)
