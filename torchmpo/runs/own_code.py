"""What one's own code raises, in a line: what is wrong, where, and what to write instead."""

import importlib
import os
import traceback
from importlib.util import find_spec
from pathlib import Path

from torchmpo.runs.errors import UserError, one_line

# What torch says where a loss cannot be trained in a population, and what to write instead. A
# message that is worded otherwise is shown as it is.
_IN_PLACE = "it changes a tensor in place: write x = x + y instead of x += y"
INSTEAD = {
    "data-dependent control flow": (
        "it branches on the values of a tensor, by if, while, max() or sorted(): write "
        "torch.where(condition, a, b), torch.maximum or torch.sort"
    ),
    ".item() on a Tensor": (
        "it takes a number out of a tensor, by .item(), float() or a function of math: keep the "
        "tensor, and use torch's functions"
    ),
    "random operation": (
        "it draws random numbers: a loss is a pure function of its arguments, without dropout"
    ),
    "that doesn't have storage": ("it takes a tensor to numpy or to a list: use torch's functions"),
    "dynamic shape": (
        "it picks elements by a mask or by torch.nonzero, as many as there happen to be: write "
        "torch.where(mask, x, 0.0), which keeps the shape"
    ),
    "in-place operation": _IN_PLACE,
    "doesn't match the broadcast shape": _IN_PLACE,
    "vmap: inplace": _IN_PLACE,
    "running_mean": (
        "it has a batch normalisation, which keeps state: a loss is a pure function of its "
        "arguments"
    ),
}


# What may stand before a colon and is no module: tools whose names of losses `resolve` knows.
# Gymnasium's ids are its own; one that names a module to import, as in gymnasium:my:Robot-v0, is
# code all the same.
TRL, LLAMA_FACTORY, OPENRLHF, LIGER, OXRL = "trl", "llamafactory", "openrlhf", "liger", "oxrl"
TOOLS = (TRL, LLAMA_FACTORY, OPENRLHF, LIGER, OXRL)


def names_code(name: str) -> bool:
    """Whether a name is that of a user's own function, ``package.module:function``."""
    tool, colon, rest = name.partition(":")
    if tool == "gymnasium":
        return ":" in rest
    return bool(colon) and tool not in TOOLS and not Path(name).exists()


class OwnCodeRaised(UserError):
    """Something that a user brings has raised; the message says what, and in which line of theirs.

    What was raised is the cause.
    """


def own_code_raised(name: str, error: BaseException) -> OwnCodeRaised:
    """The error to raise from one that a user's function, or its module, has raised.

    Args:
        name: of the function, as the user calls it.
        error: as it was raised.
    """
    return OwnCodeRaised(f"{name}: {where(error)}")


def where(error: BaseException) -> str:
    """What a user's code raised, and in which line of theirs."""
    # Not theirs: this package, torch, and what imports a module.
    torch = find_spec("torch")  # which takes long to import where nothing else needs it
    packages = (Path(__file__).parents[1], *((torch and torch.submodule_search_locations) or ()))
    others = (*(f"{p}{os.sep}" for p in packages), str(Path(importlib.__file__).parent), "<frozen")
    frames = traceback.extract_tb(error.__traceback__)
    theirs = [frame for frame in frames if not frame.filename.startswith(others)]
    place = f" ({theirs[-1].filename}, line {theirs[-1].lineno})" if theirs else ""
    text = " ".join(str(error).split())
    for said, instead in INSTEAD.items():
        if isinstance(error, RuntimeError) and said in text:
            return f"{instead}{place}"
    message = one_line(error, 300) if text else "no message"
    return f"{type(error).__name__}: {message}{place}"
