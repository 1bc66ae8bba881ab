"""Rules that weigh two terms: what each must do by its definition, and their text."""

import pytest
import torch
from loss_cases import make_inputs

from torchmpo import PairLogps, resolve
from torchmpo.control.grids import check_grid, grid, ranges
from torchmpo.losses import LOSSES
from torchmpo.metrics import implicit_rewards
from torchmpo.objectives.balance import LEAST, RULES, Balanced, inner
from torchmpo.objectives.bound import Objective

NAMES = {"dual": "dpo+sft", "min_norm": "dpo+sft", "dynamic": "dpo+sft", "meta": "dpo+sft+orpo"}


def vector(*numbers: float) -> dict[str, torch.Tensor]:
    """A gradient over two parameters."""
    values = torch.tensor(numbers, dtype=torch.float64)
    return {"weight": values[:-1], "bias": values[-1:]}


def rule(name: str) -> Balanced:
    return Balanced({part: LOSSES[part] for part in NAMES[name].split("+")}, name)


def steps(name: str, losses, gradients, count: int = 1, **hyper: float):
    """Weights after ``count`` steps on the same values."""
    balance = rule(name)
    state = balance.start(gradients[0])
    hyper = {**balance.defaults, **hyper}
    for _ in range(count):
        values = torch.tensor(losses, dtype=torch.float64)
        state = balance.step(state, values, gradients, hyper)
    return state["weights"]


def test_all_begin_with_terms_that_weigh_the_same():
    for name in RULES:
        gradients = [vector(1.0, 2.0, 3.0)] * 3
        count = 3 if name == "meta" else 2
        weights = steps(name, [1.0] * 3, gradients[:count], weight_lr=0.0, entropy_coef=0.0)
        assert weights[0] == weights[1], name


def test_an_inactive_constraint_sends_its_multiplier_to_zero():
    gradients = [vector(1.0, 0.0)] * 2
    weights = steps("dual", [5.0, 0.5], gradients, 50, kappa=1.0, weight_lr=0.1)
    assert weights.tolist() == [1.0, 0.0]
    # A violated one raises it, by as much as it is violated.
    weights = steps("dual", [5.0, 3.0], gradients, 10, kappa=1.0, weight_lr=0.1)
    assert weights[1].item() == pytest.approx(1 + 10 * 0.1 * 2)


def test_dual_ascent_meets_the_conditions_of_karush_kuhn_and_tucker():
    """min ½(x − 3)² subject to ½x² ≤ ½ has x = 1 and λ = 2: slope −2 against λ·1."""
    balance = rule("dual")
    x = torch.tensor(0.0, dtype=torch.float64)
    state = balance.start({"x": x})
    hyper = {"kappa": 0.5, "weight_lr": 0.2}
    for _ in range(2000):
        losses = torch.stack([(x - 3) ** 2 / 2, x**2 / 2])
        one, multiplier = state["weights"]
        state = balance.step(state, losses, [], hyper)
        x = x - 0.1 * (one * (x - 3) + multiplier * x)
    multiplier = state["weights"][1]
    assert abs((x - 3) + multiplier * x) < 1e-6  # stationary
    assert abs(multiplier * (x**2 / 2 - 0.5)) < 1e-6  # complementary
    assert (x**2 / 2 - 0.5) < 1e-6  # feasible
    assert multiplier.item() == pytest.approx(2.0, abs=1e-6)


@pytest.mark.parametrize(
    ("first", "second"),
    [((1.0, 0.0, 0.0), (0.0, 2.0, 0.0)), ((1.0, -2.0, 0.5), (-0.5, 1.0, 3.0))],
)
def test_the_shortest_vector_lengthens_neither_term(first, second):
    gradients = [vector(*first), vector(*second)]
    alpha, rest = steps("min_norm", [1.0, 1.0], gradients)
    assert 0 < alpha < 1
    assert (alpha + rest).item() == pytest.approx(1.0)
    shortest = {name: alpha * g + rest * gradients[1][name] for name, g in gradients[0].items()}
    squared = inner(shortest, shortest)
    for gradient in gradients:
        assert inner(gradient, shortest).item() == pytest.approx(squared.item(), abs=1e-12)


def test_the_shortest_of_parallel_gradients_is_the_shorter_one():
    short, long = vector(1.0, 2.0, 0.0), vector(3.0, 6.0, 0.0)
    assert steps("min_norm", [1.0, 1.0], [short, long]).tolist() == [1.0, 0.0]
    assert steps("min_norm", [1.0, 1.0], [long, short]).tolist() == [0.0, 1.0]
    assert steps("min_norm", [1.0, 1.0], [long, long]).tolist() == [0.5, 0.5]
    assert steps("min_norm", [1.0, 1.0], [long, vector(float("nan"), 0.0, 0.0)]).isnan().all()


def test_dynamic_weights_move_towards_what_agrees():
    same, across = vector(2.0, 0.0, 0.0), vector(0.0, 0.0, -2.0)
    for pair in ([same, same], [same, across]):
        assert steps("dynamic", [1.0, 1.0], pair, 20, weight_lr=0.3).tolist() == [0.5, 0.5]
    # ⟨g_1, g_1 + g_2⟩ = 4 − 2 and ⟨g_2, g_1 + g_2⟩ = −2 + 1: log w_1/w_2 = lr·3 after a step.
    against = vector(-1.0, 0.0, 0.0)
    weights = steps("dynamic", [1.0, 1.0], [same, against], weight_lr=0.1)
    assert (weights[0] / weights[1]).log().item() == pytest.approx(0.3)
    assert weights.sum().item() == pytest.approx(1.0)


def test_the_share_of_what_validates_rises():
    preference, sft = vector(-1.0, 0.0), vector(1.0, 0.0)
    gradients = [preference, sft, sft]  # validated by the second term; the first one is against it

    def share(count: int, entropy_coef: float = 0.0) -> torch.Tensor:
        own = {"weight_lr": 0.01, "entropy_coef": entropy_coef}
        return steps("meta", [1.0] * 3, gradients, count, **own)[1]

    # No update comes before the first one; then μ ← μ + lr·⟨g_val, g_2 − g_1⟩ = μ + 0.01·2.
    assert [share(n).item() for n in (1, 2, 3)] == pytest.approx([0.5, 0.52, 0.54])
    assert share(99).item() == 1 - LEAST
    # The entropy term pulls back to a half of each.
    held = share(2000, 0.02)
    assert (0.02 * (held / (1 - held)).log()).item() == pytest.approx(0.02, abs=1e-6)


def test_a_population_is_its_members():
    torch.manual_seed(0)
    gradients = [{"weight": torch.randn(4, 3), "bias": torch.randn(4, 1)} for _ in range(3)]
    losses = torch.rand(4, 3)
    for name in RULES:
        balance = rule(name)
        own = {key: torch.rand(4) for key in balance.defaults if key in ("kappa", "weight_lr")}
        hyper = {"entropy_coef": 0.01}
        state = torch.func.vmap(balance.start)(gradients[0])

        def step(state, losses, gradients, own, balance=balance, hyper=hyper):
            return balance.step(state, losses, gradients, hyper | own)

        count = 3 if name == "meta" else 2
        together = torch.func.vmap(step)(state, losses, gradients[:count], own)["weights"]
        for i in range(4):
            alone = [{key: g[key][i] for key in g} for g in gradients[:count]]
            settings = hyper | {key: value[i] for key, value in own.items()}
            after = balance.step(balance.start(alone[0]), losses[i], alone, settings)
            torch.testing.assert_close(together[i], after["weights"])


@pytest.mark.parametrize("name", RULES)
def test_as_text_saved_tuned_and_called(name, tmp_path):
    text = f"0.5*{NAMES[name]}@{name}"
    objective = resolve(text, dpo_beta=0.3)
    assert isinstance(objective, Objective)
    assert isinstance(objective.source, Balanced)
    assert objective.needs_reference
    fields = {}
    for part in ("dpo", "sft", "orpo"):
        fields |= make_inputs(part, batch=6)
    pair = PairLogps(**fields)
    plain = resolve("0.5*dpo+sft", dpo_beta=0.3)
    torch.testing.assert_close(objective(pair), plain(pair))
    torch.testing.assert_close(
        implicit_rewards(objective, pair)[0], implicit_rewards(plain, pair)[0]
    )
    objective.save(tmp_path, {"made": "here"})
    again = resolve(tmp_path)
    assert isinstance(again, Objective)
    assert isinstance(again.source, Balanced)
    assert (again.name, again.hyper) == (objective.name, objective.hyper)
    assert again.source.rule == name
    named = resolve(objective.name, dpo_beta=0.3)
    assert isinstance(named, Objective)
    assert named.hyper == objective.hyper
    own = set(objective.hyper) & {"kappa", "weight_lr", "entropy_coef"}
    assert own <= set(ranges(objective))
    check_grid(objective, [*grid(objective, 5)])


@pytest.mark.parametrize(
    ("text", "hyper", "message"),
    [
        ("dpo+sft@duel", {}, "unknown balance 'duel' of a sum: did you mean 'dual'?"),
        (
            "dpo+sft@meta",
            {},
            "meta balances a sum of 3 losses, the third of which validates; got 2",
        ),
        ("dpo+sft+orpo@dual", {}, "dual balances a sum of 2 losses; got 3"),
        ("dpo+stf@dual", {}, "unknown loss 'stf' in a sum: did you mean 'sft'?"),
        ("dpo+sft@dual", {"weight_lr": -1.0}, "weight_lr must be .*; got -1.0"),
        ("dpo+sft@dual", {"kappa": float("nan")}, "kappa must be finite; got nan"),
        ("dpo+sft@min_norm", {"kappa": 1.0}, ".*has no hyper-parameter 'kappa'.*"),
    ],
)
def test_mistakes_are_one_line(text, hyper, message):
    with pytest.raises(ValueError, match=message):
        resolve(text, **hyper)
