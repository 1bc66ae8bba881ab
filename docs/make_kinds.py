"""Draw a picture of every kind of preference data, for `data.md`: `python docs/make_kinds.py`.

Above: returns of the trajectories in the pairs, by the agent that made them. Below: the chosen
return minus the rejected one; red are pairs whose label prefers the lower return. Takes some
minutes the first time, because trajectories are rolled out; afterwards they are in the cache.
"""

from pathlib import Path

from torchmpo.control.kinds import PARTS, parse_kind
from torchmpo.control.pools import PoolConfig
from torchmpo.control.preferences import preference_data
from torchmpo.diagnose.data_statistics import data_statistics, histogram_edges
from torchmpo.diagnose.report.figures import data as draw
from torchmpo.runs.files import slug

PICTURES = Path(__file__).parent / "figures" / "kinds"
# Actions of little noise, so that episodes do not end early and returns are those of the agents.
POOL = PoolConfig(pairs=256, behaviour_std=0.05)
KINDS = [part.example for part in PARTS.values() if part.form != "FILE"]


def picture(kind: str) -> Path:
    """Where the picture of a kind is."""
    return PICTURES / f"{slug(kind)}.svg"


def main() -> None:
    """Draw them all."""
    import matplotlib

    matplotlib.rcParams.update({"svg.hashsalt": "kinds", "svg.fonttype": "none"})
    PICTURES.mkdir(parents=True, exist_ok=True)
    for kind in KINDS:
        data = preference_data(POOL, kind)
        found = data_statistics(parse_kind(kind).pool(POOL), data)
        figure = draw(histogram_edges(data), {kind: found})
        figure.savefig(picture(kind), metadata={"Date": None})
        print(
            f"{kind:16} {found['flipped']:6.1%} wrong  chosen return {found['chosen_return']:6.0f}"
        )


if __name__ == "__main__":
    main()
