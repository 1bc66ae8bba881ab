"""What to watch while preferences are trained: implicit rewards, accuracies, displacement.

Pure functions of detached tensors. Arguments are ``[batch]``, one value per pair; results are 0-d
means over the batch, float32 or wider, so that averages over equal batches, steps or processes are
the caller's to take. An empty batch is an error. Below, c and r are summed log-probabilities of the
chosen and the rejected response, c̄ and r̄ the same per step, ' marks the reference, Δ = c − r,
Δ₀ = c' − r', D = Δ − Δ₀. A NaN is never counted as right, and stays visible in a mean.
"""

from collections.abc import Callable, Mapping
from typing import Any, NamedTuple

import torch
from torch import Tensor

from torchmpo.losses import LOSSES
from torchmpo.losses.arguments import Scalar, check_positive, same_shape
from torchmpo.losses.divergence import InDivergence
from torchmpo.losses.likelihood_weight import LikelihoodWeighted
from torchmpo.losses.numerics import q_logarithm
from torchmpo.losses.reference_based import f_derivative
from torchmpo.losses.weighted_sum import WeightedSum
from torchmpo.objectives.bound import Objective
from torchmpo.objectives.inputs import PairLogps
from torchmpo.objectives.mirror import MirrorObjective

# Implicit rewards


def _orpo(logps: Tensor, hyper: dict[str, Any]) -> Tensor:
    return hyper["po_coef"] * logps


def _alpha_po(logps: Tensor, hyper: dict[str, Any]) -> Tensor:
    return hyper["beta"] * q_logarithm(logps, -hyper["alpha"])


def _f_dpo(log_ratio: Tensor, hyper: dict[str, Any]) -> Tensor:
    return hyper["beta"] * f_derivative(hyper["divergence"], hyper["alpha"])(log_ratio)


def _chi_po(log_ratio: Tensor, hyper: dict[str, Any]) -> Tensor:
    return hyper["beta"] * f_derivative("chi_squared", 0.0)(log_ratio)


def _h_dpo(log_ratio: Tensor, hyper: dict[str, Any]) -> Tensor:
    return hyper["beta"] * hyper["alpha"] * log_ratio


# The losses whose reward is not β times the log-probability or log-ratio, by name in LOSSES.
_EXCEPTIONS: dict[str, Callable[[Tensor, dict[str, Any]], Tensor]] = {
    "orpo": _orpo,
    "alpha_po": _alpha_po,
    "f_dpo": _f_dpo,
    "chi_po": _chi_po,
    "h_dpo": _h_dpo,
}
# What multiplies the reference's log-probability, where it is neither 1 nor ``ref_coef``.
_REF_COEFS: dict[str, Callable[[dict[str, Any]], Any]] = {
    "h_dpo": lambda hyper: 1 / hyper["alpha"],
    "alpha_dpo": lambda hyper: 0.0,  # its reference is in the margin only
}


def implicit_rewards(
    objective: Objective | MirrorObjective, pair: PairLogps
) -> tuple[Tensor, Tensor]:
    """The reward of each response that a policy has, by its likelihood, under the loss it descends.

        with a reference             β·(c − c')
        without                      β·c
        ``orpo``                     po_coef·c̄
        ``alpha_po``                 β·(1 − e^{−αc̄})/α
        ``f_dpo``, ``chi_po``        β·f'(e^{c − c'})
        in a divergence (``dpo@js``)  β·f'(e^{c − c'})
        weighed (``simpo@wpo``)      as without the weight
        ``h_dpo``                    β·(αc − c')
        ``alpha_dpo``                β·c̄
        mirror losses                φ⁻¹(c̄) [− φ⁻¹(c̄') in two steps], by Theorem 3.1

    and the same of r. c stands for **the unit that the loss compares**: sums; means if the loss
    takes the rejected response's mean, or has ``reduction="mean"`` (as ``ipo`` by default). β is
    the hyper-parameter ``beta``, or 1 where the loss has none; ``ref_coef``, where it has one,
    multiplies c'. The rule is read from the parameters' names, so it holds for one's own loss too.
    A loss of per-step values is measured on the sums. What a loss does to a pair as a whole, such
    as margins, weights or ``dpo_positive_reference``'s cut, is no part of a response's reward, nor
    is an SFT term. A sum of losses has the rewards of the first one.

    Args:
        objective: the loss, with its hyper-parameters.
        pair: both sides in that unit, their lengths with ``reduction="mean"``, the reference's if
            the loss has one, and ``progress`` for a temporal mirror loss.

    Returns:
        chosen and rejected rewards, ``[batch]`` each, detached.

    Raises:
        ValueError: a field is missing, or shapes differ.

    Source: arXiv 2305.18290, eq. 5; arXiv 2411.06568, Theorem 3.1; f' after arXiv 2309.16240. The
    same as TRL 0.24's, which however logs β·(c − c') for every f-divergence, zeros for SFT, and
    β·c for SLiC.

    >>> from torchmpo import resolve
    >>> pair = PairLogps(
    ...     chosen_logps=torch.tensor([-20.0]), rejected_logps=torch.tensor([-30.0]),
    ...     ref_chosen_logps=torch.tensor([-24.0]), ref_rejected_logps=torch.tensor([-24.0]),
    ... )
    >>> [x.tolist() for x in implicit_rewards(resolve("dpo", beta=0.5), pair)]
    [[2.0], [-3.0]]
    """
    objective = rewarding(objective)
    with torch.no_grad():
        chosen = _reward(objective, pair, "chosen")
        rejected = _reward(objective, pair, "rejected")
    same_shape(chosen_rewards=chosen, rejected_rewards=rejected)
    return chosen.detach(), rejected.detach()


def rewarding(objective: Objective | MirrorObjective) -> Objective | MirrorObjective:
    """The loss whose unit and β are those of a response's reward: the first one of a sum, and what
    is weighed (``simpo@wpo``); else the objective itself.
    """
    if isinstance(objective, Objective) and isinstance(objective.source, WeightedSum):
        name, loss = next(iter(objective.source.parts.items()))
        return Objective(loss, name=name, **objective.source.own_hyper(name, objective.hyper))
    if isinstance(objective, Objective) and isinstance(objective.source, LikelihoodWeighted):
        name = objective.name.partition("@")[0]
        return Objective(objective.source.loss, name=name, **objective.hyper)
    return objective


def compares_means(objective: Objective | MirrorObjective) -> bool:
    """Whether a loss compares responses by means over tokens, and not by sums.

    >>> from torchmpo import resolve
    >>> [compares_means(resolve(name)) for name in ("simpo", "ipo", "dpo", "dpo@wpo", "ipo+sft")]
    [True, True, False, False, True]
    """
    own = rewarding(objective)
    return _compared(own).endswith("mean_logps") or divides(own)


def _compared(objective: Objective | MirrorObjective) -> str:
    """The input that says which log-probabilities a loss compares."""
    order = ("rejected_logps", "rejected_mean_logps", "chosen_logps", "chosen_mean_logps")
    return next((name for name in order if name in objective.inputs), "rejected_logps")


def _reward(objective: Objective | MirrorObjective, pair: PairLogps, side: str) -> Tensor:
    hyper = objective.hyper if isinstance(objective, Objective) else {}
    policy = _logps(objective, pair, side)
    ref = _logps(objective, pair, f"ref_{side}") if objective.needs_reference else None
    if ref is not None:
        same_shape(**{side: policy, f"ref_{side}": ref})
    phi_inv = _phi_inv(objective, hyper, pair)
    if phi_inv is not None:
        return phi_inv(policy) if ref is None else phi_inv(policy) - phi_inv(ref)
    source = objective.source if isinstance(objective, Objective) else None
    name = next((n for n in {*_EXCEPTIONS, *_REF_COEFS} if LOSSES.get(n) is source), "")
    if ref is None:
        score = policy
    else:
        ref_coef = _REF_COEFS.get(name, lambda hyper: hyper.get("ref_coef", 1.0))
        score = policy - ref_coef(hyper) * ref
    if name in _EXCEPTIONS:
        return _EXCEPTIONS[name](score, hyper)
    if isinstance(source, InDivergence):
        lengths = getattr(pair, f"{side}_lengths") if divides(objective) else 1
        derivative = f_derivative(source.divergence, hyper.get("divergence_alpha", 0.5))
        score = derivative(score * lengths) / lengths  # of sums, as in the loss
    return hyper.get("beta", 1.0) * score


def _logps(objective: Objective | MirrorObjective, pair: PairLogps, who: str) -> Tensor:
    """The log-probabilities in the unit that the loss compares."""
    field = f"{who}_{_compared(objective).partition('_')[2]}"
    logps = _required(objective, pair, field)
    if divides(objective):
        lengths = _required(objective, pair, f"{who.removeprefix('ref_')}_lengths")
        same_shape(**{field: logps, "lengths": lengths})
        return logps / lengths
    return logps


def divides(objective: Objective | MirrorObjective) -> bool:
    """Whether the loss is given sums and divides them by lengths."""
    return isinstance(objective, Objective) and (
        objective.hyper.get("reduction") == "mean" and "chosen_lengths" in objective.inputs
    )


def _required(objective: Objective | MirrorObjective, pair: PairLogps, field: str) -> Tensor:
    value = getattr(pair, field)
    if value is None:
        raise ValueError(
            f"the implicit rewards of {objective.name} need {field}, which this pair does not have"
        )
    return value


def _phi_inv(
    objective: Objective | MirrorObjective, hyper: dict[str, Any], pair: PairLogps
) -> Callable[[Tensor], Tensor] | None:
    if isinstance(objective, MirrorObjective):
        progress = (
            _required(objective, pair, "progress") if "progress" in objective.inputs else None
        )
        return objective.functions(objective.vector, progress)["phi_inv"]
    # A mirror loss with closed-form functions holds them among its hyper-parameters.
    return hyper.get("phi_inv")


# Means over a batch


def _wide(x: Tensor) -> Tensor:
    return x.detach().to(torch.promote_types(x.dtype, torch.float32))


def _share(right: Tensor) -> Tensor:
    return right.to(torch.float32).mean()


def _check_batch(**tensors: Tensor) -> None:
    name, first = next(iter(tensors.items()))
    if not isinstance(first, Tensor) or first.dim() != 1 or first.shape[0] == 0:
        got = tuple(first.shape) if isinstance(first, Tensor) else type(first).__name__
        raise ValueError(f"{name} must be [batch], at least one pair; got {got}")
    same_shape(**tensors)


def reward_accuracy(chosen_rewards: Tensor, rejected_rewards: Tensor) -> Tensor:
    """Share of pairs whose chosen response has the larger implicit reward: mean 1[D > 0].

    A tie is wrong, so an untrained policy, equal to its reference, has accuracy 0.

    Args:
        chosen_rewards, rejected_rewards: ``[batch]``, see :func:`implicit_rewards`.

    Raises:
        ValueError: shapes differ, or the batch is empty.

    >>> reward_accuracy(torch.tensor([1.0, 0.0]), torch.tensor([0.0, 0.0])).item()
    0.5
    """
    _check_batch(chosen_rewards=chosen_rewards, rejected_rewards=rejected_rewards)
    return _share(chosen_rewards.detach() > rejected_rewards.detach())


def ranking_accuracy(chosen_logps: Tensor, rejected_logps: Tensor) -> Tensor:
    """Share of pairs whose chosen response is the likelier one: mean 1[Δ ≥ 0].

    Not the reward accuracy: a pair may have gained on its reference and still be ranked wrongly.
    Δ ≥ 0 exactly where the DPO loss is at most −LS(β(r' − c')).

    Args:
        chosen_logps, rejected_logps: ``[batch]``; sums for Δ, or both means for Δ̄.

    Raises:
        ValueError: shapes differ, or the batch is empty.

    Source: Chen et al., arXiv 2405.19534.

    >>> ranking_accuracy(torch.tensor([-1.0, -3.0]), torch.tensor([-2.0, -2.0])).item()
    0.5
    """
    _check_batch(chosen_logps=chosen_logps, rejected_logps=rejected_logps)
    return _share(chosen_logps.detach() >= rejected_logps.detach())


def idealised_accuracy(
    ref_chosen_logps: Tensor, ref_rejected_logps: Tensor, judge_margin: Tensor, *, beta: Scalar
) -> Tensor:
    """The ranking accuracy that the exact optimum of DPO would have: mean 1[Δ₀ + J/β > 0].

    Args:
        ref_chosen_logps, ref_rejected_logps: ``[batch]``, nats, sums.
        judge_margin: J ``[batch]``, the judge's log-odds for the chosen response: with a
            Bradley–Terry judge of temperature η, (R_c − R_r)/η.
        beta: β > 0 of the loss.

    Raises:
        ValueError: shapes differ, the batch is empty, or β is out of range.

    Source: Chen et al., arXiv 2405.19534.

    >>> x = torch.tensor([-20.0])
    >>> idealised_accuracy(x, x + 5, torch.tensor([1.0]), beta=0.1).item()      # −5 + 10 > 0
    1.0
    """
    _check_batch(
        ref_chosen_logps=ref_chosen_logps,
        ref_rejected_logps=ref_rejected_logps,
        judge_margin=judge_margin,
    )
    check_positive(beta=beta)
    margin = _wide(ref_chosen_logps) - _wide(ref_rejected_logps) + _wide(judge_margin) / beta
    return _share(margin > 0)


def alignment_gap(
    chosen_logps: Tensor,
    rejected_logps: Tensor,
    ref_chosen_logps: Tensor,
    ref_rejected_logps: Tensor,
    judge_margin: Tensor,
    *,
    beta: Scalar,
) -> Tensor:
    """How far the policy's ranking accuracy is below the idealised one; negative where above.

    Args:
        chosen_logps, rejected_logps: ``[batch]``, nats, sums.
        ref_chosen_logps, ref_rejected_logps, judge_margin, beta: see :func:`idealised_accuracy`.

    Raises:
        ValueError: shapes differ, the batch is empty, or β is out of range.

    Source: Chen et al., arXiv 2405.19534.

    >>> x = torch.tensor([-20.0])
    >>> alignment_gap(x, x + 5, x, x + 5, torch.tensor([1.0]), beta=0.1).item()
    1.0
    """
    same_shape(chosen_logps=chosen_logps, ref_chosen_logps=ref_chosen_logps)
    ideal = idealised_accuracy(ref_chosen_logps, ref_rejected_logps, judge_margin, beta=beta)
    return ideal - ranking_accuracy(chosen_logps, rejected_logps)


class Displacement(NamedTuple):
    """How far likelihoods moved from the reference's, the two sides apart; 0-d tensors.

    Attributes:
        chosen: mean c − c', in the unit of what was compared.
        rejected: mean r − r'.
        fell: share of pairs whose c fell below c'.
    """

    chosen: Tensor
    rejected: Tensor
    fell: Tensor


def displacement(
    chosen_logps: Tensor,
    rejected_logps: Tensor,
    ref_chosen_logps: Tensor,
    ref_rejected_logps: Tensor,
) -> Displacement:
    """How far each side moved: D alone does not tell whether the chosen responses got likelier.

    Args:
        chosen_logps, rejected_logps: ``[batch]``; sums, or all four means.
        ref_chosen_logps, ref_rejected_logps: ``[batch]``; the reference's, or those of step 0.

    Raises:
        ValueError: shapes differ, or the batch is empty.

    >>> x = torch.tensor([-20.0, -20.0])
    >>> moved = displacement(x - 2, x - 9, x, x)
    >>> moved.chosen.item(), moved.rejected.item(), moved.fell.item()
    (-2.0, -9.0, 1.0)
    """
    _check_batch(
        chosen_logps=chosen_logps,
        rejected_logps=rejected_logps,
        ref_chosen_logps=ref_chosen_logps,
        ref_rejected_logps=ref_rejected_logps,
    )
    chosen = _wide(chosen_logps) - _wide(ref_chosen_logps)
    rejected = _wide(rejected_logps) - _wide(ref_rejected_logps)
    return Displacement(chosen.mean(), rejected.mean(), _share(chosen < 0))


class FlipTable(NamedTuple):
    """Shares of pairs ranked right or wrong, first at the start, then now; 0-d, they sum to 1.

    Attributes:
        right_right: ranked right, and still.
        right_wrong: unlearned.
        wrong_right: learned.
        wrong_wrong: ranked wrong, and still.
    """

    right_right: Tensor
    right_wrong: Tensor
    wrong_right: Tensor
    wrong_wrong: Tensor

    def __str__(self) -> str:
        rows = [("right at the start", *self[:2]), ("wrong at the start", *self[2:])]
        lines = [f"{'':18}  right now  wrong now"]
        lines += [f"{name}  {float(a):9.1%}  {float(b):9.1%}" for name, a, b in rows]
        return "\n".join(lines)


def flip_table(start_margin: Tensor, margin: Tensor) -> FlipTable:
    """Which pairs training put in the right order, and which it spoiled.

    Args:
        start_margin: ``[batch]``, Δ of each pair at the start; Δ₀ where the policy started from the
            reference. Sums, or both means.
        margin: ``[batch]``, Δ of the same pairs now. Right is ≥ 0, as in :func:`ranking_accuracy`.

    Raises:
        ValueError: shapes differ, or the batch is empty.

    Source: after Chen et al., arXiv 2405.19534, who ask which rankings DPO flips.

    >>> print(flip_table(torch.tensor([1.0, 1.0, -1.0, -1.0]), torch.tensor([2.0, -1.0, 3.0, 1.0])))
                        right now  wrong now
    right at the start      25.0%      25.0%
    wrong at the start      50.0%       0.0%
    """
    _check_batch(start_margin=start_margin, margin=margin)
    before, now = start_margin.detach() >= 0, margin.detach() >= 0
    return FlipTable(
        _share(before & now), _share(before & ~now), _share(~before & now), _share(~before & ~now)
    )


def preference_metrics(
    pair: PairLogps, chosen_rewards: Tensor, rejected_rewards: Tensor
) -> dict[str, Tensor]:
    """The metrics of one batch, under the keys that TRL's users know.

        rewards/chosen, rewards/rejected, rewards/margins     means
        rewards/accuracies                                    mean 1[D > 0]

    and for what the pair has, sums and, with ``mean_`` before the name, means:

        logps/chosen, logps/rejected           mean_logps/…             nats; nats per step
        ranking/accuracies                     ranking/mean_accuracies  mean 1[Δ ≥ 0]
        displacement/chosen, …/rejected, …/fell  mean_displacement/…    :func:`displacement`

    Log them from step 0 on: :func:`displacement_warning` compares with the first ones.

    Args:
        pair: any fields; those that are ``None`` are left out.
        chosen_rewards, rejected_rewards: ``[batch]``, see :func:`implicit_rewards`.

    Returns:
        0-d tensors without gradient, float32 or wider.

    Raises:
        ValueError: shapes differ, or the batch is empty.

    >>> x = torch.tensor([1.0, 3.0])
    >>> metrics = preference_metrics(PairLogps(chosen_logps=-x), x, 0 * x)
    >>> metrics["rewards/accuracies"].item(), metrics["logps/chosen"].item()
    (1.0, -2.0)
    """
    _check_batch(chosen_rewards=chosen_rewards, rejected_rewards=rejected_rewards)
    metrics = {
        "rewards/chosen": _wide(chosen_rewards).mean(),
        "rewards/rejected": _wide(rejected_rewards).mean(),
        "rewards/margins": (_wide(chosen_rewards) - _wide(rejected_rewards)).mean(),
        "rewards/accuracies": reward_accuracy(chosen_rewards, rejected_rewards),
    }
    for prefix in ("", "mean_"):
        names = [f"{who}_{prefix}logps" for who in ("chosen", "rejected")]
        names += [f"ref_{name}" for name in names]
        values = {name: getattr(pair, name) for name in names}
        given = {name: value for name, value in values.items() if value is not None}
        same_shape(chosen_rewards=chosen_rewards, **given)
        for side in ("chosen", "rejected"):
            if (logps := given.get(f"{side}_{prefix}logps")) is not None:
                metrics[f"{prefix}logps/{side}"] = _wide(logps).mean()
        chosen, rejected, ref_chosen, ref_rejected = values.values()
        if chosen is None or rejected is None:
            continue
        metrics[f"ranking/{prefix}accuracies"] = ranking_accuracy(chosen, rejected)
        if ref_chosen is not None and ref_rejected is not None:
            moved = displacement(chosen, rejected, ref_chosen, ref_rejected)
            metrics |= {f"{prefix}displacement/{k}": v for k, v in moved._asdict().items()}
    return metrics


def labelled_metrics(objective: Objective, pair: PairLogps) -> dict[str, Tensor]:
    """The metrics of a batch of single responses, which a loss such as ``kto`` is of.

        rewards/signed        mean of ±β·h, + for desirable responses and − for the others
        rewards/accuracies    share of responses whose reward has the sign of their label
        logps                 mean log π, nats
        displacement          mean h

    h = log π − log π_ref. Means of each kind are not among them: a batch may lack one.

    Args:
        objective: the loss, with its hyper-parameters.
        pair: ``logps``, ``desirable``, and ``ref_logps`` if the loss has a reference.

    Returns:
        0-d tensors without gradient, float32 or wider.

    Raises:
        ValueError: a field is missing, shapes differ, or the batch is empty.

    >>> from torchmpo import resolve
    >>> x, good = torch.tensor([-1.0, -3.0]), torch.tensor([True, False])
    >>> pair = PairLogps(logps=x, ref_logps=torch.tensor([-2.0, -2.0]), desirable=good)
    >>> labelled_metrics(resolve("kto", beta=0.5), pair)["rewards/signed"].item()
    0.5
    """
    logps = _required(objective, pair, "logps").detach()
    desirable = _required(objective, pair, "desirable")
    _check_batch(logps=logps, desirable=desirable)
    log_ratio = logps
    if objective.needs_reference:
        ref = _required(objective, pair, "ref_logps").detach()
        same_shape(logps=logps, ref_logps=ref)
        log_ratio = logps - ref
    signed = torch.where(desirable > 0.5, log_ratio, -log_ratio)
    return {
        "rewards/signed": (objective.hyper.get("beta", 1.0) * _wide(signed)).mean(),
        "rewards/accuracies": _share(signed > 0),
        "logps": _wide(logps).mean(),
        "displacement": _wide(log_ratio).mean(),
    }


# What the warning compares, the first that both measurements have: key, tolerance, unit.
_COMPARED = (
    ("displacement", 1.0, "nats"),
    ("logps", 1.0, "nats"),
    ("mean_displacement", 0.05, "nats per step"),
    ("mean_logps", 0.05, "nats per step"),
)


def displacement_warning(
    start: Mapping[str, Tensor | float],
    now: Mapping[str, Tensor | float],
    *,
    tolerance: float | None = None,
) -> str | None:
    """A warning, in one line, once chosen **and** rejected responses are less likely than at first.

    The margin may grow all the same, and the reward accuracy with it. Where both measurements have
    ``displacement/…``, that is compared: the reference's log-probability is subtracted pair by
    pair, and with it goes most of the difference between two batches. Else ``logps/…`` is, of which
    a batch's mean differs from the next one's by tens of nats: measure the same pairs both times,
    or give a tolerance of three standard errors.

    Args:
        start: :func:`preference_metrics` of step 0, averaged over batches or not.
        now: the same, now.
        tolerance: how far both must have fallen, ≥ 0; by default 1 nat per response, or, for pairs
            that only have means, 0.05 nats per step.

    Returns:
        the message, or ``None``: nothing to warn of, or a NaN.

    Raises:
        ValueError: no common key to compare, or a negative tolerance.

    Source: likelihood displacement, Razin et al., arXiv 2410.08847.

    >>> start = {"logps/chosen": -100.0, "logps/rejected": -120.0}
    >>> displacement_warning(start, {"logps/chosen": -90.0, "logps/rejected": -150.0})
    >>> print(displacement_warning(start, {"logps/chosen": -110.0, "logps/rejected": -150.0}))
    since step 0 both sides became less likely: chosen by 10, rejected by 30 nats (logps/*); \
an SFT term or a smaller learning rate holds the chosen ones
    """
    if tolerance is not None and not tolerance >= 0:
        raise ValueError(f"tolerance must be zero or positive; got {tolerance}")
    for key, default, unit in _COMPARED:
        sides = (f"{key}/chosen", f"{key}/rejected")
        if not all(side in metrics for side in sides for metrics in (start, now)):
            continue
        chosen, rejected = (float(start[side]) - float(now[side]) for side in sides)
        limit = default if tolerance is None else tolerance
        if not (chosen > limit and rejected > limit):
            return None
        return (
            f"since step 0 both sides became less likely: chosen by {chosen:.3g}, rejected by "
            f"{rejected:.3g} {unit} ({key}/*); an SFT term or a smaller learning rate holds the "
            "chosen ones"
        )
    raise ValueError(
        "start and now must both have one of "
        + ", ".join(f"{key}/chosen and {key}/rejected" for key, *_ in _COMPARED)
    )
