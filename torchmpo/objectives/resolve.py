"""Find an objective by name, by reference to a function, or by the folder it was saved in."""

import importlib
import inspect
import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

from torch import Tensor

from torchmpo.losses import LOSSES
from torchmpo.losses.divergence import OF_THE_MARGIN, InDivergence
from torchmpo.losses.likelihood_weight import NOT_BY_PAIR, LikelihoodWeighted
from torchmpo.objectives.bound import Objective
from torchmpo.objectives.mirror import MirrorObjective
from torchmpo.objectives.other_tools import LOSSES_OF, known_to
from torchmpo.objectives.weighted_sum import is_sum, parse, weighted_sum
from torchmpo.runs.errors import nearest
from torchmpo.runs.own_code import names_code, own_code_raised

# What other libraries and papers call a loss of LOSSES.
OTHER_NAMES = {
    "sigmoid": "dpo",
    "cdpo": "dpo",
    "hinge": "hinge_dpo",
    "rso": "hinge_dpo",
    "robust": "robust_dpo",
    "rdpo": "robust_dpo",
    "aot_pair": "aot_unpaired",
    "sigmoid_norm": "dpo_norm",
    "odpo": "margin_dpo",
    "lrml": "discopop",
    "sppo": "sppo_hard",
    "bco": "bco_pair",
    "exo": "exo_pair",
    "nca": "nca_pair",
    "slic": "slic_hf",
    "cposimpo": "simpo",
    "alphapo": "alpha_po",
    "dposhift": "dpo_shift",
    "caldpo": "cal_dpo",
    "hdpo": "h_dpo",
    "chipo": "chi_po",
    "drdpo": "dr_dpo",
    "betadpo": "beta_dpo",
    "alphadpo": "alpha_dpo",
    "focalpo": "focal_po",
    "sympo": "sym_po",
    "c2dpo": "c2_dpo",
    "bpo": "bregman_po",
}
# … where only a hyper-parameter makes it that one.
_WITH = {
    "cdpo": ", with label_smoothing above 0",
    "cposimpo": ", with sft_coef above 0",
    "rso": ", on pairs that rejection sampling chose",
}


def _import_function(reference: str) -> Callable[..., Any]:
    module_name, _, attribute = reference.partition(":")
    if not all(part.isidentifier() for part in [*module_name.split("."), attribute]):
        raise ValueError(
            f"{reference!r} must be package.module:function, with dots, and without a path or .py"
        )
    try:
        module = importlib.import_module(module_name)
    except ImportError as error:
        raise ValueError(
            f"{reference!r}: cannot import {module_name!r}: {error} (modules are looked for in the "
            "current folder and in those of PYTHONPATH)"
        ) from error
    except (Exception, SystemExit) as error:  # whatever a module does when it is imported
        raise own_code_raised(reference, error) from error
    function = getattr(module, attribute, None)
    if not callable(function):
        raise ValueError(
            f"{reference!r}: {module_name} has no function {attribute!r}; "
            + nearest(attribute, [n for n, v in vars(module).items() if inspect.isfunction(v)])
        )
    return function


def is_own(name: str) -> bool:
    """Whether a name is that of somebody's own function, ``package.module:function``."""
    return names_code(name) and name not in LOSSES


def _hint(name: str) -> str:
    """What may have been meant by a name that nothing has."""
    module, dot, function = name.removesuffix(".py").rpartition(".")
    if name.endswith(".py"):
        return f"a function of your own is called as in {name.removesuffix('.py')}:my_loss"
    if dot:
        return f"a function of your own has a colon: did you mean '{module}:{function}'?"
    return nearest(name, [*LOSSES, *discovered()])


LONGEST_NAME = 4095  # the longest path that Linux takes

# Objectives that searches of this project found, a folder each, with a card.
DISCOVERED = Path(__file__).parent / "discovered"


def discovered() -> list[str]:
    """Names of the objectives that this library ships, which ``resolve`` takes."""
    return sorted(path.parent.name for path in DISCOVERED.glob("*/card.json"))


def resolve(
    loss: "str | Path | Callable[..., Tensor] | Objective | MirrorObjective", **hyper: Any
) -> "Objective | MirrorObjective":
    """Find an objective.

    Args:
        loss: a name in ``torchmpo.losses.LOSSES`` or in :func:`discovered`,
            another tool's name for one, as in ``"trl:sigmoid_norm"``, with that tool's defaults,
            a sum of losses, as in ``"0.8*dpo+0.2*bco_pair+sft"``, one whose weights follow from
            training, as in ``"dpo+sft@dual"``, a loss of a margin in another f-divergence,
            as in ``"hinge_dpo@js"``, a loss of pairs weighed by their likelihood, as in
            ``"simpo@wpo"``,
            ``"package.module:function"`` for one's own, the folder of a saved objective, a
            function, or an objective.
        **hyper: hyper-parameters of the loss; a saved or bound objective takes none.

    Raises:
        ValueError: nothing of that name (the nearest one is named), a function whose parameters are
            not in the vocabulary, an unknown or invalid hyper-parameter, or a damaged folder.

    >>> resolve("dpo", beta=0.5)
    Objective(dpo, beta=0.5, label_smoothing=0.0)
    >>> resolve("oxrl:cdpo")
    Objective(dpo, beta=0.1, label_smoothing=0.1)
    >>> resolve("simp")
    Traceback (most recent call last):
    ValueError: unknown loss 'simp': did you mean 'simpo'?
    """
    if isinstance(loss, (Objective, MirrorObjective)):
        if hyper:
            raise ValueError(f"{loss.name} is bound already; it takes no {', '.join(hyper)}")
        return loss
    if not isinstance(loss, (str, Path)):
        return Objective(loss, **hyper)
    text, path = str(loss), Path(loss)
    if len(text) > LONGEST_NAME:
        raise ValueError(f"unknown loss {text[:20]!r}…: no name has {len(text)} letters")
    if not isinstance(loss, Path):
        if text in LOSSES:
            return Objective(LOSSES[text], name=text, **hyper)
        tool, colon, theirs = text.partition(":")
        if colon and tool in LOSSES_OF and not path.exists():
            name, defaults = known_to(tool, theirs)
            return resolve(name, **{**defaults, **hyper})
        base, at, modifier = text.partition("@")
        if at and base in LOSSES and modifier == "wpo" and not path.exists():
            if base == "wpo":
                raise ValueError("wpo weighs its pairs already")
            if base in NOT_BY_PAIR:
                raise ValueError(f"{base} has no value of each pair that wpo could weigh")
            return Objective(LikelihoodWeighted(LOSSES[base]), name=text, **hyper)
        if at and base in LOSSES and not path.exists():
            if base not in OF_THE_MARGIN:
                raise ValueError(f"{base} is no loss of a margin, so it takes no divergence")
            return Objective(InDivergence(LOSSES[base], modifier), name=text, **hyper)
        if at and is_sum(base) and not path.exists():
            return weighted_sum(parse(base), modifier, **hyper)
        if is_sum(text) and not path.exists():
            return weighted_sum(parse(text), **hyper)
        if text in discovered():
            path = DISCOVERED / text
        elif is_own(text):
            return Objective(_import_function(text), name=text, **hyper)
        elif os.sep not in text and not path.is_dir():
            plain = text.lower().removesuffix("_loss")
            here = plain if plain in LOSSES else OTHER_NAMES.get(plain)
            if here is not None:
                how = _WITH.get(plain, "")
                raise ValueError(f"unknown loss {text!r}: it is called {here!r} here{how}")
            raise ValueError(f"unknown loss {text!r}: {_hint(text)}")
        elif path.suffix == ".py":
            module = ".".join(path.with_suffix("").parts)
            raise ValueError(f"{text} is a file: name a function in it, as in {module}:my_loss")
    if (path / "objective").is_dir() and not (path / "card.json").exists():
        raise ValueError(f"{path} is a run; what it found is {path / 'objective'}")
    if hyper:
        raise ValueError(f"a saved objective takes no hyper-parameters; got {', '.join(hyper)}")
    if (path / "objective.json").is_file():
        return Objective.load(path)
    return MirrorObjective.load(path)
