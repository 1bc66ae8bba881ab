"""What docs/rlhf.md shows in Python runs, and prints what it says."""

import re
from pathlib import Path

PAGE = Path(__file__).parents[2] / "docs" / "rlhf.md"


def test_the_python_of_the_page(capsys):
    blocks = re.findall(r"^```python\n(.*?)^```$", PAGE.read_text(), re.MULTILINE | re.DOTALL)
    printed = []
    for block in blocks:
        exec(compile(block, "rlhf.md", "exec"), {})
        printed.append(capsys.readouterr().out.split())
    assert printed == [["2", "0"], ["0.4", "0.0"]]
