"""Win rates between policies: a circle of three styles, and what lies beyond the data."""

import pytest
import torch

from torchmpo.control.pools import PoolConfig
from torchmpo.control.preferences import choose_pairs
from torchmpo.control.tournaments import cyclic_judge, win_rate_matrix
from torchmpo.diagnose.win_rates import judged_returns, tournament
from torchmpo.games.matrix_games import cyclic_game, duality_gap, nash_mixture

DATA = torch.arange(300.0)
LOW, MIDDLE, HIGH = torch.arange(20.0), torch.arange(100.0, 120.0), torch.arange(200.0, 220.0)


def test_three_styles_beat_each_other_in_a_circle_and_their_mixture_loses_to_nobody():
    rates = win_rate_matrix([LOW, MIDDLE, HIGH], cyclic_judge(DATA))
    torch.testing.assert_close(rates, cyclic_game(1.0))
    third = torch.full((3,), 1 / 3, dtype=torch.float64)
    torch.testing.assert_close(nash_mixture(rates), third)
    assert duality_gap(rates, third) < 1e-9
    assert duality_gap(rates, torch.eye(3)[0]) == 1.0


def test_what_is_better_than_all_of_the_data_has_the_style_of_its_best():
    best, beyond = torch.tensor([299.0]), torch.tensor([1e6])
    judge = cyclic_judge(DATA)
    assert judge(best, LOW[:1]) == judge(beyond, LOW[:1])
    assert win_rate_matrix([best, beyond], judge)[0, 1] == 0.5


def test_the_judge_says_of_pairs_of_the_data_what_their_labels_say():
    count, random = 40, torch.Generator().manual_seed(0)
    pool = {"returns": torch.randn(4 * count, generator=random)}
    pool |= {"lengths": torch.ones(4 * count, dtype=torch.long)}
    pool |= dict.fromkeys(("observation", "action"), torch.zeros(4 * count, 1, 1))
    data = choose_pairs(pool, PoolConfig(pairs=count), "cyclic")
    judge = cyclic_judge(torch.tensor(judged_returns("cyclic", data)))
    chosen, rejected = data.returns[data.chosen], data.returns[data.rejected]
    assert judge(chosen, rejected).all()
    assert 0.1 < (chosen > rejected).float().mean() < 0.9  # which no return explains
    assert judged_returns("base", data) is None


def test_cells_of_one_kind_meet_seed_by_seed():
    def cell(loss, *returns):
        rows = [row.tolist() for row in returns]
        return {"loss": loss, "returns": rows, "judged_returns": [DATA.tolist()] * len(rows)}

    cells = [cell("a", LOW, MIDDLE), cell("b", MIDDLE, LOW), {"loss": "old", "returns": [[1.0]]}]
    found = tournament(cells)
    assert found is not None
    assert found.losses == ["a", "b"]
    assert found.rates[0, 1].item() == pytest.approx(0.5)  # each loses once
    assert tournament(cells[:1]) is None
    lost = cell("lost", LOW, MIDDLE) | {"returns": [None, None]}
    again = tournament([*cells, lost, lost | {"returns": []}])
    assert again is not None
    assert again.losses == ["a", "b"]
    assert torch.equal(again.rates, found.rates)


def test_seeds_of_cells_that_did_not_tell_are_left_out():
    """Such as those that an older version has finished."""
    returns, order = [[1.0, 2.0], [3.0, 4.0]], [None, [0.0, 1.0, 2.0, 3.0]]
    cells = [{"loss": n, "returns": returns, "judged_returns": order} for n in ("dpo", "sft")]
    found = tournament(cells)
    assert found is not None
    assert found.losses == ["dpo", "sft"]
    assert tournament([cell | {"judged_returns": [None, None]} for cell in cells]) is None
