"""The same study on a pretrained model: SmolLM2-135M with adapters, on the small model's pairs.

    python -m experiments.transfer.smollm2 --kind best_of   (goes on where it was stopped)
    python -m experiments.transfer.smollm2 --smoke          (in seconds, a random LM)

The plan is ``experiments/transfer/PROTOCOL.md``, part (b). Pairs, prompts, annotator, judge and the
statistic are those of ``python -m experiments.transfer.sentiment``; fewer of each, because a
training of this model takes minutes. Losses come in the order of the plan: as many as there is time
for. The weights are kept in bfloat16 and trained so; answers and divergences are computed in
float32, where the adapters are part of the weights.
"""

import copy
import sys
from collections.abc import Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

import torch

from experiments.llm.pieces import keep_what_it_is
from experiments.llm.reviews import load_reviews, splits
from experiments.llm.sentiment_study import StudySettings, World, preference_module
from experiments.llm.small_lm import TINY, lm_folder
from experiments.llm.smollm2_model import smollm2
from experiments.transfer import sentiment
from experiments.transfer.sentiment import SETTINGS, TransferStudy, command
from torchmpo.finetune.models import LoraSettings, load_model, load_tokenizer

RATES = (1e-3, 3e-4, 3e-3)
LORA = LoraSettings(r=16, alpha=32, targets=["q_proj", "v_proj"])


@dataclass(frozen=True)
class AdapterStudy(TransferStudy):
    """Of every loss its defaults with three learning rates; see :class:`TransferStudy`."""

    trials: int = len(RATES)
    seeds: int = 3
    pairs: int = 256
    validation: int = 100
    test: int = 200
    new_tokens: int = 24

    def grid(self, loss: str) -> list[dict[str, Any]]:
        """The defaults of a loss, with each learning rate."""
        defaults = next(iter(SETTINGS[loss]), {})
        return [{"lr": rate, "loss_args": defaults} for rate in RATES[: self.trials]]


class AdapterWorld(World):
    """A pretrained model among another model's pairs.

    Args:
        settings: of the study.
        folder: of the run.
        lm: folder of the pretrained model.
        source: whose pairs and prompts these are.
    """

    def __init__(self, settings: StudySettings, folder: Path, lm: Path, source: World):
        self.settings, self.folder, self.source = settings, folder, source
        # What the weights are in bfloat16, held in float32: both ends of the line are exact then.
        self.lm = load_model(lm, dtype="bfloat16").float().eval()
        self.tokenizer = load_tokenizer(lm)
        self.annotator, self.judge, self.vader = source.annotator, source.judge, False
        sizes = {"validation": settings.validation, "test": settings.test}
        self.prompts = {name: source.prompts[name][:size] for name, size in sizes.items()}

    def pairs(self, kind: str, seed: int) -> list[dict[str, Any]]:
        """The first of the small model's pairs."""
        return self.source.pairs(kind, seed)[: self.settings.pairs]

    def learner(self, loss: str, setting: dict[str, Any], seed: int) -> Any:
        """Adapters on frozen weights."""
        model = copy.deepcopy(self.lm).to(torch.bfloat16)
        return preference_module(model, loss, setting, seed, LORA)

    def trained(self, learner: Any) -> Any:
        """The model with its adapters added to the weights, in float32."""
        return learner.policy.model.float().merge_and_unload().eval()


def prepare(out: Path, smoke: bool, reviews_file: str | None) -> tuple[World, TransferStudy]:
    """The small model's world, which makes the pairs, and this one's.

    Raises:
        UserError: a package is missing, or the folder holds a run with other settings.
    """
    source, small = sentiment.prepare(out / "pairs", smoke, reviews_file)
    study = AdapterStudy()
    if smoke:
        wanted = {k: v for k, v in asdict(small).items() if k != "trials"}
        study = replace(study, **wanted)
    shared = replace(
        source.settings,
        pairs=study.pairs,
        validation=study.validation,
        test=study.test,
        new_tokens=study.new_tokens,
    )
    if smoke:
        models = out / "pairs" / "models"
        lm = lm_folder(TINY, splits(load_reviews(reviews_file)), models)
    else:
        lm = smollm2()
    world = AdapterWorld(shared, out, lm, source)
    grid = {loss: study.grid(loss) for loss in study.losses}
    about = {"settings": asdict(study), "grid": grid, "lora": asdict(LORA), "lm": lm.name}
    keep_what_it_is(out, about)
    return world, study


def main(argv: Sequence[str] | None = None) -> int:
    """Run what is missing."""
    return command(argv, __doc__ or "", "runs/transfer_smollm2", prepare)


if __name__ == "__main__":
    sys.exit(main())
