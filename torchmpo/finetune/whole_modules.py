"""Modules that are trained as a whole beside adapters, in float32 in a model of fewer bits."""

from typing import Any

import torch
from torch import Tensor, nn

LOW = (torch.bfloat16, torch.float16)


def float_trained(model: Any) -> bool:
    """Let all that is trained in a model of peft be float32.

    peft leaves the copies of ``modules_to_save`` in the base model's bfloat16, where small steps
    are lost. What goes into such a copy is made float32, and what comes out is again what the
    base model's module would give.

    Returns:
        whether something was in fewer bits.
    """
    low = [p for p in model.parameters() if p.requires_grad and p.dtype in LOW]
    for parameter in low:
        parameter.data = parameter.data.float()
    for whole, dtype in _copies(model):
        if dtype in LOW:
            whole.register_forward_pre_hook(_in_own_dtype, with_kwargs=True)
            whole.register_forward_hook(_Back(dtype))
    return bool(low)


def as_base(model: Any) -> None:
    """Give the copies the base model's precision again, to be saved as parts of it."""
    for whole, dtype in _copies(model):
        whole.to(dtype)


def _copies(model: Any) -> list[tuple[nn.Module, torch.dtype]]:
    """The trained copies of modules, and the precision of the modules that they stand for."""
    found = []
    for module in model.modules():
        copies: Any = getattr(module, "modules_to_save", None)
        if isinstance(copies, nn.ModuleDict):
            original: Any = module.original_module
            dtypes = [p.dtype for p in original.parameters() if p.is_floating_point()]
            found += [(copy, dtypes[0]) for copy in copies.values() if dtypes]
    return found


def _in_own_dtype(module: nn.Module, args: Any, kwargs: Any) -> tuple[Any, Any]:
    dtype = next(module.parameters()).dtype
    return tuple(_to(x, dtype) for x in args), {k: _to(x, dtype) for k, x in kwargs.items()}


class _Back:
    """Gives what a module computes another precision; one that can be copied with the module."""

    def __init__(self, dtype: torch.dtype):
        self.dtype = dtype

    def __call__(self, module: nn.Module, args: Any, output: Any) -> Any:
        return _to(output, self.dtype)


def _to(value: Any, dtype: torch.dtype) -> Any:
    return value.to(dtype) if isinstance(value, Tensor) and value.is_floating_point() else value
