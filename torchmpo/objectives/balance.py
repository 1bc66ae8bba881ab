"""Two losses whose weights follow from training: ``resolve("dpo+sft@dual", kappa=1.0)``.

A sum of losses has fixed weights. Here they are a state, changed at every update by one of four
rules, from the values of the two terms on a minibatch or from their gradients over the policy. A
term is its loss times its weight in the text; g_1 and g_2 are the gradients of the first and the
second one.

==========  ======================================================================================
dual        minimise the first term subject to *second ≤ kappa*: weights (1, λ),
            λ ← max(0, λ + weight_lr·(second − kappa))
min_norm    weights (α, 1 − α) of the shortest vector between g_1 and g_2, which lengthens neither
dynamic     w ← softmax(log w + weight_lr·Σ_j⟨g_i, g_j⟩): more to what agrees with the whole
meta        weights (1 − μ, μ), μ ← μ + weight_lr·⟨g_val, g_2 − g_1⟩ + entropy_coef·log((1 − μ)/μ),
            where g_val is of a third term, on which nothing is trained, and is taken on the
            minibatch after the one of g_1 and g_2: that is how μ should have been for this one
==========  ======================================================================================

Sources: dual ascent, Boyd and Vandenberghe 2004, section 5; min_norm, Désidéri 2012 (MGDA), and
Sener and Koltun 2018, arXiv 1810.04650; meta, the one-step meta-gradient of Xu et al. 2018, arXiv
1805.09801.
"""

import inspect
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import torch
from torch import Tensor

from torchmpo.losses.arguments import check_finite, check_non_negative
from torchmpo.losses.weighted_sum import WeightedSum
from torchmpo.runs.errors import nearest

State = dict[str, Any]
Gradient = Mapping[str, Tensor]
Hyper = Mapping[str, Any]

# The smallest and, from 1, the largest share of a term under `meta`: its logarithm stays finite.
LEAST = 1e-3


def inner(a: Gradient, b: Gradient) -> Tensor:
    """⟨a, b⟩ over all parameters, ``[]``."""
    return torch.stack([(a[name] * b[name]).sum() for name in a]).sum()


def dual(state: State, losses: Tensor, gradients: Sequence[Gradient], hyper: Hyper) -> State:
    """Dual ascent: λ grows while the second term is above ``kappa``, and falls to 0 below it."""
    one, multiplier = state["weights"]
    multiplier = multiplier + hyper["weight_lr"] * (losses[1] - hyper["kappa"])
    return {"weights": torch.stack([one, multiplier.clamp(min=0.0)])}


def min_norm(state: State, losses: Tensor, gradients: Sequence[Gradient], hyper: Hyper) -> State:
    """The shortest convex combination: both inner products with it are its squared norm."""
    first, second = gradients
    across = {name: second[name] - first[name] for name in first}
    length = inner(across, across)
    # Between equal gradients every weight is as good; a half of each is the middle.
    apart = length > 0
    alpha = inner(across, second) / torch.where(apart, length, 1.0)
    alpha = torch.where(apart, alpha.clamp(0.0, 1.0), 0.5)
    alpha = alpha + 0.0 * length  # a comparison with NaN is false, and would hide that it is one
    return {"weights": torch.stack([alpha, 1 - alpha])}


def dynamic(state: State, losses: Tensor, gradients: Sequence[Gradient], hyper: Hyper) -> State:
    """Multiplicative weights: equal gradients, or orthogonal ones of one length, keep them."""
    whole = {name: first + gradients[1][name] for name, first in gradients[0].items()}
    agreement = torch.stack([inner(gradient, whole) for gradient in gradients])
    weights = state["weights"]
    logs = weights.clamp(min=torch.finfo(weights.dtype).tiny).log()
    return {"weights": (logs + hyper["weight_lr"] * agreement).softmax(-1)}


def meta(state: State, losses: Tensor, gradients: Sequence[Gradient], hyper: Hyper) -> State:
    """Descend the validation loss after the last update, as a function of that update's μ."""
    first, second, validation = gradients
    share = state["weights"][1]
    entropy = hyper["entropy_coef"] * ((1 - share) / share).log()
    slope = inner(validation, state["difference"])
    share = (share + hyper["weight_lr"] * slope + entropy).clamp(LEAST, 1 - LEAST)
    difference = {name: second[name] - first[name] for name in first}
    return {"weights": torch.stack([1 - share, share]), "difference": difference}


Rule = Callable[[State, Tensor, Sequence[Gradient], Hyper], State]
RULES: dict[str, Rule] = {"dual": dual, "min_norm": min_norm, "dynamic": dynamic, "meta": meta}
# The numbers of each rule, beside those of the losses.
HYPER: dict[str, dict[str, float]] = {
    "dual": {"kappa": 1.0, "weight_lr": 0.01},
    "min_norm": {},
    "dynamic": {"weight_lr": 0.01},
    "meta": {"weight_lr": 0.01, "entropy_coef": 0.001},
}


class Balanced(WeightedSum):
    """A sum of two losses whose weights follow from training, by one of ``RULES``.

    Called, it is the plain sum of both, with the weights that their terms have in the text. What
    trains with it asks for the :meth:`terms` and moves their weights by :meth:`step`.

    Args:
        losses: names and functions: two, and under ``meta`` a third one that validates.
        rule: a key of ``RULES``.

    Raises:
        ValueError: an unknown rule, or another number of losses.

    >>> from torchmpo.losses import LOSSES
    >>> both = Balanced({name: LOSSES[name] for name in ("simpo", "sft")}, "dual")
    >>> both.__name__, both.defaults["kappa"]
    ('simpo+sft@dual', 1.0)
    """

    def __init__(self, losses: Mapping[str, Callable[..., Tensor]], rule: str):
        if rule not in RULES:
            raise ValueError(f"unknown balance {rule!r} of a sum: {nearest(rule, RULES)}")
        count = 3 if rule == "meta" else 2
        if len(losses) != count:
            third = ", the third of which validates" if rule == "meta" else ""
            raise ValueError(f"{rule} balances a sum of {count} losses{third}; got {len(losses)}")
        super().__init__(losses)
        self.rule = rule
        self.__name__ += f"@{rule}"
        self.defaults |= HYPER[rule]
        keyword = inspect.Parameter.KEYWORD_ONLY
        own = [inspect.Parameter(k, keyword, default=v) for k, v in HYPER[rule].items()]
        known = self.__signature__.parameters.values()
        self.__signature__ = self.__signature__.replace(parameters=[*known, *own])

    @property
    def of_gradients(self) -> bool:
        """Whether the rule reads the gradients of the terms, and not only their values."""
        return self.rule != "dual"

    def __call__(self, *data: Tensor | None, **hyper: Any) -> Tensor:
        """The plain sum of the two terms that are trained, ``[batch]``.

        Raises:
            ValueError: as a part does, or a number is not finite or negative.
        """
        first, second, *_ = self.terms(*data, **hyper)
        return first + second

    def terms(self, *data: Tensor | None, **hyper: Any) -> list[Tensor]:
        """Each loss times its weight, ``[batch]`` each."""
        own = self.defaults | hyper
        check_finite(**{name: own[name] for name in HYPER[self.rule]})
        check_non_negative(**{n: own[n] for n in HYPER[self.rule] if n != "kappa"})
        return super().terms(*data, **hyper)

    def start(self, params: Gradient) -> State:
        """The state before the first update, in which both terms weigh the same.

        Args:
            params: what is trained.

        Returns:
            ``weights`` ``[2]`` of the terms that are trained, and what else the rule remembers.
        """
        like = next(iter(params.values()))
        weights = like.new_ones(2) * (1.0 if self.rule == "dual" else 0.5)
        if self.rule != "meta":
            return {"weights": weights}
        difference = {name: torch.zeros_like(p) for name, p in params.items()}
        return {"weights": weights, "difference": difference}

    def step(
        self, state: State, losses: Tensor, gradients: Sequence[Gradient], hyper: Hyper
    ) -> State:
        """The next state: weights for this update, or under ``dual`` for the next one.

        Args:
            state: of :meth:`start`, or of the last step.
            losses: of the terms, ``[terms]``, means over the minibatch.
            gradients: of the terms over what is trained; not read where ``of_gradients`` is false.
            hyper: numbers of the rule, by name.
        """
        return RULES[self.rule](state, losses, gradients, hyper)
