"""Bad calls of the library from Python: each raises an error of one line, or gives what is right.

``NAMES`` is what the expressions know. ``REFUSED`` must raise, ``RIGHT`` must be true.
"""

import inspect

NAMES = """
import math, torch, torchmpo
import numpy as np
from pathlib import Path
from torch import tensor, ones, zeros
from torchmpo import MirrorObjective, Objective, PairLogps, resolve
from torchmpo.control.preferences import PreferenceDataset, parse_kind
from torchmpo.linear_logps import linear_logps
from torchmpo.losses import LOSSES
from torchmpo.metrics import ranking_accuracy, reward_accuracy
from torchmpo.objectives.inputs import made_up
from torchmpo.winrate.rates import length_controlled_win_rate
from torchmpo_envs import Hopper

nan, inf = math.nan, math.inf

def loss(name, *, hyper={}, **changes):
    function = LOSSES[name]
    parameters = inspect.signature(function).parameters.values()
    names = [p.name for p in parameters if p.kind is not p.KEYWORD_ONLY]
    fields = made_up(names, pairs=3, steps=4)
    first = names[0]
    given = {first if k == "first" else k: v for k, v in changes.items()}
    return function(**{**fields, **given}, **hyper)

def steps(time=3, n=4, m=2, **changes):
    return {"observation": zeros(time, n), "action": zeros(time, m), "return": 1.0} | changes

def pairs(*trajectories, pairs=((0, 1),), **more):
    return PreferenceDataset.from_trajectories(trajectories or [steps(), steps()], pairs, **more)

def saved(value, folder="mine", card={}):
    resolve(value).save(folder, card)
    return resolve(folder)

def robots(actions, **settings):
    env = Hopper(num_envs=2, seed=0, **settings)
    return env.step(env.reset().set("action", actions))["next"]
"""


def names() -> dict:
    """What the expressions begin with."""
    return {"inspect": inspect}


def _of_losses() -> list[str]:
    """Every loss, with tensors and hyper-parameters that make no sense."""
    from torchmpo.losses import LOSSES

    made = []
    for name, function in LOSSES.items():
        parameters = inspect.signature(function).parameters.values()
        tensors = [p for p in parameters if p.kind is not p.KEYWORD_ONLY]
        values = ["ones(3, 2, 2)", "None", "3.0", "'x'", "[1.0, 2.0, 3.0]"]
        values += ["ones(2)"] if len(tensors) > 1 else []
        made += [f"loss({name!r}, first={value})" for value in values]
        for parameter in parameters:
            if parameter.kind is parameter.KEYWORD_ONLY and isinstance(parameter.default, float):
                values = ("nan", "'x'", "None", "[1.0]", "ones(2)")
                made += [f"loss({name!r}, hyper={{{parameter.name!r}: {v}}})" for v in values]
                made.append(f"resolve({name!r}, {parameter.name}=nan)")
    return made


RESOLVED = """
resolve("simp")
resolve("")
resolve(" ")
resolve(None)
resolve(3)
resolve(3.5)
resolve([])
resolve(["dpo"])
resolve({"loss": "dpo"})
resolve(b"dpo")
resolve(object())
resolve(int)
resolve(print)
resolve(Path("nowhere"))
resolve(Path("."))
resolve(Path("text.txt"))
resolve("text.txt")
resolve("own.py")
resolve("own")
resolve("own:")
resolve(":own")
resolve("own:nothing")
resolve("own:not_callable")
resolve("own:unknown")
resolve("own:recursive")
resolve("own:attribute")
resolve("own:division")
resolve("own:leaves")
resolve("own:key")
resolve("own:wrong_shape")
resolve("own:number")
resolve("broken_syntax:loss")
resolve("broken_raises:loss")
resolve("broken_attribute:loss")
resolve("broken_imports:loss")
resolve("broken_leaves:loss")
resolve("broken_deep:loss")
resolve("broken_surrogate:loss")
resolve("broken_nul:loss")
resolve("os:system")
resolve("os.path:join")
resolve("a b:c")
resolve("..own:loss")
resolve("own.loss")
resolve("own.py:loss")
resolve("\\0")
resolve("x" * 100000)
resolve("dpo", beta=-1)
resolve("dpo", beta=0)
resolve("dpo", beta=nan)
resolve("dpo", beta=inf)
resolve("dpo", beta="x")
resolve("dpo", beta=None)
resolve("dpo", beta=[0.1])
resolve("dpo", beta=1j)
resolve("dpo", beta=10**400)
resolve("dpo", label_smoothing=0.5)
resolve("dpo", label_smoothing=-0.1)
resolve("dpo", temperature=1)
resolve("e/objective", beta=1)
resolve(resolve("dpo"), beta=1)
resolve("e")
resolve("d")
resolve("base")
resolve("empty")
resolve("dpo+")
resolve("+dpo")
resolve("dpo+nope")
resolve("nan*dpo")
resolve("inf*dpo")
resolve("1e400*dpo+sft")
resolve("*dpo")
resolve("2*2*dpo")
resolve("+".join(["dpo"] * 100000))
resolve("dpo@")
resolve("dpo@nope")
resolve("dpo@js@js")
resolve("simpo@js")
resolve("@js")
resolve("trl:")
resolve("trl:nope")
resolve("oxrl:dpo:x")
resolve(lambda: 1)
resolve(lambda x: x)
resolve(lambda chosen_logps: 1.0)
resolve(lambda chosen_logps: chosen_logps.sum())
resolve(lambda chosen_logps, *, a: chosen_logps)
resolve(lambda *args: args[0])
resolve(lambda **fields: 1)
resolve(torch.nn.Linear(1, 1))
Objective(3)
Objective(None)
Objective("dpo")
Objective(LOSSES["dpo"], beta=-1)
Objective(torch.nn.ReLU())
MirrorObjective(steps="three")
MirrorObjective(steps=1)
MirrorObjective(learn=["x"])
MirrorObjective(learn=3)
MirrorObjective(learn="psi")
MirrorObjective(temporal="yes")
MirrorObjective(reduction="max")
MirrorObjective(units=0)
MirrorObjective(units=-1)
MirrorObjective(units=10**9)
MirrorObjective(units=1.5)
MirrorObjective(units="x")
MirrorObjective(units=None)
MirrorObjective(activations=[])
MirrorObjective(activations=["nope"])
MirrorObjective(activations=3)
MirrorObjective(activations=["exp"] * 10**6)
MirrorObjective(initial={"x": 1.0})
MirrorObjective(initial={"psi_log": -1.0})
MirrorObjective(initial={"psi_log": nan})
MirrorObjective(initial={"psi_log": "x"})
MirrorObjective(initial=3)
MirrorObjective(initial=[1])
resolve("dpo")(PairLogps())
resolve("dpo")(PairLogps(chosen_logps=ones(3), rejected_logps=ones(2)))
resolve("dpo")(None)
resolve("dpo")(3)
resolve("dpo").apply({"beta": "x"}, PairLogps(**made_up(resolve("dpo").inputs, 3, 4)))
MirrorObjective()(PairLogps())
MirrorObjective().apply(zeros(3), PairLogps(**made_up(MirrorObjective().inputs, 3, 4)))
resolve("own:loss").save("mine", {})
saved("dpo", card=[1])
saved("dpo", card=None)
saved("dpo", card={"a": {1, 2}})
saved("dpo", folder="text.txt")
saved("dpo", folder="text.txt/below")
saved("e/objective", card=[1])
saved("e/objective", card={"a": object()})
saved(MirrorObjective(), folder="text.txt")
"""
DATA = """
pairs(steps(), steps(time=0))
pairs(steps(), steps(n=5))
pairs(steps(), steps(m=5))
pairs(steps(), steps(observation=zeros(3)))
pairs(steps(), steps(observation=zeros(4, 4)))
pairs(steps(), steps(observation="x"))
pairs(steps(), steps(observation=None))
pairs(steps(), steps(observation=[[1], [1, 2]]))
pairs(steps(), steps(observation=zeros(3, 4) * nan))
pairs(steps(), steps(action=zeros(3, 2) + inf))
pairs(steps(), steps(action=zeros(3, 2, dtype=torch.complex64)))
pairs(steps(), steps(action=zeros(3, 2, dtype=torch.bool)))
pairs(steps(), {"observation": zeros(3, 4)})
pairs(steps(), {})
pairs(steps(), None)
pairs(steps(), 3)
pairs(steps(), steps(**{"return": nan}))
pairs(steps(), steps(**{"return": inf}))
pairs(steps(), steps(**{"return": "x"}))
pairs(steps(), steps(**{"return": None}))
pairs(steps(), steps(**{"return": [1.0]}))
pairs(steps(), steps(**{"return": 10**400}))
pairs(steps(), steps(rewards=[1.0]))
pairs(steps(), steps(rewards=[nan, 1.0, 2.0]))
pairs(steps(), steps(rewards="x"))
pairs(pairs=[])
pairs(pairs=[(0, 0)])
pairs(pairs=[(0, 2)])
pairs(pairs=[(-1, 0)])
pairs(pairs=[(0, 1, 1)])
pairs(pairs=[(0,)])
pairs(pairs=[(0.5, 1)])
pairs(pairs=[("a", "b")])
pairs(pairs=[(nan, 1)])
pairs(pairs=[None])
pairs(pairs=3)
pairs(pairs=None)
pairs(pairs=[(10**30, 0)])
pairs(preference_probs=[2.0])
pairs(preference_probs=[-1.0])
pairs(preference_probs=[nan])
pairs(preference_probs=[1.0, 1.0])
pairs(preference_probs="x")
pairs(preference_probs=3)
pairs(preference_probs=[None])
PreferenceDataset.from_trajectories([], [(0, 1)])
PreferenceDataset.from_trajectories(None, [(0, 1)])
PreferenceDataset.from_trajectories(3, [(0, 1)])
PreferenceDataset.from_trajectories({}, [(0, 1)])
pairs().save("mine.pt")
pairs().save("mine")
pairs().save("text.txt/below.npz")
pairs().take(0)
pairs().take(-1)
pairs().take(99)
parse_kind("")
parse_kind("noisy")
parse_kind("noisy:")
parse_kind("noisy:nan")
parse_kind("noisy:1e400")
parse_kind("noisy:2")
parse_kind("noisy:0.1:0.2")
parse_kind("graded:1-0")
parse_kind("graded:nan-1")
parse_kind("best_of:0")
parse_kind("best_of:1.5")
parse_kind("votes:0")
parse_kind("base+base")
parse_kind("+")
parse_kind("base+")
parse_kind("\\0")
robots(zeros(2, 1))
robots(zeros(2, 4))
robots(zeros(2))
robots(zeros(2, 3, 1))
robots(None)
robots("x")
robots(zeros(2, 3, dtype=torch.complex64))
Hopper(num_envs=0)
Hopper(num_envs=-1)
Hopper(num_envs=1.5)
Hopper(num_envs="x")
Hopper(num_envs=2, physics="magic")
Hopper(num_envs=2, integrator="Magic")
Hopper(num_envs=2, max_steps=0)
Hopper(num_envs=2, max_steps=-1)
linear_logps(zeros(3, 4), zeros(5, 4), zeros(3))
linear_logps(zeros(3, 4), zeros(5, 3), zeros(3).long())
linear_logps(zeros(3, 4), zeros(5, 4), zeros(2).long())
linear_logps(zeros(3, 4), zeros(5, 4), zeros(3).long() + 5)
linear_logps(zeros(3, 4), zeros(5, 4), zeros(3).long() - 2)
linear_logps(zeros(3, 4), zeros(5, 4), zeros(3).long(), chunk_size=0)
linear_logps(zeros(3, 4), zeros(5, 4), zeros(3).long(), chunk_size=-1)
linear_logps(zeros(3, 4), zeros(5, 4), zeros(3).long(), chunk_size="x")
linear_logps(zeros(3, 4), zeros(5, 4), zeros(3).long(), chunk_size=1.5)
linear_logps(zeros(3, 4), zeros(5, 4), zeros(3).long(), logit_softcap=0)
linear_logps(zeros(3, 4), zeros(5, 4), zeros(3).long(), logit_softcap=nan)
linear_logps(zeros(3, 4), zeros(5, 4), zeros(3).long(), bias=zeros(4))
linear_logps(None, zeros(5, 4), zeros(3).long())
linear_logps(zeros(3, 4).long(), zeros(5, 4).long(), zeros(3).long())
reward_accuracy(zeros(3), zeros(2))
reward_accuracy(zeros(3, 2), zeros(3, 2))
reward_accuracy(None, zeros(2))
reward_accuracy([1.0], [2.0])
ranking_accuracy(zeros(3), zeros(2))
ranking_accuracy(zeros(3, 2), zeros(3, 2))
ranking_accuracy(None, None)
ranking_accuracy("x", "y")
length_controlled_win_rate([], [], [])
length_controlled_win_rate([0.5], [1], [1])
length_controlled_win_rate([0.5] * 12, [1] * 11, [1] * 12)
length_controlled_win_rate([2.0] * 12, [1] * 12, [1] * 12)
length_controlled_win_rate([nan] * 12, [1] * 12, [1] * 12)
length_controlled_win_rate(["x"] * 12, [1] * 12, [1] * 12)
length_controlled_win_rate([0.5] * 12, [nan] * 12, [1] * 12)
"""
REFUSED = [line for line in (RESOLVED + DATA).splitlines() if line]
# What looks bad and is not.
RIGHT = [
    line
    for line in """
resolve("dpo").hyper["beta"] == 0.1
resolve("0*dpo").hyper["dpo_weight"] == 0
resolve("-1*dpo+sft").hyper["dpo_weight"] == -1
saved("dpo").hyper == resolve("dpo").hyper
saved("e/objective", folder="again").vector.equal(resolve("e/objective").vector)
saved("0.8*dpo+0.2*sft", folder="sum").hyper == resolve("0.8*dpo+0.2*sft").hyper
len(pairs(steps(time=1), steps(time=300))) == 1
len(pairs(steps(rewards=[1, 2, 3]), steps(observation=np.zeros((3, 4))[::-1]))) == 1
resolve("dpo")(PairLogps(*[ones(0)] * 12)).shape == (0,)
resolve("dpo")(PairLogps(*[ones(3) * -1e30] * 12)).isfinite().all()
robots(zeros(2, 3) + 1e30)["observation"].isfinite().all()
linear_logps(zeros(0, 4), zeros(5, 4), zeros(0).long()).shape == (0,)
""".splitlines()
    if line
]


def every() -> list[str]:
    """All calls that must be refused."""
    return [*REFUSED, *_of_losses()]


def fault(expression: str, told: list) -> str:
    """What was wrong with the answer to a call, in words; empty if nothing."""
    kind, text, *deliberate = told
    if expression in RIGHT:
        return "" if kind == "value" and "True" in text else f"{kind}: {text}"
    if kind == "value":
        return f"it gives {text}"
    if kind == "SystemExit" or kind == "KeyboardInterrupt":
        return f"it ends the program: {kind}"
    if "\n" in text:
        return f"{kind} of {len(text.splitlines())} lines"
    if len(text) > 1000:
        return f"{kind} without end"
    told_so = kind in ("UserError", "OwnCodeRaised") or (
        kind in ("ValueError", "TypeError", "OSError") and deliberate == [True]
    )
    if not told_so and kind not in DISK:
        return f"a bare {kind}: {text[:100]}"
    return ""


DISK = ("FileNotFoundError", "NotADirectoryError", "FileExistsError", "IsADirectoryError")
