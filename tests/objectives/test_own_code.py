"""A loss under another tool's name is one of the library's, not the code of a user."""

import pytest

from torchmpo.objectives.other_tools import LOSSES_OF
from torchmpo.objectives.resolve import is_own, resolve
from torchmpo.runs.own_code import TOOLS, names_code


def test_tools_are_those_that_are_known():
    assert set(TOOLS) == set(LOSSES_OF)


@pytest.mark.parametrize("name", ["trl:sigmoid_norm", "oxrl:simpo", "dpo"])
def test_nobody_is_asked_for_trust(name):
    assert not names_code(name)
    assert not is_own(name)
    assert not resolve(name).own


def test_an_id_of_gymnasium_is_code_where_it_names_a_module():
    assert not names_code("gymnasium:Walker2d-v5")
    assert names_code("gymnasium:my_robots:Walker2d-v5")


def test_a_module_is_code():
    assert names_code("my_losses:loss")
    assert is_own("my_losses:loss")
