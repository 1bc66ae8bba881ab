"""Whether this machine can draw: a test that needs pictures is defined only where it can."""

import gc
import sys

from torchmpo_envs import Hopper


def _works() -> bool:
    env = Hopper(1)
    try:
        env.render(height=8, width=8)
    except RuntimeError:
        return False
    finally:
        env.close()
    return True


# A context of GLFW that could not be opened complains while it is collected.
_hook, sys.unraisablehook = sys.unraisablehook, lambda _: None
OPENGL = _works()
gc.collect()
sys.unraisablehook = _hook
