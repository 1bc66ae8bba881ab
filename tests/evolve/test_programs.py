"""The search of formulas: it finds known ones, keeps to its space, and resumes to the same bits."""

import json
import math
from dataclasses import replace
from random import Random
from typing import Any, cast

import pytest
import torch
from populations import make_data, make_policy, make_population

from torchmpo.control import compiler
from torchmpo.control.inner_loop import InnerConfig, train_policies
from torchmpo.control.testbed import Testbed, TestbedConfig
from torchmpo.control.tuning import suited
from torchmpo.evolve.optimizers import SearchConfig
from torchmpo.evolve.programs.genetic import GeneticProgramming
from torchmpo.evolve.programs.grammar import Grammar
from torchmpo.evolve.programs.space import program_space
from torchmpo.evolve.programs.starts import FORMULAS
from torchmpo.evolve.search import search
from torchmpo.objectives.bound import Objective
from torchmpo.objectives.formulas import Formula, parse, text
from torchmpo.objectives.formulas.ranges import has
from torchmpo.objectives.formulas.vocabulary import LEAVES, depth, size
from torchmpo.objectives.inputs import PairLogps
from torchmpo.objectives.resolve import resolve
from torchmpo.runs.errors import UserError

READS = ["means", "sums", "time"]
KEPT = ("orpo", "sft", "cpo", "simpo")  # in every generation of 32


def distance(space, target):
    """Fitness: how near a formula's values are to another one's on some pairs."""
    gen = torch.Generator().manual_seed(0)
    c, r = (-3 * torch.rand(64, generator=gen) for _ in range(2))
    pair = PairLogps(
        chosen_mean_logps=c,
        rejected_mean_logps=r,
        chosen_logps=c,
        rejected_logps=r,
        progress=torch.tensor(0.5),
    )
    wanted = space.at(space.encode(parse(target)))(pair)

    def fitness(vectors, generation):
        values = [space.at(vector)(pair) for vector in vectors]
        return torch.stack([-(value - wanted).square().mean() for value in values])

    return fitness


def run(folder, generations=12, seed=0, target="0.7 * softplus(-3 * margin) - c"):
    space = program_space(READS, 12)
    folder.mkdir(exist_ok=True)
    config = SearchConfig(population=32, generations=generations, seed=seed)
    optimizer = GeneticProgramming(config, space)
    fitness = distance(space, target)
    found = search(fitness, space.start, config, folder, optimizer=optimizer)
    return space, found, fitness


def test_it_finds_a_formula_near_a_known_one(tmp_path):
    _, found, fitness = run(tmp_path)
    scores = [row["centre"] for row in found.log]
    assert scores[-1] > 0.2 * scores[0]  # a fifth of the distance of the start, or less
    assert scores[-1] == float(fitness(found.vector[None], 0)[0])


def test_a_resumed_search_has_the_same_bits(tmp_path):
    _, whole, _ = run(tmp_path / "whole", 5)
    run(tmp_path / "parts", 2)
    _, parts, _ = run(tmp_path / "parts", 5)
    assert torch.equal(whole.vector, parts.vector)
    assert whole.log == parts.log
    assert run(tmp_path / "other", 5, seed=1)[1].log != whole.log


def test_luck_does_not_last(tmp_path):
    """Of two formulas, one is better and the other was lucky once."""
    space = program_space(READS, 12)
    optimizer = GeneticProgramming(SearchConfig(population=4), space)
    rows = torch.stack([space.encode(parse(f)) for f in ("-c", "-margin")])
    state = optimizer.start(space.start)
    state = optimizer.tell(state, 0, rows, torch.tensor([10.0, 30.0]))
    assert text(space.decode(state["centre"])) == "-margin"
    for generation in (1, 2):
        state = optimizer.tell(state, generation, rows, torch.tensor([10.0, -20.0]))
    assert text(space.decode(state["centre"])) == "-c"


def test_failures_leave_and_the_rest_stays():
    space = program_space(READS, 12)
    optimizer = GeneticProgramming(SearchConfig(population=4), space)
    rows = torch.stack([space.encode(parse(f)) for f in ("-c", "-margin")])
    state = optimizer.start(space.start)
    assert optimizer.tell(state, 0, rows, torch.tensor([math.nan, math.nan])) == state
    state = optimizer.tell(state, 0, rows, torch.tensor([10.0, 30.0]))
    state = optimizer.tell(state, 1, rows, torch.tensor([10.0, math.nan]))
    assert state["trainings"].tolist() == [2, 0, 0, 0]


def test_a_generation_begins_with_what_is_known_and_holds_no_twins():
    space = program_space(READS, 12)
    optimizer = GeneticProgramming(SearchConfig(population=32), space)
    state = optimizer.start(space.start)
    first = [text(space.decode(row)) for row in optimizer.ask(state, 0)]
    named = {n: f for n, f in FORMULAS.items() if "D" not in f}
    assert first[: len(named)] == [text(parse(f)) for f in named.values()]
    state = optimizer.tell(state, 0, optimizer.ask(state, 0), torch.arange(32.0))
    members = optimizer.ask(state, 1)
    assert torch.equal(members[:8], state["archive"][:8])
    now = {text(space.decode(row)) for row in members}
    assert {text(parse(FORMULAS[name])) for name in KEPT} <= now
    assert len({tuple(row) for row in members.tolist()}) == 32
    assert torch.equal(members, optimizer.ask(state, 1))


# --- the space ---


def test_vectors_are_formulas():
    space = program_space([*READS, "lengths", "steps", "reference"], 12)
    rng = Random(0)
    for _ in range(50):
        expression = space.grammar.random(rng)
        vector = space.encode(expression)
        assert vector.shape == (space.dim,)
        assert space.decode(vector) == expression


def test_variations_keep_to_the_grammar():
    grammar, rng = Grammar([n for n in LEAVES if n != "t"], 9, ["bounded", "monotone"]), Random(0)
    formulas = [grammar.random(rng) for _ in range(10)]
    for _ in range(150):
        parents = rng.choice(formulas), rng.choice(formulas)
        for found in (grammar.varied(*parents, rng), grammar.retuned(parents[0], 0.3, rng)):
            if found is not None:
                assert size(found) <= 9
                assert depth(found) <= 7
                assert "t" not in text(found).replace("soft", "").split()
                assert has(found, "bounded")
                assert has(found, "monotone")


def test_a_reference_is_read_only_where_it_is_asked_for():
    assert not program_space(READS, 12).objective.needs_reference
    space = program_space([*READS, "reference"], 12)
    assert space.objective.needs_reference
    assert space.start_name == "DPO"


@pytest.mark.parametrize("reads", [READS, [*READS, "reference"]])
def test_a_found_formula_is_trained_as_it_was_compared(tmp_path, reads):
    """The search trains all formulas of a space alike, whichever of its leaves they read."""
    space = program_space(reads, 12)
    config = TestbedConfig(inner=InnerConfig(epochs=12))
    bed = Testbed(config, cast("Any", None), cast("Any", None))
    compared = suited(bed, space.objective, 10).config.inner
    assert compared.sft_epochs == (10 if "reference" in reads else 0)
    known = [f for n, f in FORMULAS.items() if n not in ("dpo", "ipo") or "reference" in reads]
    for k, formula in enumerate(["-c", *known]):
        vector = space.encode(parse(formula))
        space.save(tmp_path / str(k), vector, {"name": formula})
        for objective in (space.at(vector), resolve(tmp_path / str(k))):
            assert suited(bed, objective, 10).config.inner == compared
    assert not resolve(tmp_path / "0").needs_reference  # for fine-tuning: it reads none


def test_a_formula_without_that_word_is_read_as_before(tmp_path):
    Objective(Formula(parse("-c"))).save(tmp_path, {})
    file = tmp_path / "objective.json"
    assert json.loads(file.read_text()) == {"loss": "formula", "hyper": {}, "formula": "-c"}
    assert not Objective.load(tmp_path).after_sft
    file.write_text('{"loss": "formula", "hyper": {}, "formula": "-c", "after_sft": "no"}')
    with pytest.raises(ValueError, match="after_sft must be true or false"):
        Objective.load(tmp_path)


def test_a_start_is_called_what_begins():
    for formula, name in (("-0.123456 * c", "-0.1235 * c"), ("-0.125*c", "-0.125*c")):
        assert program_space(READS, 12, start=formula).start_name == name
    long = "-c" + " - 0.125 * c" * 30  # longer than the name of any file
    with pytest.raises(UserError, match=r"lies outside the space: it reads"):
        program_space(READS, 12, start=long)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"reads": ["meens"]}, "reads: unknown 'meens': did you mean 'means'?"),
        ({"reads": ["time"]}, "nothing of the policy is among it"),
        ({"most": 2}, "nodes must be from 3 to 127; got 2"),
        ({"require": ["monoton"]}, "require: unknown 'monoton': did you mean 'monotone'?"),
        ({"start": "dpo"}, "start DPO lies outside the space"),
        ({"start": "softplus("}, "is no formula"),
        ({"start": "-margin", "require": ["bounded"]}, "lies outside the space"),
    ],
)
def test_what_is_no_space_is_refused(changes, message):
    settings = {"reads": READS, "most": 12} | changes
    with pytest.raises(UserError) as caught:
        program_space(**settings)
    assert message in str(caught.value)


def test_one_program_trains_whatever_formulas_there_are(monkeypatch):
    compiled = []

    def count(update, args):
        compiled.append(args)
        return update

    monkeypatch.setattr(compiler, "compiled", count)
    space, policy = program_space(READS, 12), make_policy()
    start, config = make_population(policy, 2), InnerConfig(epochs=1, steps_per_trajectory=3)
    results = []
    for formulas in (
        ("-c", "softplus(-margin)"),
        ("tanh(c) * r - c", "square(margin - 2) - t * c"),
    ):
        rows = torch.stack([space.encode(parse(formula)) for formula in formulas])
        own = space.parameters(rows)
        trained = train_policies(policy, start, space.objective, own, make_data(), config, 0)
        alone = [
            train_policies(
                policy,
                {name: value[k : k + 1] for name, value in start.items()},
                space.at(row),
                {},
                make_data(),
                replace(config, compile=False),
                0,
            )
            for k, row in enumerate(rows)
        ]
        for name, value in trained.items():
            torch.testing.assert_close(value, torch.cat([one[name] for one in alone]))
        results.append(trained)
    assert len(compiled) == 1
    assert not torch.equal(results[0]["layers.0.bias"], results[1]["layers.0.bias"])


def test_a_generation_that_all_found_easy_makes_nobody_better():
    space = program_space(READS, 12)
    optimizer = GeneticProgramming(SearchConfig(population=32), space)
    controls = torch.stack([space.encode(parse(f)) for n, f in FORMULAS.items() if n in KEPT])
    first, second, new = (space.encode(parse(f)) for f in ("-2 * c", "-margin", "-c_sum"))
    state = optimizer.start(space.start)
    rows = torch.cat([controls, torch.stack([first, second])])
    state = optimizer.tell(state, 0, rows, torch.tensor([0.0, 1.0, 2.0, 3.0, 10.0, 30.0]))
    # All gain 100 and some noise, which cancels in the controls; the new one is between the two.
    scores = torch.tensor([101.0, 100.0, 102.0, 103.0, 110.0, 130.0, 120.0])
    state = optimizer.tell(state, 1, torch.cat([rows, new[None]]), scores)
    assert [text(space.decode(row)) for row in state["archive"][:3]] == [
        "-margin",
        "-c_sum",
        "-2 * c",
    ]
    assert (state["sums"] / state["trainings"])[:3].tolist() == [30.0, 20.0, 10.0]


@pytest.mark.parametrize("generation_sd", [0.0, 300.0])
def test_where_all_formulas_are_alike_no_score_runs_away(generation_sd):
    """Scores are noise, and that of a whole generation beside it."""
    space = program_space(READS, 12)
    optimizer = GeneticProgramming(SearchConfig(population=32), space)
    state, random = optimizer.start(space.start), torch.Generator().manual_seed(0)
    for generation in range(12):
        members = optimizer.ask(state, generation)
        noise = torch.randn(32, generator=random) * 100
        luck = torch.randn((), generator=random) * generation_sd * (generation > 0)
        state = optimizer.tell(state, generation, members, 2000 + noise + luck)
    kept = state["trainings"] > 0
    told = state["sums"][kept] / state["trainings"][kept]
    # Of some 300 draws the highest is about three standard deviations above their mean.
    assert told.max() < 2000 + 400
