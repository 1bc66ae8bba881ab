"""Fine-tune a language model on preference pairs with any loss: ``python -m torchmpo.finetune``.

    from torchmpo.finetune import LoraSettings, PreferenceData, PreferenceModule

:mod:`.module` is what Lightning trains, :mod:`.models` loads and adapts it, :mod:`.reference` keeps
the reference's log-probabilities. :mod:`.data` serves pairs: :mod:`.sources` reads rows,
:mod:`.pairs` finds the pairs in them, :mod:`.mixture` puts several sources together,
:mod:`.chat_template` turns messages into text and :mod:`.tokenize` text into tokens;
:mod:`.inspect` shows one of them. :mod:`.answers` lets a model answer, :mod:`.samples` does so
while it is trained, :mod:`.moving_reference` lets the reference follow, :mod:`.term_weights` weighs
the two terms of a loss, :mod:`.early_warning` warns when chosen answers become unlikely, and
:mod:`.model_card` says what was trained. :mod:`.online` trains in rounds, on :mod:`.judged_pairs`
of the model's own answers.

Imports :mod:`torchmpo.objectives`, :mod:`torchmpo.losses`, :mod:`torchmpo.linear_logps`,
:mod:`torchmpo.metrics`, :mod:`torchmpo.early_warning`, :mod:`torchmpo.winrate` and
:mod:`torchmpo.runs`; nothing of robots.
"""

import importlib
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from torchmpo.finetune.data import PreferenceData as PreferenceData
    from torchmpo.finetune.early_warning import EarlyWarning as EarlyWarning
    from torchmpo.finetune.models import LoraSettings as LoraSettings
    from torchmpo.finetune.module import PreferenceModule as PreferenceModule
    from torchmpo.finetune.moving_reference import MovingReference as MovingReference
    from torchmpo.finetune.online import train_online as train_online
    from torchmpo.finetune.samples import Samples as Samples

__all__ = [
    "EarlyWarning",
    "LoraSettings",
    "MovingReference",
    "PreferenceData",
    "PreferenceModule",
    "Samples",
    "train_online",
]
_WHERE = {
    "EarlyWarning": "torchmpo.finetune.early_warning",
    "LoraSettings": "torchmpo.finetune.models",
    "MovingReference": "torchmpo.finetune.moving_reference",
    "PreferenceData": "torchmpo.finetune.data",
    "PreferenceModule": "torchmpo.finetune.module",
    "Samples": "torchmpo.finetune.samples",
    "train_online": "torchmpo.finetune.online",
}


def __getattr__(name: str) -> Any:  # on first use: Lightning and transformers take seconds
    if name in _WHERE:
        return getattr(importlib.import_module(_WHERE[name]), name)
    raise AttributeError(f"module 'torchmpo.finetune' has no attribute {name!r}")
