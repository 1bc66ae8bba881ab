"""Compile an update of the inner loop, where there is a C++ compiler.

A module of its own because Dynamo and Inductor take a second to import, which a run that compiles
nothing need not wait for.
"""

import logging
from collections.abc import Callable
from typing import Any

import torch
from torch._dynamo.exc import BackendCompilerFailed
from torch._inductor import list_options
from torch._inductor.exc import InvalidCxxCompiler
from torch.fx.experimental.proxy_tensor import make_fx

from torchmpo.runs.errors import UserError

_compiler_works = True  # until it fails once; from then on this process trains eagerly


def compiled(update: Callable, args: tuple) -> Callable | None:
    """Trace and compile for the shapes of ``args``, and see that it runs; None without a compiler.

    That there is no compiler is found out, and told, once in a process.
    """
    global _compiler_works
    if not _compiler_works:
        return None
    # tanh from one exponential: 1e-7 from the library's (absolute), and several times faster.
    tanh = "cpp.use_decompose_tanh"
    options: dict[str, Any] = {tanh: True} if tanh in list_options() else {}
    # Traced first, a program has code of its own: Dynamo limits recompilations per function.
    program = torch.compile(make_fx(update)(*args), fullgraph=True, dynamic=False, options=options)
    try:
        program(*args)
    except BackendCompilerFailed as error:
        # One that is there and fails may work in the next process, and compiled and eager trainings
        # of one run would differ in their last bits: that is an error.
        if not isinstance(error.inner_exception, InvalidCxxCompiler):
            raise UserError(
                "could not compile the inner loop: set compile to false; the compiler said: "
                f"{str(error).splitlines()[0]}"
            ) from error
        _compiler_works = False
        logging.getLogger(__name__).warning(
            "warning: no C++ compiler was found, so trainings are not compiled and take about "
            "twice as long; install g++, or name another compiler in CXX"
        )
        return None
    return program
