"""A search from its first generation to the figures: what ``python -m torchmpo.evolve`` does."""

import json
import math
import shlex
import shutil
import sys
from collections.abc import Sequence
from dataclasses import asdict, replace
from functools import partial
from pathlib import Path

import torch
from torch import Tensor
from tqdm import tqdm

from torchmpo import RELEASE
from torchmpo.control.grids import RATE, rate_grid, start_setting
from torchmpo.control.preferences import PreferenceDataset
from torchmpo.control.testbed import Testbed, fresh_data, prepare_fresh
from torchmpo.control.testbed import prepare as prepare_testbeds
from torchmpo.control.tuning import suited
from torchmpo.evolve.cluster import ray_actors, see_cluster
from torchmpo.evolve.comparison import (
    Contestant,
    contestant,
    seed_returns,
    tune_over,
    tune_rival,
)
from torchmpo.evolve.curriculum import Curriculum
from torchmpo.evolve.extension import check_longer, check_not_shorter, forget_the_old_end
from torchmpo.evolve.figures import fitness_figure
from torchmpo.evolve.fitness import ObjectiveFitness, OneOfKinds, combined
from torchmpo.evolve.optimizers import Optimizer, optimizer_of
from torchmpo.evolve.programs.genetic import GeneticProgramming
from torchmpo.evolve.programs.proposer import Proposer
from torchmpo.evolve.programs.space import ProgramSpace
from torchmpo.evolve.progress import Progress
from torchmpo.evolve.records import (
    check_records,
    fingerprints,
    read_antagonist,
    read_comparison,
    read_learning_rate,
    read_rivals,
)
from torchmpo.evolve.search import Found, search
from torchmpo.evolve.settings import PLACE
from torchmpo.evolve.setup import Setup
from torchmpo.evolve.several_tasks import UNIT, names, on_one_scale, several
from torchmpo.evolve.workers import Fitness, VectorProblem, chunk_rows
from torchmpo.figures import gradient_figure
from torchmpo.objectives.bound import Objective
from torchmpo.objectives.formulas import Formula
from torchmpo.objectives.gradients import gradients
from torchmpo.objectives.mirror import MirrorObjective
from torchmpo.objectives.resolve import resolve
from torchmpo.runs.command import word
from torchmpo.runs.errors import UserError
from torchmpo.runs.files import write_atomic
from torchmpo.runs.machine import note_machine
from torchmpo.runs.seeding import derive_seed
from torchmpo.runs.trackers import tracked
from torchmpo.statistics import compare as paired_differences
from torchmpo.statistics import table, verdict

__all__ = ["check", "explore", "fingerprints", "prepare", "run"]

LOST = "diverged_in_tuning"  # rivals of a comparison of which no setting could be trained

prepare = Setup.of


def check(setup: Setup, out: Path) -> None:
    """Refuse a folder with which the run could not go on, before anything is written there."""
    check_records(setup, out)
    check_longer(setup, out)
    check_not_shorter(setup, out)


def run(setup: Setup, out: Path) -> None:
    """Search, compare, save: goes on from whatever ``out`` holds already."""
    finish(setup, *explore(setup, out), out)


def explore(setup: Setup, out: Path) -> tuple[list[Testbed], Found]:
    """The search alone: its testbeds, at the learning rate of the search, and what it found."""
    config, space = setup.config, setup.space
    see_cluster(config.ray_address)  # before the minutes of data and tuning
    note_machine(out)
    torch.set_num_threads(setup.num_threads)
    forget_the_old_end(setup, out)
    print("data: reading it, or making it where there is none", flush=True)
    testbeds = prepare_testbeds(setup.testbeds)
    testbeds = on_one_scale(testbeds, max(config.final_episodes, 16), config.seed, out)
    testbeds = at_rate(testbeds, setup, out)
    own = [suited(bed, space.objective, config.sft_epochs) for bed in testbeds]
    if config.num_actors > 1:
        own = [testbed.changed(num_threads=setup.num_threads) for testbed in own]
    how = config.episodes, config.seed, config.combine, config.fitness_steps
    evaluate = ObjectiveFitness(own, space, *how)
    held_out = partial(held_out_score, setup, testbeds) if config.held_out_every else None
    online = config.wandb is not None
    with (
        tracked(setup.trackers, out, asdict(config), online) as loggers,
        ray_actors(config.num_actors, setup.num_threads, config.ray_address),
    ):
        curriculum = curriculum_of(setup, testbeds, out)
        problem = VectorProblem(
            evaluate if curriculum is None else OneOfKinds(evaluate),
            space.dim + (curriculum is not None),
            chunk=chunk_rows(config.population, config.chunk_size),
            num_actors=config.num_actors,
            num_threads=setup.num_threads,
        )
        with Progress(config.generations, loggers) as progress:
            found = search(
                Fitness(problem, setup.streams),
                space.start,
                setup.search,
                out,
                on_generation=progress,
                held_out=held_out,
                every=max(1, config.held_out_every),
                curriculum=curriculum,
                optimizer=_optimizer(setup, out),
            )
    return testbeds, found


def curriculum_of(setup: Setup, testbeds: Sequence[Testbed], out: Path) -> Curriculum | None:
    """What draws the kind of each generation, where there is a choice.

    The antagonist is tuned on each kind, and trained again on seeds that are nobody else's, before
    the search; what it scores is kept in ``antagonist.json``.

    Raises:
        UserError: it diverged at every setting, or on one of those seeds.
    """
    config, path = setup.config, out / "antagonist.json"
    if setup.antagonist is None:
        return None
    known = json.loads(path.read_text()) if path.exists() else {}
    regimes = names(setup.testbeds)
    for kind, bed in zip(regimes, testbeds, strict=True):
        if kind in known:
            continue
        print(f"tuning the antagonist {config.antagonist} on {kind} …", flush=True)
        args = setup.antagonist, setup.rival_trials, setup.protocol, config.combine
        tuned = tune_rival([bed], *args, rate=config.learning_rate is None)
        if tuned is None:
            raise UserError(f"{config.antagonist} diverged at every setting on {kind}")
        one = {"antagonist": contestant(setup.antagonist, tuned.setting)}
        how = config.held_out_seeds, config.episodes, setup.protocol, "antagonist"
        score = float(seed_returns([bed], one, *how)["antagonist"].mean())
        if not math.isfinite(score):
            raise UserError(f"{config.antagonist} diverged on {kind}: take another antagonist")
        known[kind] = {"setting": tuned.setting, "mean_return": score}
        write_atomic(path, json.dumps(known, indent=2) + "\n")
    rival = read_antagonist(path, regimes)
    return Curriculum({kind: rival[kind] for kind in regimes}, config.seed)


def _optimizer(setup: Setup, out: Path) -> Optimizer:
    """How the search moves."""
    config, space = setup.config, setup.space
    if not isinstance(space, ProgramSpace):
        return optimizer_of(setup.search)
    propose = None
    if config.proposer is not None:
        limits = config.proposer_seconds, config.proposer_gib
        propose = Proposer(config.proposer, space.grammar, out / "proposals", *limits)
    return GeneticProgramming(setup.search, space, propose)


def at_rate(testbeds: Sequence[Testbed], setup: Setup, out: Path) -> list[Testbed]:
    """The testbeds of the search, at the learning rate that is best for its start.

    Where the rate is to be tuned, as many are tried as settings of a rival, and the best one is
    kept in ``learning_rate.json``; start and result are compared at it, rivals at their own.

    Raises:
        UserError: the start diverged at every rate.
    """
    config, space, path = setup.config, setup.space, out / "learning_rate.json"
    if config.learning_rate is not None:
        return list(testbeds)
    if not path.exists():
        print(f"tuning the learning rate of {space.start_name} …", flush=True)
        start = space.at(space.start)
        settings = [start_setting(start) | rate for rate in rate_grid(setup.rival_trials)]
        tuned = tune_over(testbeds, start, settings, setup.protocol, config.combine)
        if tuned is None:
            raise UserError(f"{space.start_name} diverged at every learning rate that was tried")
        content = {RATE: tuned.setting[RATE], "score_in_tuning": tuned.score}
        write_atomic(path, json.dumps(content | {"trials": tuned.trials}, indent=2) + "\n")
    rate = read_learning_rate(path)
    return [bed.changed(inner=replace(bed.config.inner, learning_rate=rate)) for bed in testbeds]


def contestant_at(setup: Setup, testbeds: Sequence[Testbed], vector: Tensor) -> Contestant:
    """What ``vector [dim]`` stands for, with its own learning rate where the search moves it."""
    space, start = setup.space, testbeds[0].config.inner.learning_rate
    rates = space.rates(vector[None], start)
    own = None if rates is None else float(rates[0])
    return Contestant(space.objective, space.parameters(vector[None]), own)


def held_out_score(
    setup: Setup, testbeds: Sequence[Testbed], vector: Tensor, generation: int
) -> float:
    """Mean return of policies trained under ``vector`` on seeds that the search never uses."""
    config = setup.config
    objective = contestant_at(setup, testbeds, vector)
    returns = seed_returns(
        testbeds,
        {"centre": objective},
        config.held_out_seeds,
        config.episodes,
        setup.protocol,
        "held out",
    )
    return float(combined(returns["centre"], config.combine).mean())


def finish(setup: Setup, testbeds: Sequence[Testbed], found: Found, out: Path) -> None:
    """The final comparison, the saved objective and the figures; what exists is not redone."""
    space = setup.space
    tuned = tune_rivals(setup, testbeds, out)
    comparison = compare(setup, testbeds, found, tuned, out)
    own = contestant_at(setup, testbeds, found.vector).learning_rate
    rate = testbeds[0].config.inner.learning_rate if own is None else own
    card = _card(setup, found, comparison, out) | {RATE: rate}
    space.save(out / "objective", found.vector, card)
    unit, steps = comparison.get("unit", "return"), setup.config.fitness_steps
    unit = unit if steps is None else f"{unit} of the first {steps} steps"
    _draw(space.at(found.vector), found, unit, out / "figures")
    print(table(comparison))
    print(verdict(comparison))
    for name in comparison.get(LOST, ()):
        print(f"vs {name}: not comparable, every setting diverged in tuning")
    saved = str(out / "objective")
    print(f"objective: torchmpo.resolve({json.dumps(saved, ensure_ascii=False)})")
    _tell_formula(space.at(found.vector), out)
    print(f"what it is:      python -m torchmpo.show {shlex.quote(str(out))}")
    losses = shlex.quote(f"{word(saved)},orpo")
    print(f"on other data:   python -m torchmpo.diagnose --losses {losses}", flush=True)


def _draw(objective: Objective | MirrorObjective, found: Found, unit: str, folder: Path) -> None:
    """The figures of a search. Some losses have no gradient that one pair decides."""
    folder.mkdir(exist_ok=True)
    fitness_figure(found.log, folder / "fitness.png", unit=unit)
    maps = {"discovered": objective, "ORPO": resolve("orpo"), "SimPO": resolve("simpo")}
    try:
        gradients(objective, *torch.full((2, 1), -1.0))
    except ValueError as error:
        print(f"the figure of gradients leaves it out: {error}")
        del maps["discovered"]
    gradient_figure(maps, folder / "gradients.png")


def _tell_formula(objective: Objective | MirrorObjective, out: Path) -> None:
    """Print a found formula, and keep it as a file of Python, too."""
    formula = getattr(objective, "function", None)
    if isinstance(formula, Formula):
        write_atomic(out / "formula.py", formula.source(objective.after_sft))
        print("\n".join(formula.described()))
        print(f"for torch alone: {out / 'formula.py'}")


def tune_rivals(setup: Setup, testbeds: Sequence[Testbed], out: Path) -> dict[str, dict | None]:
    """The best setting of each rival, its score and how many were tried; ``rivals.json``."""
    path = out / "rivals.json"
    tuned = read_rivals(path, setup.rivals)
    # Who is added later has as many trials as those before.
    budget = max((t["trials"] for t in tuned.values() if t), default=0) or setup.rival_trials
    for name, rival in setup.rivals.items():
        if name in tuned:
            continue
        print(f"tuning {name} …", flush=True)
        result = tune_rival(
            testbeds,
            rival,
            budget,
            setup.protocol,
            setup.config.combine,
            rate=setup.config.learning_rate is None,
        )
        tuned[name] = result and {
            "setting": result.setting,
            "score_in_tuning": result.score,
            "trials": result.trials,
        }
        write_atomic(path, json.dumps(tuned, indent=2) + "\n")
    return tuned


def compare(
    setup: Setup,
    testbeds: Sequence[Testbed],
    found: Found,
    tuned: dict[str, dict | None],
    out: Path,
) -> dict:
    """Discovered objective, start and tuned rivals on fresh data and seeds; ``comparison.json``.

    Who is in that file already is not trained again, so that an interrupted comparison goes on and
    rivals can be added later. The fresh data is in ``final_data/`` until everyone is trained.
    """
    config, space = setup.config, setup.space
    contestants = {
        "discovered": contestant_at(setup, testbeds, found.vector),
        f"start ({space.start_name})": contestant_at(setup, testbeds, space.start),
    }
    lost = [name for name in setup.rivals if tuned[name] is None]
    for name, rival in setup.rivals.items():
        if (result := tuned[name]) is not None:
            contestants[f"{name}, tuned"] = contestant(rival, result["setting"])
    path, kept = out / "comparison.json", out / "final_data"
    returns = _compared(setup, path) if path.exists() else {}
    missing = {name: c for name, c in contestants.items() if name not in returns}
    if missing:
        print(
            f"comparing on {config.final_seeds} fresh seeds × {config.final_episodes} episodes …",
            flush=True,
        )
        data = _final_data(setup, testbeds, kept)
        args = (config.final_seeds, config.final_episodes, setup.protocol, "final")
        for name, one in tqdm(missing.items(), desc="comparing", disable=not sys.stderr.isatty()):
            returns |= seed_returns(testbeds, {name: one}, *args, data=data)
            known = {name: returns[name] for name in contestants if name in returns}
            _keep(setup, path, known, lost)
    shutil.rmtree(kept, ignore_errors=True)
    return _keep(setup, path, {name: returns[name] for name in contestants}, lost)


def _final_data(
    setup: Setup, testbeds: Sequence[Testbed], folder: Path
) -> list[list[PreferenceDataset]]:
    """Preference data that nobody has seen, ``[kind][seed]``."""
    config = setup.config
    if not config.final_data_per_seed:
        fresh = prepare_fresh(testbeds, derive_seed(config.seed, "final data"))
        return [[bed.dataset] * config.final_seeds for bed in fresh]
    seeds = [derive_seed(config.seed, "final data", i) for i in range(config.final_seeds)]
    return fresh_data(testbeds, seeds, cache_dir=str(folder))


def _keep(setup: Setup, path: Path, returns: dict[str, Tensor], lost: Sequence[str]) -> dict:
    """Write what is known so far of the comparison, ``{name: [kinds, seeds]}``, and return it.

    Rivals of which no setting could be trained are ``lost``.
    """
    combine = setup.config.combine
    content = _judged({name: combined(r, combine).tolist() for name, r in returns.items()})
    unit = UNIT if several(setup.testbeds) else "return"
    if len(setup.testbeds) > 1 and combine == "worst":
        unit = f"worst {unit}"
    if unit != "return":
        content["unit"] = unit
    if lost:
        content[LOST] = list(lost)
    if len(setup.testbeds) > 1:
        content["data"] = {
            regime: _judged({name: r[k].tolist() for name, r in returns.items()})
            for k, regime in enumerate(names(setup.testbeds))
        }
    write_atomic(path, json.dumps(content, indent=2) + "\n")
    return content


def _judged(scores: dict[str, list[float]]) -> dict:
    return {**paired_differences(scores), "mean_return_by_seed": scores}


def _compared(setup: Setup, path: Path) -> dict[str, Tensor]:
    """Returns ``[kinds, seeds]`` of those who are in a comparison already."""
    content = read_comparison(path, setup.config.final_seeds)
    try:
        regimes = names(setup.testbeds)
        parts = [content["data"][name] for name in regimes] if len(regimes) > 1 else [content]
        kinds = [part["mean_return_by_seed"] for part in parts]
        return {name: torch.tensor([kind[name] for kind in kinds]) for name in kinds[0]}
    except (KeyError, TypeError, ValueError) as error:
        raise UserError(
            f"{path} is not the comparison of this run: delete it and --resume"
        ) from error


def _card(setup: Setup, found: Found, comparison: dict, out: Path) -> dict:
    """How the objective was found and what it scores; the same bytes from the same run."""
    config, space = setup.config, setup.space
    # Under a curriculum the centre's own score is on another kind of data in every generation.
    fitness = "held_out" if "regime" in found.log[0] else "centre"
    what = {key: value for key, value in asdict(config).items() if key not in PLACE}
    return {
        "name": f"{space.name} discovered on {config.task}, {config.data}",
        "torchmpo": RELEASE,
        "config": what,
        "machines": note_machine(out),
        "dim": space.dim,
        "fitness_of_start": found.log[0].get(fitness),
        "fitness_of_final_centre": found.log[-1].get(fitness),
        "comparison": comparison,
    }
