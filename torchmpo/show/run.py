"""Find an objective, look at what it does to pairs, draw it beside others, distil it."""

import json
import math
import re
from collections.abc import Mapping
from contextlib import suppress
from dataclasses import fields, replace
from pathlib import Path
from typing import NamedTuple, TypeAlias

import torch
from torch import Tensor

from torchmpo.control.grids import RATE
from torchmpo.control.pools import check_space
from torchmpo.control.sample import Sample
from torchmpo.control.settings import TestbedSettings, check_sizes
from torchmpo.control.testbed import configure, prepare
from torchmpo.control.tuning import suited
from torchmpo.figures import TIMES, functions_figure, gradient_figure, pull_figure
from torchmpo.objectives.bound import Objective
from torchmpo.objectives.formulas import Formula
from torchmpo.objectives.gradients import gradients
from torchmpo.objectives.mirror import MirrorObjective
from torchmpo.objectives.resolve import resolve
from torchmpo.runs.command import words
from torchmpo.runs.errors import UserError
from torchmpo.runs.files import write_atomic
from torchmpo.runs.own_code import names_code
from torchmpo.show.curves import Curves, curves
from torchmpo.show.distill import Distilled, check_distillable, distill, source, square
from torchmpo.show.settings import HIGH, LOW, Request
from torchmpo.show.sparse import Sparse, sparse
from torchmpo.statistics import table

Bound: TypeAlias = Objective | MirrorObjective

REFERENCE = -2.0  # the reference's mean log-probability of both


class Pairs(NamedTuple):
    """Log-probabilities on which an objective is looked at: ``[n]`` each, and in words."""

    chosen: Tensor
    rejected: Tensor
    progress: Tensor
    where: str

    def range(self) -> tuple[float, float]:
        """The lowest and the highest of all, rounded outwards."""
        both = (self.chosen, self.rejected)
        low, high = min(float(x.min()) for x in both), max(float(x.max()) for x in both)
        return math.floor(20 * low) / 20, math.ceil(20 * high) / 20

    def typical(self) -> list[float]:
        """Low, middle and high chosen ones."""
        return [float(self.chosen.quantile(q)) for q in (0.25, 0.5, 0.75)]


def find(what: str) -> tuple[Bound, str, Path]:
    """An objective, what figures call it, and where they go.

    Raises:
        UserError: there is none, or it is damaged.
    """
    path = Path(what)
    if (path / "anchors.json").exists() and not (path / "objective").is_dir():
        raise UserError(f"{path} is a diagnosis, which finds no objective: see its report.html")
    if (path / "config.yaml").exists() and not (path / "objective").is_dir():
        raise UserError(f"{path} holds no objective: a search saves it at its end (--resume)")
    if (path / "objective").is_dir():
        return resolved(path / "objective"), "discovered", path / "show"
    objective = resolved(what)
    if path.is_dir():
        if path.resolve().name == "objective":
            return objective, "discovered", path.parent / "show"
        return objective, path.resolve().name, Path("runs/show") / path.resolve().name
    return objective, what, Path("runs/show") / re.sub(r"\W+", "_", what)


def resolved(what: str | Path) -> Bound:
    """``torchmpo.resolve``, with its complaint as a :class:`UserError`."""
    try:
        return resolve(what)
    except ValueError as error:
        raise UserError(" ".join(str(error).split())) from error


def rivals_of(objective: Bound, request: Request, taken: str = "") -> dict[str, Bound]:
    """What is drawn beside it, by title; by its whole name where that title is taken."""
    usual = ("dpo", "ipo") if objective.needs_reference else ("orpo", "simpo")
    names = usual if request.beside is None else request.beside
    titles = {}
    for name in names:
        path = Path(name)
        title = (path.parent if path.name == "objective" else path).name if path.is_dir() else name
        if name != request.what:
            title = name if title in (taken, *titles) else title
            titles[title] = resolved(path / "objective" if (path / "objective").is_dir() else name)
    return titles


def visits(objective: Bound, config: Mapping, *, trust: bool = False) -> Pairs:
    """The log-probabilities that a training visits, on the data of the run that found the loss.

    Args:
        config: settings of that run, as its card has them. Of a run that tuned its learning rate
            and did not note it, as older ones, the rate is ``DEFAULT_RATE``.
        trust: import a task of somebody's own that they name.

    Returns:
        pairs of the training data as they are before and after every epoch.

    Raises:
        UserError: the run's settings make no sense any more, or the training diverged at once.
    """

    known = {field.name for field in fields(TestbedSettings)}
    own = {key: value for key, value in config.items() if key in known}
    try:
        settings = TestbedSettings(**own | {"compile": False, "num_threads": 0, "cache_dir": None})
        tasks = words("task", settings.task)
        if (code := [task for task in tasks if names_code(task)]) and not trust:
            raise UserError(
                f"its task is code to run, {code[0]}, which only the run's files name: if "
                "the run is yours or you trust it, add --trust"
            )
        check_sizes(settings)
        kinds = words("data", config["data"])
        of = [replace(settings, task=task) for task in tasks]
        beds = [configure(one, kind, num_threads=0) for one in of for kind in kinds]
        check_space([bed.data_pool for bed in beds])
        testbeds = prepare(beds)
    except (AttributeError, KeyError, TypeError, ValueError) as error:
        raise UserError(f"--visit: the run's settings do not fit: {error}") from error
    seen = []
    for testbed in testbeds:
        testbed = suited(testbed, objective, settings.sft_epochs)
        sample, inner = Sample.of(testbed.dataset), testbed.config.inner
        told = [0]

        def watch(epoch, members, params, testbed=testbed, sample=sample, inner=inner, told=told):
            each = inner.sft_epochs + inner.epochs
            # The end of a round and the beginning of the next one may have the same number.
            ends = epoch % each == 0 and epoch > told[-1]
            told.append(epoch)
            done = each if ends else epoch % each
            if done >= inner.sft_epochs:
                chosen, rejected = sample.mean_logps(testbed.policy, params)[0].double()
                progress = (done - inner.sft_epochs) / inner.epochs
                seen.append(torch.stack([chosen, rejected, torch.full_like(chosen, progress)]))

        testbed.train(objective, _parameters(objective), 1, settings.seed, on_epoch=watch)
    points = torch.cat(seen, 1)
    points = points[:, points.isfinite().all(0)]
    if not points.numel():
        raise UserError("--visit: the training diverged at once, it visited nothing")
    rate = testbeds[0].config.inner.learning_rate
    where = f"visited in training on {settings.task}, {config['data']}, at a step size of {rate:g}"
    return Pairs(points[0], points[1], points[2], where)


def _parameters(objective: Bound) -> Tensor | dict[str, Tensor]:
    """What ``apply`` takes, for a population of one."""
    if isinstance(objective, MirrorObjective):
        return objective.vector.detach()[None]
    return {name: value[None] for name, value in objective.parameters_tree().items()}


def everywhere(objective: Bound, low: float, high: float) -> Pairs:
    """Pairs all over a square of log-probabilities; at three times, where time matters."""

    times = TIMES if "progress" in objective.inputs else (0.5,)
    c, r = square(low, high)
    progress = torch.tensor(times, dtype=c.dtype).repeat_interleave(len(c))
    where = f"all over log-probabilities from {low:g} to {high:g}"
    return Pairs(c.repeat(len(times)), r.repeat(len(times)), progress, where)


def described(objective: Bound, title: str) -> list[str]:
    """What is known of an objective, in lines."""
    card = objective.card
    name = card.get("name")
    lines = [name if isinstance(name, str) else title]
    if isinstance(objective, MirrorObjective):
        learnt = ", ".join(objective.learn) or "nothing"
        time = ", depends on progress" if "progress" in objective.inputs else ""
        lines.append(
            f"{objective.steps}-step mirror loss, learns {learnt}, dim {objective.dim}{time}"
        )
    elif isinstance(objective.function, Formula):
        lines += objective.function.described()
    else:
        lines.append(repr(objective))
    with suppress(KeyError, TypeError):  # a card may hold anything; or the search did not ask
        start, end = card["fitness_of_start"], card["fitness_of_final_centre"]
        if math.isfinite(start) and math.isfinite(end):
            lines.append(f"fitness in the search: {start:.0f} at the start, {end:.0f} at the end")
    with suppress(KeyError, TypeError, ValueError):
        lines.append(table(card["comparison"]))
    return lines


def check(objectives: Mapping[str, Bound], low: float, high: float) -> None:
    """Refuse a range that is none, and a loss that has no gradient of a single pair.

    Raises:
        UserError: which.
    """

    if not -math.inf < low < high < math.inf:
        raise UserError(f"--low must be below --high; got {low:g} and {high:g}")
    x = torch.tensor([low, high])
    for title, objective in objectives.items():
        try:
            gradients(objective, x, x)
        except ValueError as error:
            raise UserError(f"{title} cannot be drawn: {error}") from error


def show(request: Request) -> None:
    """Draw, write and print what was asked for.

    Raises:
        UserError: it cannot be met; nothing has been written then.
    """

    objective, title, out = find(request.what)
    out = request.out or out
    drawn = {title: objective, **rivals_of(objective, request, title)}
    low = LOW if request.low is None else request.low
    high = HIGH if request.high is None else request.high
    check(drawn, low, high)
    if request.distill:
        check_distillable(objective)
    if request.sparse and not isinstance(objective, MirrorObjective):
        raise UserError(f"--sparse is of learned objectives, and {title} is none")
    if request.sparse and request.visit and objective.needs_reference:
        raise UserError(
            f"--sparse takes one log-probability for the reference of {title}, and --visit does "
            "not note which the training had: give one of both"
        )
    if request.visit:
        if not isinstance(objective.card.get("config"), dict):
            raise UserError(f"{request.what} does not say what data found it: leave --visit out")
        rate = {RATE: objective.card[RATE]} if RATE in objective.card else {}
        pairs = visits(objective, objective.card["config"] | rate, trust=request.trust)
        low, high = pairs.range() if request.low is None and request.high is None else (low, high)
        check(drawn, low, high)
    else:
        pairs = everywhere(objective, low, high)
    fit = few = fitted = None
    if request.distill:
        fit = distill(objective, pairs.chosen, pairs.rejected, progress=pairs.progress)
        drawn["distilled"] = fit.objective
    if request.sparse:
        assert isinstance(objective, MirrorObjective)
        few = sparse(objective, pairs.chosen, pairs.rejected, progress=pairs.progress)
        drawn["sparse"] = few.objective
        if not objective.temporal:
            fitted = curves(objective, pairs.chosen, pairs.rejected)
            drawn["curves"] = fitted.objective
    out.mkdir(parents=True, exist_ok=True)
    print("\n".join(described(objective, title)))
    reference = min(max(REFERENCE, low), high)
    chosen = pairs.typical()
    if isinstance(objective, MirrorObjective):
        functions_figure(objective, out / "functions.png", low=low, high=high)
        print(f"functions: {out / 'functions.png'}")
    elif isinstance(objective.function, Formula):
        write_atomic(out / "formula.py", objective.function.source(objective.after_sft))
        print(f"for torch alone: {out / 'formula.py'}")
    at = out / "gradients.png"
    gradient_figure(drawn, at, low=low, high=high, reference=reference)
    print(f"gradients: {at}")
    at = out / "pull.png"
    pull_figure(drawn, at, low=low, high=high, chosen=chosen, reference=reference)
    print(f"pull against the margin: {at}")
    if few is not None:
        _write_sparse(few, fitted, request, pairs.where, out)
    if fit is not None:
        _write(fit, request, pairs.where, out)


def _write_sparse(
    few: Sparse, fitted: Curves | None, request: Request, where: str, out: Path
) -> None:
    """The objective with few hidden units, and the loss of its curves: saved, and said how good."""
    card = {"name": f"{request.what} with few hidden units", "where": where, "r2": few.r2}
    few.objective.save(out / "sparse", card)
    print(f"with few hidden units, {where}:")
    print(f"  {few.verdict}")
    print(f"  for this library:   torchmpo.resolve({_literal(out / 'sparse')})")
    if fitted is None:
        print("no formulas of its curves: they depend on the progress of training")
        return
    function = fitted.objective.function
    assert isinstance(function, Formula)
    card = {"name": f"curves of {request.what} as formulas", "where": where, "r2": fitted.r2}
    fitted.objective.save(out / "curves", card)
    write_atomic(out / "curves.py", function.source(fitted.objective.after_sft))
    print("its curves as formulas:")
    print("\n".join(f"  {line}" for line in fitted.lines))
    print(f"  for any torch code: {out / 'curves.py'}")
    print(f"  for this library:   torchmpo.resolve({_literal(out / 'curves')})")


def _literal(path: Path) -> str:
    return json.dumps(str(path), ensure_ascii=False)


def _write(fit: Distilled, request: Request, where: str, out: Path) -> None:
    """The distilled loss, as a file for any code base and as a saved objective for this one."""
    write_atomic(out / "distilled.py", source(fit, request.what, where))
    card = {"name": f"closed form distilled from {request.what}", "where": where, **fit.card()}
    saved = out / "closed_form"
    fit.objective.save(saved, card)
    print(f"distilled on {fit.pairs} pairs, {where}:")
    print(f"  {fit.equation}")
    print(f"  {fit.verdict}")
    print(f"  for any torch code: {out / 'distilled.py'}")
    print(f"  for this library:   torchmpo.resolve({_literal(saved)})")
