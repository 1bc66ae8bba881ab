"""A curriculum: which kind of data a generation is on, and a search that forgets nothing of it."""

import csv
import json
from collections import Counter
from dataclasses import replace

import pytest
import torch

from torchmpo.control.inner_loop import InnerConfig
from torchmpo.control.pools import PoolConfig
from torchmpo.control.testbed import Testbed, TestbedConfig, prepare
from torchmpo.evolve import run as evolve
from torchmpo.evolve.curriculum import ALL, STALENESS, Curriculum
from torchmpo.evolve.fitness import ObjectiveFitness, OneOfKinds
from torchmpo.evolve.optimizers import SearchConfig
from torchmpo.evolve.search import search
from torchmpo.evolve.settings import PRESETS, EvolveConfig
from torchmpo.evolve.setup import Setup
from torchmpo.evolve.several_tasks import on_one_scale
from torchmpo.evolve.spaces import space_of
from torchmpo.objectives.resolve import resolve
from torchmpo.runs.errors import UserError

RIVAL = {"base": 100.0, "mixed": 80.0, "noisy:0.3": 60.0}


def row(generation, regime, mean):
    return {"generation": generation, "regime": regime, "mean": mean}


LOG = [row(0, "base", 95.0), row(1, "mixed", 40.0), row(2, "noisy:0.3", 50.0)]


def test_every_kind_has_its_turn_before_any_has_another():
    curriculum = Curriculum(RIVAL, seed=0)
    assert [curriculum.choose(LOG[:n], n) for n in range(3)] == [*RIVAL]


def test_chances_are_by_rank_of_regret_and_by_age():
    """Regrets 5, 40 and 10: ranks 3, 1 and 2. Ages 3, 2 and 1 in generation 3."""
    chances = Curriculum(RIVAL, seed=0).chances({r["regime"]: r for r in LOG}, 3)
    ranks = {"base": 1 / 3, "mixed": 1.0, "noisy:0.3": 1 / 2}
    ages = {"base": 3, "mixed": 2, "noisy:0.3": 1}
    for kind, chance in chances.items():
        by_rank, by_age = ranks[kind] / sum(ranks.values()), ages[kind] / 6
        assert chance == pytest.approx((1 - STALENESS) * by_rank + STALENESS * by_age)
    assert sum(chances.values()) == pytest.approx(1.0)


def test_draws_follow_their_chances():
    curriculum = Curriculum(RIVAL, seed=3)
    drawn = Counter(curriculum.choose(LOG, generation) for generation in range(3, 3003))
    # Far from the turns all are equally old, nearly.
    expected = curriculum.chances({r["regime"]: r for r in LOG}, 1500)
    for kind, chance in expected.items():
        assert drawn[kind] / 3000 == pytest.approx(chance, abs=0.03)


def test_the_last_turn_counts_and_one_of_failures_only_comes_first():
    later = [*LOG, row(3, "mixed", 79.0), row(4, "base", float("nan"))]
    chances = Curriculum(RIVAL, seed=0).chances({r["regime"]: r for r in later}, 5)
    ages = 1 + 2 + 3
    rank = {"base": 1.0, "noisy:0.3": 1 / 2, "mixed": 1 / 3}
    assert chances["mixed"] == pytest.approx(
        (1 - STALENESS) * rank["mixed"] / sum(rank.values()) + STALENESS * 2 / ages
    )
    assert max(chances, key=lambda kind: chances[kind] if kind != "noisy:0.3" else 0) == "base"


class Quadratics:
    """−(x − target)² of the kind that the last coordinate names; of all where it names none."""

    targets = torch.tensor([-1.0, 0.0, 2.0])

    def __init__(self, fails_in=None):
        self.fails_in, self.asked = fails_in, []

    def __call__(self, vectors, generation):
        if generation == self.fails_in:
            raise KeyboardInterrupt
        kind = int(vectors[0, -1])
        assert (vectors[:, -1] == kind).all()
        self.asked.append(kind)
        targets = self.targets if kind < 0 else self.targets[kind : kind + 1]
        return -(vectors[:, :1] - targets).square().mean(1)


def searched(fitness, folder):
    folder.mkdir(exist_ok=True)
    config = SearchConfig(population=4, generations=12, sigma=0.1, learning_rate=0.1)
    curriculum = Curriculum(dict.fromkeys(RIVAL, 0.0), seed=1)
    return search(fitness, torch.zeros(1), config, folder, curriculum=curriculum)


def test_a_search_that_is_interrupted_goes_on_to_the_same_bits(tmp_path):
    fitness = Quadratics()
    whole = searched(fitness, tmp_path / "whole")
    with pytest.raises(KeyboardInterrupt):
        searched(Quadratics(fails_in=7), tmp_path / "halves")
    rest = searched(Quadratics(), tmp_path / "halves")
    assert torch.equal(whole.vector, rest.vector)
    assert whole.log == rest.log
    logs = [(tmp_path / name / "log.csv").read_bytes() for name in ("whole", "halves")]
    assert logs[0] == logs[1]
    assert [r["regime"] for r in whole.log[:3]] == [*RIVAL]
    assert whole.log[-1]["regime"] == ALL
    assert fitness.asked[-1] == -1
    counts = Counter(r["regime"] for r in whole.log)
    assert counts["noisy:0.3"] > counts["mixed"]  # the furthest behind


@pytest.fixture(scope="module")
def beds(tmp_path_factory):
    pool = PoolConfig(pairs=4, max_steps=20)
    inner = InnerConfig(epochs=1, compile=False, steps_per_trajectory=4)
    cache = str(tmp_path_factory.mktemp("cache"))
    config = TestbedConfig(pool=pool, inner=inner, num_threads=1, cache_dir=cache)
    return prepare([replace(config, data=kind) for kind in ("base", "mixed")])


def test_fitness_on_one_kind_is_that_of_a_search_on_it(beds):
    space = space_of("closed_form")
    vectors = 0.1 * torch.randn(3, space.dim, generator=torch.Generator().manual_seed(0))
    marked = OneOfKinds(ObjectiveFitness(beds, space, 2, seed=7))
    for k, kinds in ((0, beds[:1]), (1, beds[1:]), (-1, beds)):
        rows = torch.cat([vectors, torch.full((3, 1), float(k))], dim=1)
        alone = ObjectiveFitness(kinds, space, 2, seed=7)(vectors, 5, [1, 2, 2])
        assert torch.equal(marked(rows, 5, [1, 2, 2]), alone)


def setup_of(**settings):
    small = {"pairs": 4, "episode_steps": 10, "num_threads": 1, "rivals": "sft", "seed": 1}
    return Setup.of(EvolveConfig(**PRESETS["smoke"] | small | settings))


def test_one_kind_alone_is_the_search_without_a_curriculum(tmp_path):
    logs = []
    for curriculum in ("off", "regret"):
        setup = setup_of(
            data="mixed", curriculum=curriculum, learning_rate=1e-3, cache_dir=str(tmp_path / "c")
        )
        (tmp_path / curriculum).mkdir()
        found = evolve.explore(setup, tmp_path / curriculum)[1]
        logs.append((tmp_path / curriculum / "log.csv").read_bytes())
        assert "regime" not in found.log[0]
    assert logs[0] == logs[1]


def test_the_antagonist_is_tuned_once_on_each_kind(tmp_path, capsys):
    settings = {"data": "base,noisy:0.3+pairs:2", "curriculum": "regret", "antagonist": "orpo"}
    setup = setup_of(**settings, learning_rate=1e-3, cache_dir=str(tmp_path / "c"))
    (tmp_path / "run").mkdir()
    found = evolve.explore(setup, tmp_path / "run")[1]
    assert [r["regime"] for r in found.log] == ["base", "noisy:0.3+pairs:2", ALL]
    assert all(r["held_out"] is not None for r in found.log)
    known = json.loads((tmp_path / "run/antagonist.json").read_text())
    assert known.keys() == {"base", "noisy:0.3+pairs:2"}
    told = capsys.readouterr().out
    assert told.count("tuning the antagonist orpo on") == 2
    assert "on noisy:0.3+pairs:2" in told
    card = evolve._card(setup, found, {}, tmp_path / "run")
    assert card["fitness_of_start"] == found.log[0]["held_out"] != found.log[0]["centre"]
    assert card["fitness_of_final_centre"] == found.log[-1]["held_out"]
    evolve.explore(setup, tmp_path / "run")
    assert "antagonist" not in capsys.readouterr().out
    (tmp_path / "run/antagonist.json").write_text('{"other": {}}')
    with pytest.raises(UserError, match=r"antagonist\.json"):
        evolve.check(setup, tmp_path / "run")


def test_several_robots_count_by_the_way_between_their_agents(tmp_path, capsys):
    """The regimes of a curriculum are kinds of data of each robot, on one scale."""
    settings = {"task": "tla,hopper", "data": "base", "curriculum": "regret"}
    setup = setup_of(**settings, generations=3, learning_rate=1e-3, cache_dir=str(tmp_path / "c"))
    out = tmp_path / "run"
    out.mkdir()
    evolve.run(setup, out)
    told = capsys.readouterr().out
    regimes = ["tla/base", "hopper/base"]
    log = list(csv.DictReader((out / "log.csv").read_text().splitlines()))
    assert [row["regime"] for row in log[:2]] == regimes
    assert "on hopper/base" in told
    assert "score, %" in told
    agents = json.loads((out / "agents.json").read_text())
    comparison = json.loads((out / "comparison.json").read_text())
    assert [*comparison["data"]] == regimes
    assert json.loads((out / "antagonist.json").read_text()).keys() == set(regimes)
    # The search on one robot alone has the same trainings, counted in returns.
    alone = setup_of(
        **(settings | {"task": "hopper", "curriculum": "off"}),
        learning_rate=1e-3,
        cache_dir=str(tmp_path / "c"),
    )
    (tmp_path / "alone").mkdir()
    beds = dict(zip(regimes, evolve_beds(setup, out), strict=True))
    one = evolve_beds(alone, tmp_path / "alone")[0]
    assert not (tmp_path / "alone/agents.json").exists()
    params = one.train(resolve("sft"), {}, 2, [1, 2])
    among = beds["hopper/base"].train(resolve("sft"), {}, 2, [1, 2])
    assert all(torch.equal(params[name], among[name]) for name in params)
    returns, scaled = one.evaluate(params, 3, 0), beds["hopper/base"].evaluate(params, 3, 0)
    low, high = sorted(agents["hopper"])
    torch.testing.assert_close(scaled, 100 * (returns - low) / (high - low))
    fitness = ObjectiveFitness([*beds.values()], setup.space, 2, seed=7)
    vectors = 0.1 * torch.randn(2, setup.space.dim, generator=torch.Generator().manual_seed(0))
    elsewhere = fitness.share(lambda tensors: lambda: dict(tensors))
    assert torch.equal(elsewhere(vectors, 0), fitness(vectors, 0))
    # What is compared is their mean, and a second start trains nothing again.
    for name, row in comparison["mean_return_by_seed"].items():
        by_regime = [comparison["data"][r]["mean_return_by_seed"][name] for r in regimes]
        assert row == pytest.approx(torch.tensor(by_regime).mean(0).tolist())
    before = (out / "comparison.json").read_bytes()
    evolve.run(setup, out)
    assert (out / "comparison.json").read_bytes() == before
    assert "comparing on" not in capsys.readouterr().out


def evolve_beds(setup, out):
    config = setup.config
    return on_one_scale(prepare(setup.testbeds), config.final_episodes, config.seed, out)


def test_a_scale_goes_from_the_worse_agent_to_the_better(tmp_path, monkeypatch):
    setup = setup_of(task="tla,hopper", cache_dir=str(tmp_path / "c"))
    (tmp_path / "agents.json").write_text('{"tla": [3.0, 2.0], "hopper": [1.0, 2.0]}')
    # Which of the two is the better one is seen by their returns.
    assert [bed.config.scale for bed in evolve_beds(setup, tmp_path)] == [(2.0, 3.0), (1.0, 2.0)]
    (tmp_path / "agents.json").write_text('{"tla": [3.0]}')
    with pytest.raises(UserError, match=r"agents\.json"):
        evolve.check(setup, tmp_path)
    (tmp_path / "agents.json").unlink()
    for value in (3.0, float("nan")):
        monkeypatch.setattr(Testbed, "agent_returns", lambda *_, v=value: torch.tensor([v]))
        with pytest.raises(UserError, match=f"on tla the agents have mean returns of {value:g}"):
            evolve_beds(setup, tmp_path)


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"task": "tla,hoper"}, "unknown task 'hoper': did you mean 'hopper'"),
        ({"task": "tla,hopper", "target": "tla_target"}, "agents of one task: give one --task"),
        (
            {"task": "tla,gymnasium:Walker2d-v5"},
            "several tasks are shipped robots, ant, tla, hopper: gymnasium:Walker2d-v5 has no",
        ),
        ({"curriculum": "regrets"}, "curriculum must be off or regret; got 'regrets'"),
        (
            {"curriculum": "regret", "data": "base,mixed", "antagonist": "tla_noisy"},
            "antagonist: tla_noisy is learned, it cannot be tuned",
        ),
    ],
)
def test_mistakes_are_one_line(settings, message):
    with pytest.raises(UserError, match=message):
        setup_of(**settings)
