"""Draw a picture of every kind of preference data, for `data.md`: `python docs/make_kinds.py`.

Above: returns of the trajectories in the pairs, by the agent that made them. Below: the chosen
return minus the rejected one; red are pairs whose label prefers the lower return. Takes some
minutes the first time, because trajectories are rolled out; afterwards they are in the cache.
"""

from pathlib import Path

from torchmpo.control.kinds import FILES, PARTS, parse_kind
from torchmpo.control.pools import PoolConfig
from torchmpo.control.preferences import preference_data
from torchmpo.diagnose.data_statistics import data_statistics, histogram_edges
from torchmpo.diagnose.report.figures import data as draw
from torchmpo.diagnose.report.figures import save
from torchmpo.runs.files import slug

PICTURES = Path(__file__).parent / "figures" / "kinds"
# Actions of little noise, so that episodes do not end early and returns are those of the agents.
POOL = PoolConfig(pairs=256, behaviour_std=0.05)
KINDS = [part.example for name, part in PARTS.items() if name not in FILES]


def main() -> None:
    """Draw them all."""
    PICTURES.mkdir(parents=True, exist_ok=True)
    for kind in KINDS:
        data = preference_data(POOL, kind)
        found = data_statistics(parse_kind(kind).pool(POOL), data)
        save(PICTURES, slug(kind), kind, draw, histogram_edges(data), {kind: found})
        (PICTURES / f"{slug(kind)}.png").unlink()  # beside the SVG, which is smaller
        print(
            f"{kind:16} {found['flipped']:6.1%} wrong  chosen return {found['chosen_return']:6.0f}"
        )


if __name__ == "__main__":
    main()
