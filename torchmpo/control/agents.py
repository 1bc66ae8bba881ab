"""The two agents of a task: shipped ones by their names, or files of policies."""

from pathlib import Path

from torchmpo.control.policy import GaussianPolicy, load_policy
from torchmpo.runs.errors import UserError, nearest
from torchmpo_envs import AGENTS, APART, EXPERTS, expert_path

ROLES = ("original", "target")


def agent_of(task: str, role: str, given: str) -> str:
    """The agent that a role is given to, or that the task has in it.

    Args:
        task: of whom the default is.
        role: one of ``ROLES``.
        given: the name of a shipped agent, or a file; empty for the task's own; ``"apart"`` for its
            target agent that was not trained from the original one.

    Raises:
        UserError: neither is there.
    """
    if not given and task not in AGENTS:
        raise UserError(
            f"task {task!r} has no agents of its own: give --original FILE and --target FILE, two "
            "policies whose trajectories are compared"
        )
    if (role, given) == ("target", "apart"):
        if task not in APART:
            raise UserError(
                f"target: {task} has no agent that was trained apart from the original; those are "
                f"of {', '.join(APART)}"
            )
        given = APART[task]
    agent = given or AGENTS[task][ROLES.index(role)]
    if agent not in EXPERTS and not Path(agent).is_file():
        shipped = nearest(agent, EXPERTS)
        raise UserError(
            f"{role}: there is no file {agent}, and no agent of that name is shipped: {shipped}"
        )
    return agent


def agent_path(agent: str) -> Path:
    """The file of an agent."""
    return expert_path(agent) if agent in EXPERTS else Path(agent)


def load_agent(
    agent: str, *, std: float | None = None, std_kind: str | None = None
) -> GaussianPolicy:
    """An agent as a policy, see :func:`torchmpo.control.policy.load_policy`.

    Raises:
        UserError: its file is damaged or no policy.
    """
    try:
        return load_policy(agent_path(agent), std=std, std_kind=std_kind)
    except ValueError as error:
        raise UserError(str(error)) from error
