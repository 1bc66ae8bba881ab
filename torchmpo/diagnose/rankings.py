"""What training did to the pairs: how they are ranked, which side was pulled at, how soon."""

import math
from collections.abc import Sequence
from typing import Any

from torch import Tensor
from torch.utils._pytree import tree_map

from torchmpo.control.policy import GaussianPolicy
from torchmpo.control.sample import Sample
from torchmpo.diagnose.alignment_gap import alignment
from torchmpo.diagnose.gradient_share import gradient_share
from torchmpo.objectives.bound import Objective
from torchmpo.objectives.mirror import MirrorObjective
from torchmpo.statistics.curves import area_over, drift

Params = dict[str, Tensor]


def rankings(
    policy: GaussianPolicy,
    objective: Objective | MirrorObjective,
    objective_params: Any,
    setting: dict[str, float],
    samples: Sequence[Sample],
    margins: Sequence[Tensor | None],
    begun: Params,
    ended: Params,
    logps: Tensor,
) -> list[dict[str, float]]:
    """Of each member, numbers by name; those that cannot be had are left out.

        ranking, idealised, alignment_gap     see :func:`torchmpo.diagnose.alignment_gap.alignment`
        gradient_start, gradient_end          share of the gradient that is at the chosen side, on
                                              the sample, before the first update and after the last
        drift_chosen, drift_rejected          largest change of the mean log-probability per token,
        drift_margin, drift_accuracy          of their difference, nats, and of the share of pairs
                                              in which it is above 0
        drift_…_time                          part of the phase after which half of it had happened
        area                                  mean share of pairs ranked wrongly over the phase

    Args:
        policy: what the members have in common.
        objective_params: what ``objective.apply`` takes, with a leading dimension of members.
        setting: the hyper-parameters among them.
        samples: one for all, or one per member.
        margins: of the judges, likewise, see
            :func:`torchmpo.diagnose.alignment_gap.judge_margin`.
        begun, ended: ``{name: [members, ...]}``, at the start and the end of the preference phase.
        logps: ``[members, epochs, 2, pairs]``, mean log-probabilities in that phase.
    """
    found = []
    for k, own in enumerate(logps):
        if not own.isfinite().all():  # diverged
            found.append({})
            continue
        at = k if len(samples) > 1 else 0
        sample, margin, tokens = samples[at], margins[at], policy.tokens
        lengths = sample.lengths.T * tokens
        one = alignment(objective, setting, margin, lengths, own[0], own[-1])
        about = {"lengths": lengths, "rewards": sample.rewards.T}
        about["preference_probs"] = sample.preference_probs
        steps = [
            sample.step_logps(policy, {name: value[k] for name, value in params.items()})
            for params in (begun, ended)
        ]
        params = tree_map(lambda value, k=k: value[k], objective_params)
        for name, logps_now, progress in zip(("start", "end"), steps, (0.0, 1.0), strict=True):
            share = gradient_share(objective, params, logps_now, steps[0], about, progress)
            one |= {} if share is None else {f"gradient_{name}": share}
        chosen, rejected = own.mean(-1).T
        accuracy = (own[:, 0] > own[:, 1]).float().mean(-1)
        curves = {"chosen": chosen, "rejected": rejected, "margin": chosen - rejected}
        curves["accuracy"] = accuracy
        if len(own) > 1:
            for name, curve in curves.items():
                size, time = drift(curve.tolist())
                one |= {f"drift_{name}": size, f"drift_{name}_time": time}
            one["area"] = area_over(accuracy.tolist())
        found.append({name: value for name, value in one.items() if math.isfinite(value)})
    return found
