"""The judge behind an endpoint against alpaca_eval's own template and parser."""

import math

import pytest
from alpaca_eval.completion_parsers import logprob_parser

from torchmpo.winrate.endpoint import Reply
from torchmpo.winrate.endpoint_judge import preference, read_template


@pytest.mark.parametrize(
    "logprobs",
    [
        {"M": -0.0176, "m": -4.0488, "Both": -14.9},
        {"m": -0.2, "The": -1.9, "M": -3.0},
        {"M": -0.1, "I": -2.5},
        {"m": -1e-9, "Based": -20.0},
    ],
)
def test_preferences_are_those_of_its_leaderboard(logprobs):
    top = [{"token": token, "logprob": value} for token, value in logprobs.items()]
    completion = {"logprobs": {"content": [{"token": top[0]["token"], "top_logprobs": top}]}}
    (theirs,) = logprob_parser(completion, "m", ["m", "M"], is_binarize=False)
    assert 1 + preference(Reply("", "length", logprobs)) == pytest.approx(theirs, abs=1e-12)


def test_neither_named():
    top = [{"token": "Both", "logprob": -0.1}]
    completion = {"logprobs": {"content": [{"token": "Both", "top_logprobs": top}]}}
    (theirs,) = logprob_parser(completion, "m", ["m", "M"], is_binarize=False)
    assert math.isnan(theirs)
    assert math.isnan(preference(Reply("Both", "length", {"Both": -0.1})))


def test_its_template_is_found_and_has_its_turns():
    system, user = read_template("alpaca_eval")
    assert system["content"].startswith("You are a highly efficient assistant")
    assert user["content"].rstrip().endswith("## Best Model Identifier")
