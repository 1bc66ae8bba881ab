"""Bad inputs of the commands, by tables: what is damaged, and which command reads it.

Each ends in one line on stderr and exit code 2, or is accepted and right. A table says which it is:
``refused``; ``accepted``, where the damage is none; or ``either``, for values of which some are as
good as what they replace.
"""

from attack.case import Case
from attack.files import of_files, of_places
from attack.language import LANGUAGE
from attack.options import of_options
from attack.robots import ROBOTS

CASES: list[Case] = [*ROBOTS, *LANGUAGE, *of_options(), *of_files(), *of_places()]


def unlike() -> list[Case]:
    """All of them, each name once."""
    names = [case.name for case in CASES]
    twice_there = {name for name in names if names.count(name) > 1}
    assert not twice_there, twice_there
    return CASES
