"""Several robots in one search: what counts on each is the way from its worse agent to the better.

Returns of different robots cannot be added up. So with ``--task tla,hopper`` every return R becomes
100·(R − worse) / (better − worse), by the mean returns of the two agents that made the data. On one
robot alone returns stay as they are.
"""

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Annotated

from pydantic import Field, FiniteFloat

from torchmpo.control.agents import ROLES
from torchmpo.control.testbed import Testbed, TestbedConfig
from torchmpo.runs.errors import UserError
from torchmpo.runs.files import write_atomic
from torchmpo.runs.json_files import read_json
from torchmpo.runs.seeding import derive_seed

FILE = "agents.json"
UNIT = "score, %"
_Two = Annotated[list[FiniteFloat], Field(min_length=2, max_length=2)]


def several(testbeds: Sequence[TestbedConfig]) -> bool:
    """Whether they are of more than one robot."""
    return len({bed.pool.task for bed in testbeds}) > 1


def names(testbeds: Sequence[TestbedConfig]) -> list[str]:
    """What each of them is called: its kind of data, after its robot where there are several."""
    many = several(testbeds)
    return [f"{bed.pool.task}/{bed.data}" if many else bed.data for bed in testbeds]


def on_one_scale(testbeds: Sequence[Testbed], episodes: int, seed: int, out: Path) -> list[Testbed]:
    """The testbeds, with what counts as 0 and 100 on each; ``agents.json`` has the returns.

    Args:
        episodes: of each agent.
        seed: of the search.

    Raises:
        UserError: both agents of a task are equally good, or the file is damaged.
    """
    if not several([bed.config for bed in testbeds]):
        return list(testbeds)
    path = out / FILE
    known = read_agents(path) if path.exists() else {}
    for bed in testbeds:
        task = bed.config.pool.task
        if task not in known:
            states = derive_seed(seed, "agents' episodes")  # nobody else's
            both = [float(bed.agent_returns(r, episodes, states).mean()) for r in ROLES]
            if not abs(both[0] - both[1]) > 0:  # catches NaN, too
                raise UserError(
                    f"on {task} the agents have mean returns of {both[0]:g} and {both[1]:g}: there "
                    "is no way from the worse to the better one, which several tasks count in"
                )
            known[task] = both
            write_atomic(path, json.dumps(known, indent=2) + "\n")
    return [bed.changed(scale=tuple(sorted(known[bed.config.pool.task]))) for bed in testbeds]


def read_agents(path: Path) -> dict[str, list[float]]:
    """``agents.json``: the mean returns of the original and the target agent of each task.

    Raises:
        UserError: it is damaged.
    """
    return read_json(path, dict[str, _Two])
