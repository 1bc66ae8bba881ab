"""torchmpo: discover, diagnose and use preference-optimization losses."""

from torchmpo.objective import MirrorObjective, Objective, PairLogps, resolve

__version__ = "0.1.0"
__all__ = ["MirrorObjective", "Objective", "PairLogps", "resolve"]
