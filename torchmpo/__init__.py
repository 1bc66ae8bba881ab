"""torchmpo: discover, diagnose and use preference-optimization losses.

>>> import torchmpo
>>> torchmpo.resolve("simpo", beta=2.0).needs_reference
False

What lives where: :mod:`torchmpo.losses` are the functions, :mod:`torchmpo.objectives` binds them to
hyper-parameters, :mod:`torchmpo.control` trains robots under them. :mod:`torchmpo.evolve`,
:mod:`torchmpo.diagnose`, :mod:`torchmpo.show`, :mod:`torchmpo.finetune` and :mod:`torchmpo.winrate`
are commands, and what they share is :mod:`torchmpo.runs`. Importing this package imports none of
them, nor torch, until one is used.
"""

import importlib
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from torchmpo.control.policy import GaussianPolicy as GaussianPolicy
    from torchmpo.control.policy import load_policy as load_policy
    from torchmpo.control.policy import save_policy as save_policy
    from torchmpo.objectives.bound import Objective as Objective
    from torchmpo.objectives.inputs import PairLogps as PairLogps
    from torchmpo.objectives.mirror import MirrorObjective as MirrorObjective
    from torchmpo.objectives.resolve import resolve as resolve

    __version__: str

# The release that this source is, or leads to: what a run writes into its card. The same source
# gives the same card, however it came here; `__version__` counts the commits since the last tag.
RELEASE = "0.1.0"
__all__ = [
    "GaussianPolicy",
    "MirrorObjective",
    "Objective",
    "PairLogps",
    "load_policy",
    "resolve",
    "save_policy",
]

_WHERE = {
    "GaussianPolicy": "torchmpo.control.policy",
    "MirrorObjective": "torchmpo.objectives.mirror",
    "Objective": "torchmpo.objectives.bound",
    "PairLogps": "torchmpo.objectives.inputs",
    "load_policy": "torchmpo.control.policy",
    "resolve": "torchmpo.objectives.resolve",
    "save_policy": "torchmpo.control.policy",
}
_MODULES = ("adapters", "linear_logps", "losses", "metrics", "objectives")


def __getattr__(name: str) -> Any:
    if name == "__version__":
        return _installed_version()
    if name in _WHERE:
        return getattr(importlib.import_module(_WHERE[name]), name)
    if name in _MODULES:  # as attributes, too: torchmpo.losses.dpo_loss
        return importlib.import_module(f"torchmpo.{name}")
    raise AttributeError(f"module 'torchmpo' has no attribute {name!r}")


def _installed_version() -> str:
    """The version that was installed: the package's own metadata, or the release without it."""
    from importlib import metadata  # 20 ms that few need

    try:
        return metadata.version("torchmpo")
    except metadata.PackageNotFoundError:  # a source tree on the path
        return RELEASE


def __dir__() -> list[str]:
    return sorted([*globals(), *__all__, *_MODULES, "__version__"])
