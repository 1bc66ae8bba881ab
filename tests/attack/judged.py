"""Was a bad input met as it should be? And one case from its folder to that answer."""

import hashlib
import re
import shutil
from pathlib import Path
from typing import NamedTuple

from attack.cases import Case
from attack.warm import CANARY, Ended, command, finish, start

# What may change in a folder although a command was refused.
MAY_CHANGE = re.compile(
    r"(^|/)(\.lock|\.held|commands\.json|progress\.html|log/.*|__pycache__/.*|cache/.*)$"
)
# What a command prints on stderr when all is well, too, and before the line that says what is not.
USUAL = re.compile(
    r"Seed set to |GPU available: |TPU available: |💡 Tip: |train: |validation: |Restoring states |"
    r"Restored all states |$"
)
NOT_A_NUMBER = re.compile(r"\b(nan|inf|None)\b")


class Verdict(NamedTuple):
    """How a case went.

    Attributes:
        kind: ``one line``, ``accepted``, or a fault.
        fault: what was wrong, in words; empty if nothing.
        text: the last lines on stderr.
        seconds: of the command.
    """

    kind: str
    fault: str
    text: str
    seconds: float


def files(folder: Path) -> dict[str, str]:
    """A digest of every file below a folder."""
    found = {}
    for path in sorted(folder.rglob("*")):
        if path.is_file():
            name = str(path.relative_to(folder))
            found[name] = hashlib.blake2b(path.read_bytes(), digest_size=8).hexdigest()
    return found


def attacked(case: Case, world: Path, work: Path) -> Verdict:
    """Run a case in a copy of the world.

    Args:
        world: from `attack.world.build`.
        work: a folder for it, which is emptied.
    """
    shutil.rmtree(work, ignore_errors=True)
    folder = work / "world"
    shutil.copytree(world, folder)
    if case.damage is not None:
        case.damage(folder)
    before = files(folder)
    process = start(command, case.words, folder=folder, printed=work / "printed")
    ended = finish(process, work / "printed", case.seconds)
    return verdict(case, ended, before, files(folder), files(world))


def verdict(
    case: Case,
    ended: Ended,
    before: dict[str, str],
    after: dict[str, str],
    world: dict[str, str],
) -> Verdict:
    """Judge a case by how its process ended, and by the files before and after it."""
    kind = "accepted" if ended.code == 0 else "one line"
    lines = [line for line in ended.err.splitlines() if not USUAL.match(line)]
    fault = ""
    if any(Path(name).name == CANARY for name in after):
        fault = "code from data has run"
    elif ended.late:
        fault = "it hangs"
    elif "Traceback (most recent call last)" in ended.err + ended.out:
        fault = "a traceback"
    elif ended.code is None or ended.code < 0 or ended.code == 1:
        fault = f"it ended with {ended.code}"
    elif ended.code == 0:
        if case.right == "refused":
            fault = "accepted"
        elif NOT_A_NUMBER.search(ended.out):
            fault = "accepted, with NaN in what is printed"
        elif changed := [name for name in case.same if after.get(name) != world[name]]:
            fault = f"accepted, with another {changed[0]}"
        elif case.says not in ended.out:
            fault = f"it does not say {case.says}"
    else:
        lost = [n for n in before if after.get(n) != before[n] and not MAY_CHANGE.search(n)]
        if case.right == "accepted":
            fault = "refused"
        elif sum(line.startswith("error: ") for line in lines) != 1:
            fault = "no line that says what is wrong"
        elif len(lines) > 1:
            fault = f"{len(lines)} lines"
        elif len(lines[0]) > 1000:
            fault = "a line without end"
        elif lost:
            fault = f"{lost[0]} was changed or lost"
        elif case.says not in lines[0]:
            fault = f"it does not say {case.says}"
    return Verdict(kind, fault, "\n".join(lines[-3:])[-1500:], round(ended.seconds, 2))
