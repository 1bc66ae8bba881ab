"""How much of the ranking that its β and its judge allow a loss has reached."""

import torch
from torch import Tensor

from torchmpo.control.annotators import preference_probability
from torchmpo.control.kinds import PARTS, parse_kind
from torchmpo.control.preferences import PreferenceDataset
from torchmpo.metrics import compares_means, idealised_accuracy, ranking_accuracy, rewarding
from torchmpo.objectives.bound import Objective
from torchmpo.objectives.mirror import MirrorObjective

_OTHER_TASTES = {"cyclic", "proxy", "objectives"}


def judge_margin(kind: str, data: PreferenceDataset) -> Tensor | None:
    """The judge's log-odds for the chosen trajectory of each pair, ``[pairs]``.

    ±∞ where there was no doubt. ``None`` where the label does not tell: of files without votes, of
    groups that disagree, and where a judge of another taste than the return errs.
    """
    parsed = parse_kind(kind)
    modifiers = dict(parsed.modifiers)
    if data.preference_probs is not None:
        return torch.logit(data.preference_probs)
    flips, temperature = modifiers.get("noisy", 0.0), modifiers.get("bad_judge", 0.0)
    if parsed.source not in PARTS or modifiers.keys() & {"mixture", "hard_noise"}:
        return None
    if parsed.source == "degraded" or modifiers.keys() & _OTHER_TASTES:
        erring = bool(flips or temperature)
        return None if erring else torch.full((len(data),), torch.inf)
    margin = data.returns[data.chosen] - data.returns[data.rejected]
    right = preference_probability(margin, temperature=temperature)
    return torch.logit(right * (1 - flips) + (1 - right) * flips)


def alignment(
    objective: Objective | MirrorObjective,
    setting: dict[str, float],
    margin: Tensor | None,
    lengths: Tensor,
    start: Tensor,
    end: Tensor,
) -> dict[str, float]:
    """Ranking accuracy at the end, and the one that the optimum would have.

        ranking        share of pairs whose chosen trajectory is the likelier one
        idealised      the same of the optimum of J − β·KL(π ‖ reference), whatever the loss is
        alignment_gap  how far the former is below the latter

    The last two are of losses with a reference and β, and of judges that are known.

    Args:
        setting: hyper-parameters that were trained with.
        margin: ``[pairs]``, see :func:`judge_margin`.
        lengths: ``[2, pairs]``, tokens of chosen and rejected trajectories.
        start, end: ``[2, pairs]``, their mean log-probabilities per token under the reference and
            the policy.

    Source: arXiv 2405.19534.
    """
    scale = torch.ones_like(start) if compares_means(objective) else lengths
    start, end = start * scale, end * scale
    found = {"ranking": float(ranking_accuracy(end[0], end[1]))}
    beta = _beta(objective, setting)
    if margin is not None and objective.needs_reference and beta is not None:
        ideal = float(idealised_accuracy(start[0], start[1], margin, beta=beta))
        found |= {"idealised": ideal, "alignment_gap": ideal - found["ranking"]}
    return found


def _beta(objective: Objective | MirrorObjective, setting: dict[str, float]) -> float | None:
    """β of what a response's reward is from, as it was trained with."""
    if not isinstance(objective, Objective):
        return None
    own = {name: value for name, value in setting.items() if name in objective.hyper}
    trained = Objective(objective.function, name=objective.name, **{**objective.hyper, **own})
    of_reward = rewarding(trained)
    return of_reward.hyper.get("beta") if isinstance(of_reward, Objective) else None
