"""Formulas: read and never executed, equal to the losses they spell, and the same in every form."""

import importlib.util
import json
import math
import re
from random import Random

import pytest
import torch

import torchmpo
from torchmpo.evolve.programs.grammar import Grammar
from torchmpo.evolve.programs.interpreter import Interpreter
from torchmpo.evolve.programs.starts import FORMULAS
from torchmpo.objectives.bound import Objective
from torchmpo.objectives.formulas import Formula, parse, text
from torchmpo.objectives.formulas.formula import inputs_of
from torchmpo.objectives.formulas.language import MOST_LETTERS
from torchmpo.objectives.formulas.ranges import has, interval, slopes
from torchmpo.objectives.formulas.simplify import simplified
from torchmpo.objectives.formulas.vocabulary import GROUPS, LEAVES, OPERATIONS, size
from torchmpo.objectives.inputs import PairLogps
from torchmpo.objectives.resolve import resolve

STEPS, BATCH = 6, 9


def make_pair(seed=0, scale=1.0):
    """Pairs whose means, sums, lengths and steps belong together; gradients go to the steps."""
    gen = torch.Generator().manual_seed(seed)
    fields, leaves = {"progress": torch.tensor(0.3, dtype=torch.float64)}, []
    for side in ("chosen", "rejected"):
        lengths = torch.randint(1, STEPS + 1, (BATCH,), generator=gen)
        mask = torch.arange(STEPS) < lengths[:, None]
        for ref in ("", "ref_"):
            steps = -3 * scale * torch.rand(BATCH, STEPS, generator=gen, dtype=torch.float64) - 0.05
            if not ref:
                leaves.append(steps.requires_grad_())
            total = (steps * mask).sum(-1)
            fields |= {f"{ref}{side}_logps": total, f"{ref}{side}_mean_logps": total / lengths}
            fields[f"{ref}{side}_step_logps"] = steps
        fields |= {f"{side}_lengths": lengths, f"{side}_mask": mask}
    return PairLogps(**fields), leaves


def value_and_gradient(function, pair, leaves):
    loss = function(pair)
    slopes = torch.autograd.grad(
        loss.sum(), leaves, retain_graph=True, allow_unused=True, materialize_grads=True
    )
    return [loss.detach(), *slopes]


def close(first, second, tolerance=1e-6):
    for a, b in zip(first, second, strict=True):
        torch.testing.assert_close(a, b, atol=tolerance, rtol=tolerance)


def random_formulas(count, groups=GROUPS, seed=0, most=12):
    leaves = [name for name, leaf in LEAVES.items() if leaf.group in groups]
    grammar, rng = Grammar(leaves, most), Random(seed)
    return [grammar.random(rng) for _ in range(count)]


RANDOM = random_formulas(60)


# --- the same loss in every form ---


@pytest.mark.parametrize("name", FORMULAS)
def test_named_losses_are_formulas(name):
    pair, leaves = make_pair()
    close(
        value_and_gradient(Objective(Formula(parse(FORMULAS[name]))), pair, leaves),
        value_and_gradient(resolve(name), pair, leaves),
    )
    assert size(parse(FORMULAS[name])) <= 12


def test_the_interpreter_computes_many_formulas_at_once():
    pair, leaves = make_pair()
    formulas = [*map(parse, FORMULAS.values()), *RANDOM]
    interpreter = Interpreter(list(LEAVES))
    codes, constants = map(torch.tensor, zip(*map(interpreter.tree, formulas), strict=True))
    data = [getattr(pair, name) for name in interpreter.inputs]
    rows = torch.func.vmap(lambda c, k: interpreter(*data, codes=c, constants=k))(
        codes, constants.double()
    )
    for row, expression in zip(rows, formulas, strict=True):
        alone = value_and_gradient(Objective(Formula(expression)), pair, leaves)
        found = value_and_gradient(lambda _, row=row: row, pair, leaves)
        assert all(value.isfinite().all() for value in found), text(expression)
        close(found, alone)


def test_no_gradient_of_what_is_not_computed_is_infinite():
    # exp and log_odds of the margin would overflow, and log1p of it be NaN.
    interpreter = Interpreter(["c", "r", "margin"])
    codes, constants = map(torch.tensor, interpreter.tree(parse("softplus(margin) - c")))
    c = torch.tensor([-1e4, -1e-9, 500.0], requires_grad=True)
    r = torch.tensor([0.0, -1e4, -1e4], requires_grad=True)
    loss = interpreter(c, r, codes=codes, constants=constants)
    by_chosen, by_rejected = torch.autograd.grad(loss.sum(), (c, r))
    assert torch.stack([loss, by_chosen, by_rejected]).isfinite().all()
    assert by_chosen.tolist() == pytest.approx([-1.0, 0.0, 0.0])


@pytest.mark.parametrize("name", [n for n, o in OPERATIONS.items() if o.takes[0][1] > 1])
def test_every_operation_takes_lengths(name):
    """Which are whole numbers, of which torch does not know every function."""
    pair, leaves = make_pair()
    own = (name, *["c_len", "r_len"][: len(OPERATIONS[name].takes)])
    formula = Formula(("sub", own, "c"))
    scope = {}
    exec(formula.source(), scope)
    found = value_and_gradient(Objective(formula), pair, leaves)
    close(found, value_and_gradient(Objective(scope["loss"]), pair, leaves))
    sizes = [pair.chosen_lengths.double(), pair.rejected_lengths.double()]
    wanted = OPERATIONS[name].function(*sizes[: len(own) - 1]) - pair.chosen_mean_logps
    torch.testing.assert_close(found[0], wanted.detach(), rtol=1e-6, atol=1e-6)


def test_what_is_taken_off_has_brackets():
    formula = Formula(parse("complement(1 - sigmoid(c)) - (r - c)"))
    assert formula.latex() == r"(1 - (1 - \sigma(\bar c))) - (\bar r - \bar c)"


def test_source_is_trained_as_its_objective_is(tmp_path, monkeypatch):
    monkeypatch.syspath_prepend(tmp_path)
    for k, (formula, after) in enumerate([("-c", True), ("-c", False), ("-D", True)]):
        (tmp_path / f"kept_{k}.py").write_text(Formula(parse(formula)).source(after))
        own = resolve(f"kept_{k}:loss")
        assert own.after_sft == after
        assert own.needs_reference == (formula == "-D")
    assert "after_sft" not in Formula(parse("-D")).source(True)


def test_source_is_the_same_loss(tmp_path, monkeypatch):
    monkeypatch.syspath_prepend(tmp_path)
    pair, leaves = make_pair()
    nested = ["complement(1 - sigmoid(margin)) - c", "complement(0.5 * sigmoid(c) + 0.5 * t) - c"]
    nested += ["c - complement(complement(sigmoid(r)) * t)"]
    for k, expression in enumerate([*map(parse, [*FORMULAS.values(), *nested]), *RANDOM]):
        formula = Formula(expression)
        (tmp_path / f"found_{k}.py").write_text(formula.source())
        own = resolve(f"found_{k}:loss")
        assert own.inputs == set(formula.inputs)
        close(
            value_and_gradient(own, pair, leaves),
            value_and_gradient(Objective(formula), pair, leaves),
        )


def test_source_needs_torch_only(tmp_path):
    everything = " + ".join(
        f"{name}({', '.join(['relu(c)', 'r'][: len(o.takes)])})"
        for name, o in OPERATIONS.items()
        if o.takes[0] not in (LEAVES["c"].range, LEAVES["t"].range)
        and name not in ("neg", "add", "sub", "mul")
    )
    path = tmp_path / "everything.py"
    path.write_text(Formula(parse(everything + " + exp(c) + log_odds(r) - complement(t)")).source())
    imports = [line for line in path.read_text().splitlines() if "import" in line]
    assert imports == ["import torch", "from torch.nn.functional import softplus"]
    spec = importlib.util.spec_from_file_location("everything", path)
    assert spec is not None
    assert spec.loader is not None
    spec.loader.exec_module(importlib.util.module_from_spec(spec))


def test_text_is_read_back():
    for expression in RANDOM:
        assert parse(text(expression)) == expression


def test_what_is_read_back_is_the_same_tree():
    """Not only its value: a level more, and a formula of a search would lie outside its space."""
    for words in ("c + (r - t)", "c - (r + t)", "c * (r * t)", "c - r + t", "c * (r + t) * t"):
        assert text(parse(words)) == words
    grammar, rng = Grammar(["c", "r", "c_sum", "t"], 20), Random(0)
    formula, several = parse("c - r"), 0
    for _ in range(1000):
        formula = grammar.varied(formula, formula, rng) or formula
        several += size(formula) > 10
        assert parse(text(formula)) == formula
    assert several > 300


def test_latex_of_every_part():
    for expression in RANDOM:
        latex = Formula(expression).latex()
        assert latex.count("{") == latex.count("}")
        assert latex.count("(") == latex.count(")")
    assert Formula(parse(FORMULAS["dpo"])).latex() == r"\log(1 + e^{-0.1 \, D})"
    assert Formula(parse("square(c - 2 * (r + 1)) * t")).latex() == (
        r"(\bar c - 2 \, (\bar r + 1))^2 \, t"
    )


# --- simpler, and equal ---


def test_simplified_is_equal():
    pair, leaves = make_pair()
    raw, rng = [], Random(1)
    grammar = Grammar(list(LEAVES), 20)
    while len(raw) < 40:
        expression = grammar._grow(rng, (-math.inf, math.inf), 20, 7)
        if grammar.tidied(expression) is not None:
            raw.append(expression)
    interpreter = Interpreter(list(LEAVES))  # computes what is there, simple or not
    for expression in raw:
        found = simplified(expression)
        assert size(found) <= size(expression)
        values = []
        for form in (expression, found):
            codes, constants = map(torch.tensor, interpreter.tree(form))
            data = [getattr(pair, name) for name in interpreter.inputs]
            row = interpreter(*data, codes=codes, constants=constants.double())
            values.append(value_and_gradient(lambda _, row=row: row, pair, leaves))
        if all(value.isfinite().all() for value in values[0]):
            close(*values, tolerance=1e-5)


@pytest.mark.parametrize(
    ("formula", "simple"),
    [
        ("c + 0 * r", "c"),
        ("1 * c - 0", "c"),
        ("-(-c)", "c"),
        ("2 * (3 * c)", "6 * c"),
        ("c - r", "margin"),
        # torch's tanh, whose last bit is not math's on every processor
        ("tanh(0.5) * c", f"{float(torch.tensor(0.5, dtype=torch.float64).tanh())!r} * c"),
        ("c + -r", "margin"),
        ("ratio(c, 0)", "c"),
        ("square(-c)", "square(c)"),
        ("c * c", "square(c)"),
    ],
)
def test_what_changes_nothing_is_left_out(formula, simple):
    assert text(simplified(parse(formula))) == simple


# --- what is certain of a formula ---


def test_values_lie_in_their_interval():
    for seed, expression in enumerate(RANDOM):
        pair, _ = make_pair(seed)
        low, high = interval(expression)
        value = Objective(Formula(expression))(pair)
        assert (value >= low - 1e-9).all(), text(expression)
        assert (value <= high + 1e-9).all(), text(expression)


def test_slopes_are_those_of_the_gradient():
    checked = 0
    for seed, expression in enumerate(random_formulas(200, ("means", "sums", "time"))):
        pair, leaves = make_pair(seed)
        gradients = value_and_gradient(Objective(Formula(expression)), pair, leaves)[1:]
        for slope, gradient in zip(slopes(expression), gradients, strict=True):
            if slope is not None:
                checked += slope != 0
                assert (gradient * (slope or 1) >= -1e-12).all(), text(expression)
                assert slope != 0 or not gradient.any()
    assert checked > 50


@pytest.mark.parametrize(
    ("name", "bounded", "monotone"),
    [("orpo", True, True), ("dpo", True, True), ("ipo", True, False), ("slic_hf", True, True)],
)
def test_properties_of_named_losses(name, bounded, monotone):
    expression = parse(FORMULAS[name])
    assert (has(expression, "bounded"), has(expression, "monotone")) == (bounded, monotone)


# --- text from anywhere ---


def wide(levels):
    return "c" if levels == 0 else f"maximum({wide(levels - 1)}, {wide(levels - 1)})"


@pytest.mark.parametrize(
    ("formula", "message"),
    [
        ("__import__('os').system('true')", "no part of a formula: Call"),
        ("c.__class__", "no part of a formula: Attribute"),
        ("(lambda: c)()", "no part of a formula: Call"),
        ("[c for c in r]", "no part of a formula: ListComp"),
        ("exp(c, r)", "exp takes 1 argument; got 2"),
        ("maximum(c)", "maximum takes 2 arguments; got 1"),
        ("exp(*c)", "no part of a formula: Starred"),
        ("exp(margin)", "exp takes values in [-inf, 0], and margin lies in [-inf, inf]"),
        ("log1p(c)", "log1p takes values in [0, inf]"),
        ("c ** 2", "a formula has +, -, * and / by a number"),
        ("c / r", "a formula has +, -, * and / by a number"),
        ("c / 0", "a formula has +, -, * and / by a number"),
        ("softpls(c)", "did you mean 'softplus'?"),
        ("cc", "unknown name 'cc'"),
        ("t * 2", "reads no log-probability of the policy"),
        ("1e999 * c", "a constant lies between"),
        ("10000000000000000000000 * c", "a constant lies between"),
        ("True * c", "a constant is a number; got True"),
        ("'c'", "a constant is a number"),
        ("c +", "no formula: 'c +'"),
        ("", "no formula"),
        ("c\0", "no formula"),
        ("c; r", "no formula"),
        ("-" * 1500 + "c", "at most 40 levels"),
        ("(" * 900 + "c" + ")" * 900, "no formula"),
        ("+".join(["c"] * 70), "levels"),
        ("c" * (MOST_LETTERS + 1), "at most 20000 letters"),
        ("-" * 19_000 + "c", "no formula"),
        ("+".join(["c"] * 9000), "no formula"),
        (wide(9), "at most 1000 nodes; this has 1023"),
    ],
)
def test_text_that_is_no_formula_is_refused(formula, message):
    with pytest.raises(ValueError, match=re.escape(message)) as caught:
        parse(formula)
    assert "\n" not in str(caught.value)


def test_a_saved_formula_resolves(tmp_path):
    pair, leaves = make_pair()
    objective = Objective(Formula(parse(FORMULAS["orpo"])))
    objective.save(tmp_path / "saved", {"name": "mine"})
    loaded = torchmpo.resolve(tmp_path / "saved")
    assert loaded.card == {"name": "mine"}
    assert loaded.inputs == {"chosen_mean_logps", "rejected_mean_logps"}
    close(value_and_gradient(loaded, pair, leaves), value_and_gradient(objective, pair, leaves), 0)


@pytest.mark.parametrize(
    "formula", ["exp(margin)", "__import__('os')", 3, None, ["c"], "c" * 30_000, "c\ud800"]
)
def test_a_damaged_formula_is_one_line(tmp_path, formula):
    Objective(Formula("c")).save(tmp_path, {})
    path = tmp_path / "objective.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | {"formula": formula}))
    with pytest.raises(ValueError, match="is not a readable saved objective") as caught:
        torchmpo.resolve(tmp_path)
    assert "\n" not in str(caught.value)


def test_inputs_are_in_the_vocabulary():
    assert set(inputs_of(list(LEAVES))) <= set(PairLogps._fields)


def test_no_gradient_reaches_the_reference():
    """Neither in the library nor in the file that is written for torch alone."""
    formula = Formula(parse("softplus(-0.1 * D) + 0.5 * (c - c_ref) * (r - r_ref)"))
    data = [torch.tensor([-1.0 - k], requires_grad=True) for k in range(len(formula.inputs))]
    written = {}
    exec(formula.source(False), written)
    for loss in (formula, written["loss"]):
        slopes = torch.autograd.grad(loss(*data).sum(), data, allow_unused=True)
        named = zip(formula.inputs, slopes, strict=True)
        reached = {name for name, slope in named if slope is not None and slope.any()}
        assert reached == {name for name in formula.inputs if not name.startswith("ref_")}


@pytest.mark.parametrize("words", ["1e6 * (1e6 * c)", "c * (1000000.0 * 900000.0)"])
def test_what_is_folded_can_be_read_again(words, tmp_path):
    objective = Objective(Formula(parse(words)))
    objective.save(tmp_path, {})
    pair = PairLogps(chosen_mean_logps=torch.tensor([-1.0, -2.0], dtype=torch.float64))
    torch.testing.assert_close(torchmpo.resolve(tmp_path)(pair), objective(pair))


def test_a_density_above_one_is_no_nan():
    formula = Formula(parse("log1p(-c) - 0.1 * margin"))
    data = torch.tensor([2.0, 0.0, -1.0]), torch.tensor([1.0, 0.0, -1.0])
    wanted = torch.tensor([-0.1, 0.0, math.log(2)])
    torch.testing.assert_close(formula(*data), wanted)
