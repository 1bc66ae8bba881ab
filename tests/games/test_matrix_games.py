"""Games: gaps and win rates in closed form, online IPO in circles, EGPO at its end."""

import pytest
import torch

from torchmpo.games.matrix_games import cyclic_game, duality_gap, kl, nash_mixture
from torchmpo.games.online_ipo import ipo_gradient, learn, sampled_ipo_gradient

UNIFORM = torch.full((3,), 1 / 3, dtype=torch.float64)
START = torch.tensor([0.6, 0.3, 0.1], dtype=torch.float64)


def test_online_ipo_circles_at_a_gap_of_0_40_where_extragradient_ends_at_the_equilibrium():
    # Win rates of 75 %, β 0.001, η 1, 2,500 exact steps; the gap of the game without KL.
    game = cyclic_game(0.5)
    settings = {"beta": 0.001, "step_size": 1.0, "steps": 2500, "start": START}
    plain = learn(game, UNIFORM, extragradient=False, **settings)
    late = torch.stack([duality_gap(game, policy) for policy in plain[-300:]])
    assert late.mean().item() == pytest.approx(0.40, abs=0.01)
    assert late.min() > 0.1
    ahead = learn(game, UNIFORM, extragradient=True, **settings)
    assert duality_gap(game, ahead[-1]) < 1e-10


def test_extragradient_ends_at_the_equilibrium_with_kl_to_a_skewed_reference():
    game, reference, beta = cyclic_game(1.0), START, 0.1
    end = learn(game, reference, beta=beta, step_size=1.0, steps=400, extragradient=True)[-1]
    assert duality_gap(game, end, reference, beta=beta) < 1e-10
    assert duality_gap(game, end) > 0.01  # the reference keeps it from the one without KL
    # A fixed point: π ∝ π_ref·exp(Pπ/β).
    torch.testing.assert_close(end, torch.softmax(reference.log() + game @ end / beta, 0))


def test_gradient_of_the_losss_of_all_pairs_is_the_step_in_closed_form():
    torch.manual_seed(0)
    scores = torch.randn(4, 4, dtype=torch.float64)
    game, beta = torch.sigmoid(scores - scores.T), 0.3
    policy, opponent, reference = torch.rand(3, 4, dtype=torch.float64).softmax(1)
    gradient = ipo_gradient(policy.log(), opponent, reference, game, beta=beta)
    pull = (policy / reference).log() - game @ opponent / beta
    torch.testing.assert_close(gradient, 4 / len(game) * (pull - pull.mean()))


def test_sampled_gradients_have_the_exact_one_for_their_mean():
    game, beta = cyclic_game(0.8), 0.5
    args = START.log(), torch.tensor([0.2, 0.1, 0.7], dtype=torch.float64), UNIFORM, game
    draw = {"pairs": 1_000_000, "generator": torch.Generator().manual_seed(1)}
    sampled = sampled_ipo_gradient(*args, beta=beta, **draw)
    exact = ipo_gradient(*args, beta=beta)
    torch.testing.assert_close(sampled, exact, atol=0.01, rtol=0)
    assert exact.abs().max() > 0.3


def test_learning_from_drawn_pairs_comes_near_the_equilibrium():
    game = cyclic_game(0.8)
    settings = {"beta": 0.1, "step_size": 0.05, "steps": 600, "start": START, "pairs": 64}
    end = learn(game, UNIFORM, extragradient=True, seed=0, **settings)
    assert duality_gap(game, end[-1]) < 0.15 < duality_gap(game, START) - 0.1
    again = learn(game, UNIFORM, extragradient=True, seed=0, **settings)
    assert torch.equal(end, again)


@pytest.mark.parametrize("beta", [0.0, 0.2])
def test_the_gap_is_that_of_the_best_of_many_opponents(beta):
    game, generator = cyclic_game(0.6), torch.Generator().manual_seed(0)
    grid = torch.rand(40_000, 3, generator=generator, dtype=torch.float64).log()
    others = torch.cat([grid / grid.sum(1, keepdim=True), torch.eye(3, dtype=torch.float64)])

    def value(a, b):
        return ((a @ game) * b).sum(-1) - beta * kl(a, UNIFORM) + beta * kl(b, UNIFORM)

    policy = START.expand_as(others)
    found = value(others, policy).max() - value(policy, others).min()
    gap = duality_gap(game, START, UNIFORM, beta=beta)
    assert found <= gap + 1e-9
    assert found.item() == pytest.approx(gap.item(), abs=1e-3)


def test_nash_mixture_of_an_uneven_circle_and_of_a_game_with_a_winner():
    # Margins a, b, c: the mixture is proportional to them, each at the answer it does not touch.
    a, b, c = 0.4, 0.2, 0.1
    margins = torch.tensor([[0, a, -b], [-a, 0, c], [b, -c, 0]], dtype=torch.float64)
    mixture = nash_mixture(0.5 + margins)
    torch.testing.assert_close(mixture, torch.tensor([c, b, a], dtype=torch.float64) / (a + b + c))
    assert duality_gap(0.5 + margins, mixture) < 1e-9
    winner = torch.tensor([[0.5, 0.9], [0.1, 0.5]], dtype=torch.float64)
    assert nash_mixture(winner).tolist() == [1.0, 0.0]


def test_what_is_no_game_is_refused():
    with pytest.raises(ValueError, match=r"win rates must be \[n, n\]"):
        duality_gap(torch.zeros(2, 3), UNIFORM)
    with pytest.raises(ValueError, match="must be 1"):
        nash_mixture(torch.full((2, 2), 0.4))
    with pytest.raises(ValueError, match="needs the reference"):
        duality_gap(cyclic_game(), UNIFORM, beta=0.1)
    with pytest.raises(ValueError, match="their product at most 1"):
        learn(cyclic_game(), UNIFORM, beta=2.0, step_size=1.0, steps=1, extragradient=False)
