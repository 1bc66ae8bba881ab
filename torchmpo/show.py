"""Look at an objective: ``python -m torchmpo.show RUN_OR_OBJECTIVE``.

Draws what a loss does to a pair, beside other losses: its functions if it is learned, its gradients
over the log-probabilities, its pull against the margin. ``--distill`` writes the closed form
nearest to it. Nothing is trained, unless ``--visit`` asks for the log-probabilities that a training
on the objective's own data comes by.
"""

import math
import re
import sys
from argparse import ArgumentParser
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, fields
from pathlib import Path
from typing import TYPE_CHECKING, NamedTuple

from torchmpo.commandline import words
from torchmpo.errors import UserError, exit_code

if TYPE_CHECKING:
    from torch import Tensor

    from torchmpo.distill import Distilled
    from torchmpo.objective import MirrorObjective, Objective

    Bound = Objective | MirrorObjective

LOW, HIGH, REFERENCE = -8.0, -0.05, -2.0


@dataclass(frozen=True)
class Request:
    """What to show.

    Args:
        what: folder of a run or of a saved objective, or any name ``torchmpo.resolve`` takes.
        beside: losses to draw beside it; None for ORPO and SimPO, or DPO and IPO if it has a
            reference.
        out: folder of the figures; None for ``RUN/show`` or ``runs/show/NAME``.
        distill: fit the closed form, too.
        visit: train a policy under it and look where that has been.
        low, high: range of mean log-probabilities, nats per step; None for −8 and −0.05, or for
            what was visited.
    """

    what: str
    beside: Sequence[str] | None = None
    out: Path | None = None
    distill: bool = False
    visit: bool = False
    low: float | None = None
    high: float | None = None


class Pairs(NamedTuple):
    """Log-probabilities on which an objective is looked at: ``[n]`` each, and in words."""

    chosen: "Tensor"
    rejected: "Tensor"
    progress: "Tensor"
    where: str

    def range(self) -> tuple[float, float]:
        """The lowest and the highest of all, rounded outwards."""
        both = (self.chosen, self.rejected)
        low, high = min(float(x.min()) for x in both), max(float(x.max()) for x in both)
        return math.floor(20 * low) / 20, math.ceil(20 * high) / 20

    def typical(self) -> list[float]:
        """Low, middle and high chosen ones."""
        return [float(self.chosen.quantile(q)) for q in (0.25, 0.5, 0.75)]


class _Parser(ArgumentParser):
    def error(self, message: str):  # argparse would print its usage first
        raise UserError(message)


def parse(argv: Sequence[str]) -> Request:
    """The request that a command line makes.

    Raises:
        UserError: anything wrong with it.
    """
    parser = _Parser(
        prog="python -m torchmpo.show", description="Look at an objective.", allow_abbrev=False
    )
    parser.add_argument("what", help="folder of a run or of a saved objective, or a loss's name")
    parser.add_argument("--beside", help="losses to draw beside it, by commas, or none")
    parser.add_argument("--out", type=Path, help="folder of the figures")
    parser.add_argument("--distill", action="store_true", help="write its nearest closed form")
    parser.add_argument(
        "--visit",
        action="store_true",
        help="train a policy on the run's data, look at the log-probabilities it visits "
        "(about a minute, and its data is built if it is not there)",
    )
    parser.add_argument("--low", type=float, help=f"of mean log-probabilities; default {LOW}")
    parser.add_argument("--high", type=float, help=f"of mean log-probabilities; default {HIGH}")
    given = vars(parser.parse_args(list(argv)))
    beside = given["beside"]
    if beside is not None:
        given["beside"] = [] if beside == "none" else words("beside", beside)
    return Request(**given)


def find(what: str) -> "tuple[Bound, str, Path]":
    """An objective, what figures call it, and where they go.

    Raises:
        UserError: there is none, or it is damaged.
    """
    path = Path(what)
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


def resolved(what: str | Path) -> "Bound":
    """``torchmpo.resolve``, with its complaint as a :class:`UserError`."""
    from torchmpo.objective import resolve

    try:
        return resolve(what)
    except ValueError as error:
        raise UserError(" ".join(str(error).split())) from error


def rivals_of(objective: "Bound", request: Request) -> "dict[str, Bound]":
    """What is drawn beside it, by title."""
    usual = ("dpo", "ipo") if objective.needs_reference else ("orpo", "simpo")
    names = usual if request.beside is None else request.beside
    titles = {}
    for name in names:
        path = Path(name)
        title = (path.parent if path.name == "objective" else path).name if path.is_dir() else name
        if name != request.what:
            titles[title] = resolved(path / "objective" if (path / "objective").is_dir() else name)
    return titles


def visits(objective: "Bound", config: Mapping) -> Pairs:
    """Where a training under the objective comes by, on the data of the run that found it.

    Args:
        config: settings of that run, as its card has them.

    Returns:
        pairs of the training data as they are before and after every epoch.

    Raises:
        UserError: the run's settings make no sense any more, or the training diverged at once.
    """
    import torch

    from torchmpo.evolve_settings import EvolveConfig, Setup
    from torchmpo.suite import Sample, cell_trial

    known = {field.name for field in fields(EvolveConfig)}
    # What a trial is made of, and nothing of the search.
    here = {"space": "closed_form", "warm_start": None, "steps": "one", "learn": None}
    here |= {"temporal": False, "rivals": "sft", "compile": False, "ray_address": None}
    here |= {"num_actors": 0, "num_threads": 0}
    own = {k: v for k, v in config.items() if k in known} | here
    try:
        setup = Setup.of(EvolveConfig(**own))
    except (TypeError, ValueError) as error:
        raise UserError(f"--visit: the run's settings do not fit: {error}") from error
    seen = []
    for trial in setup.trials:
        trial = cell_trial(trial, objective, setup.protocol)
        sample, before = Sample.of(trial.dataset), trial.inner.sft_epochs

        def watch(epoch, members, params, trial=trial, sample=sample, before=before):
            if epoch >= before:
                chosen, rejected = sample.mean_logps(trial.policy, params)[0].double()
                progress = torch.full_like(chosen, (epoch - before) / trial.inner.epochs)
                seen.append(torch.stack([chosen, rejected, progress]))

        trial.train(objective, _parameters(objective), 1, setup.config.seed, on_epoch=watch)
    points = torch.cat(seen, 1)
    points = points[:, points.isfinite().all(0)]
    if not points.numel():
        raise UserError("--visit: the training diverged at once, it came by nothing")
    where = f"come by in training on {setup.config.task}, {setup.config.data}"
    return Pairs(points[0], points[1], points[2], where)


def _parameters(objective: "Bound") -> "Tensor | dict[str, Tensor]":
    """What ``apply`` takes, for a population of one."""
    from torchmpo.objective import MirrorObjective

    if isinstance(objective, MirrorObjective):
        return objective.vector.detach()[None]
    return {name: value[None] for name, value in objective.parameters_tree().items()}


def everywhere(objective: "Bound", low: float, high: float) -> Pairs:
    """Pairs all over a square of log-probabilities; at three times, where time matters."""
    import torch

    from torchmpo.distill import square
    from torchmpo.report import TIMES

    times = TIMES if "progress" in objective.inputs else (0.5,)
    c, r = square(low, high)
    progress = torch.tensor(times, dtype=c.dtype).repeat_interleave(len(c))
    where = f"all over log-probabilities from {low:g} to {high:g}"
    return Pairs(c.repeat(len(times)), r.repeat(len(times)), progress, where)


def described(objective: "Bound", title: str) -> list[str]:
    """What is known of an objective, in lines."""
    from torchmpo.objective import MirrorObjective
    from torchmpo.report import table

    card = objective.card
    lines = [str(card.get("name", title))]
    if isinstance(objective, MirrorObjective):
        learnt = ", ".join(objective.learn) or "nothing"
        time = ", depends on progress" if "progress" in objective.inputs else ""
        lines.append(
            f"{objective.steps}-step mirror loss, learns {learnt}, dim {objective.dim}{time}"
        )
    else:
        lines.append(repr(objective))
    try:
        start, end = card["fitness_of_start"], card["fitness_of_final_centre"]
        lines.append(f"fitness in the search: {start:.0f} at the start, {end:.0f} at the end")
        lines.append(table(card["comparison"]))
    except (KeyError, TypeError, ValueError):
        pass  # a card may hold anything
    return lines


def check(objectives: "Mapping[str, Bound]", low: float, high: float) -> None:
    """Refuse a range that is none, and a loss that has no gradient of a single pair.

    Raises:
        UserError: which.
    """
    import torch

    from torchmpo.report import gradients

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
    from torchmpo import report
    from torchmpo.distill import check_distillable, distill
    from torchmpo.objective import MirrorObjective

    objective, title, out = find(request.what)
    out = request.out or out
    drawn = {title: objective, **rivals_of(objective, request)}
    low = LOW if request.low is None else request.low
    high = HIGH if request.high is None else request.high
    check(drawn, low, high)
    if request.distill:
        check_distillable(objective)
    if request.visit:
        if not isinstance(objective.card.get("config"), dict):
            raise UserError(f"{request.what} does not say what data found it: leave --visit out")
        pairs = visits(objective, objective.card["config"])
        low, high = pairs.range() if request.low is None and request.high is None else (low, high)
        check(drawn, low, high)
    else:
        pairs = everywhere(objective, low, high)
    fit = None
    if request.distill:
        fit = distill(objective, pairs.chosen, pairs.rejected, progress=pairs.progress)
        drawn["distilled"] = fit.objective
    out.mkdir(parents=True, exist_ok=True)
    print("\n".join(described(objective, title)))
    reference = min(max(REFERENCE, low), high)
    chosen = pairs.typical()
    if isinstance(objective, MirrorObjective):
        report.functions_figure(objective, out / "functions.png", low=low, high=high)
        print(f"functions: {out / 'functions.png'}")
    at = out / "gradients.png"
    report.gradient_figure(drawn, at, low=low, high=high, reference=reference)
    print(f"gradients: {at}")
    at = out / "pull.png"
    report.pull_figure(drawn, at, low=low, high=high, chosen=chosen, reference=reference)
    print(f"pull against the margin: {at}")
    if fit is not None:
        _write(fit, request, pairs.where, out)


def _write(fit: "Distilled", request: Request, where: str, out: Path) -> None:
    """The distilled loss, as a file for any code base and as a saved objective for this one."""
    from torchmpo.distill import source
    from torchmpo.files import write_atomic

    write_atomic(out / "distilled.py", source(fit, request.what, where))
    card = {"name": f"closed form distilled from {request.what}", "where": where, **fit.card()}
    saved = out / "closed_form"
    fit.objective.save(saved, card)
    print(f"distilled on {fit.pairs} pairs, {where}:")
    print(f"  {fit.equation}")
    print(f"  {fit.verdict}")
    print(f"  for any torch code: {out / 'distilled.py'}")
    print(f'  for this library:   torchmpo.resolve("{saved}")')


def main(argv: Sequence[str] | None = None) -> int:
    """Run the command line; returns its exit code."""
    return exit_code(lambda: show(parse(sys.argv[1:] if argv is None else argv)))


if __name__ == "__main__":
    sys.exit(main())
