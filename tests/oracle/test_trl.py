"""Our losses against TRL 0.24's own methods, in value, gradient and implicit reward.

``make test-oracle`` installs TRL in an environment of its own and runs this folder there. Tables
say what is held against what, and tests see to it that nothing is in none of them:

* ``CASES``, pair by pair: a loss of ours and the method of TRL that gives the same;
* ``BATCHES``, whole objectives on tokens, through TRL's own forward pass and reduction;
* ``TRL_HAS_NONE``, ``WE_HAVE_NONE`` and ``SETTINGS_WE_HAVE_NONE``: what has no counterpart;
* ``DISAGREEMENTS`` in test_trl_disagreements.py: where the two are known to differ, and why.
"""

import dataclasses
import inspect
import re
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
import trl
import trl_methods
from samples import (
    BARE,
    EQUAL,
    PAIRS,
    SEEDS,
    UNEQUAL,
    Bigram,
    Texts,
    gradients,
    pairs,
    same,
)
from torch import Tensor
from trl import CPOConfig, DPOConfig
from trl.trainer.dpo_config import FDivergenceType
from trl_methods import bco, cpo, dpo, kto, orpo, whole_cpo, whole_dpo, whole_orpo

import torchmpo
from torchmpo.adapters import trl_signature
from torchmpo.losses import LOSSES
from torchmpo.metrics import implicit_rewards
from torchmpo.objectives.inputs import PairLogps

# Every loss type that the methods know, by the loss of ours that is held against it.
DPO_TYPES = {
    "sigmoid": "dpo",
    "robust": "robust_dpo",
    "exo_pair": "exo_pair",
    "hinge": "hinge_dpo",
    "ipo": "ipo",
    "bco_pair": "bco_pair",
    "sppo_hard": "sppo_hard",
    "nca_pair": "nca_pair",
    "aot": "aot",
    "aot_pair": "aot_unpaired",
    "apo_zero": "apo_zero",
    "apo_down": "apo_down",
    "discopop": "discopop",
    "sft": "sft",
}
CPO_TYPES = {"sigmoid": "cpo", "simpo": "simpo", "hinge": "slic_hf", "ipo": "ipo"}
KTO_TYPES = {"kto": "apo_zero", "apo_zero_unpaired": "apo_zero"}
DIVERGENCES = {"reverse_kl": "reverse_kl", "js_divergence": "js", "alpha_divergence": "alpha"}

# Pair by pair


def _unchanged(losses: Tensor, pair: PairLogps) -> Tensor:
    return losses


@dataclasses.dataclass(frozen=True)
class Case:
    """``ours`` with ``hyper`` gives what ``theirs`` gives, the latter changed by ``after``."""

    ours: str
    hyper: dict
    theirs: Callable
    after: Callable[[Tensor, PairLogps], Tensor] = _unchanged
    magnitudes: tuple[str, ...] = ("moderate", "large")
    # Whether TRL's rewards are our implicit rewards.
    rewards: bool = True
    # What ours is told of every pair's label.
    preference_probs: float | None = None


def _dpo_cases(beta):
    bare = {"beta": beta}
    for loss_type in ("hinge", "nca_pair", "bco_pair", "sppo_hard", "apo_zero", "apo_down"):
        yield Case(DPO_TYPES[loss_type], bare, dpo(loss_type, beta=beta))
    yield Case("bco_pair", bare, bco(beta))
    for loss_type, ours in KTO_TYPES.items():
        yield Case(ours, bare, kto(loss_type, beta))

    for smoothing in (0.0, 0.2):
        hyper = bare | {"label_smoothing": smoothing}
        for loss_type in ("sigmoid", "robust", "aot", "aot_pair"):
            yield Case(DPO_TYPES[loss_type], hyper, dpo(loss_type, **hyper))
        yield Case("dpo_norm", hyper, dpo("sigmoid", unit="mean", **hyper))
        conservative = dpo("sigmoid", **hyper)
        yield Case("soft_label_dpo", bare, conservative, preference_probs=1 - smoothing)
    for smoothing in (1e-3, 0.3):
        hyper = bare | {"label_smoothing": smoothing}
        yield Case("exo_pair", hyper, dpo("exo_pair", **hyper))

    yield Case("ipo", bare | {"reduction": "sum"}, dpo("ipo", beta=beta))
    yield Case("ipo", bare | {"reduction": "mean"}, dpo("ipo", unit="mean", beta=beta))
    yield Case("rpo", bare | {"sft_coef": 0.0}, dpo("sigmoid", beta=beta))
    yield Case("dpo_gamma", bare | {"ref_coef": 1.0}, dpo("sigmoid", beta=beta))
    without_reference = dpo("sigmoid", beta=beta, reference_free=True)
    yield Case("dpo_gamma", bare | {"ref_coef": 0.0}, without_reference, rewards=False)

    # Above x = −709: below it TRL's is NaN.
    magnitudes = ("moderate", "large") if beta < 0.1 else ("moderate",)
    for tau in (0.05, 0.8):
        theirs = dpo("discopop", beta=beta, tau=tau)
        yield Case("discopop", bare | {"tau": tau}, theirs, magnitudes=magnitudes)

    yield Case("f_dpo", bare | {"divergence": "reverse_kl"}, dpo("sigmoid", beta=beta))
    theirs = dpo("sigmoid", beta=beta, divergence="js_divergence")
    yield Case("f_dpo", bare | {"divergence": "js"}, theirs, rewards=False)
    # Exponentials of the log-ratio: only where neither library limits them.
    tame = {"magnitudes": ("moderate",), "rewards": False}
    theirs = dpo("sigmoid", beta=beta, divergence="alpha_divergence", coef=1.0)
    yield Case("f_dpo", bare | {"divergence": "forward_kl"}, theirs, **tame)
    for coef in (0.5, 0.2, 1.4):
        theirs = dpo("sigmoid", beta=beta, divergence="alpha_divergence", coef=coef)
        hyper = bare | {"divergence": "alpha", "alpha": coef}
        yield Case("f_dpo", hyper, theirs, **tame)


def _cpo_cases():
    for beta in (0.05, 0.7):
        yield Case("cpo", {"beta": beta, "sft_coef": 0.0}, cpo("sigmoid", beta=beta))
        smoothed = {"beta": beta, "label_smoothing": 0.1}
        yield Case("cpo", smoothed | {"sft_coef": 0.0}, cpo("sigmoid", **smoothed))
        # relu(1 − βΔ) = β·relu(1/β − Δ).
        hyper = {"delta": 1 / beta, "sft_coef": 0.0}
        divided = {"after": lambda losses, pair, beta=beta: losses / beta}
        yield Case("slic_hf", hyper, cpo("hinge", beta=beta), **divided, rewards=False)
    hyper = {"delta": 1.0, "sft_coef": 0.0}
    yield Case("slic_hf", hyper, cpo("hinge", beta=1.0))
    yield Case("slic_hf", hyper | {"reduction": "mean"}, cpo("hinge", unit="mean", beta=1.0))
    for beta, margin in ((2.0, 0.5), (0.7, 1.4)):
        hyper = {"beta": beta, "target_margin": margin}
        settings = {"unit": "mean", "beta": beta, "simpo_gamma": margin}
        yield Case("simpo", hyper, cpo("simpo", **settings))
        smoothed = cpo("simpo", label_smoothing=0.1, **settings)
        yield Case("simpo", hyper | {"label_smoothing": 0.1}, smoothed)
        for alpha in (0.25, 0.02, -0.3):
            yield Case("alpha_po", hyper | {"alpha": alpha}, cpo("simpo", alpha=alpha, **settings))


def _orpo_cases():
    for coef in (0.1, 1.0):
        # TRL's has the other sign and no SFT term.
        yield Case(
            "orpo",
            {"po_coef": coef},
            orpo(coef),
            after=lambda losses, pair: -losses - pair.chosen_mean_logps,
        )


CASES = [*_dpo_cases(0.05), *_dpo_cases(0.7), *_cpo_cases(), *_orpo_cases()]


@pytest.mark.parametrize("seed", SEEDS)
@pytest.mark.parametrize(
    ("case", "magnitude"),
    [
        pytest.param(case, magnitude, id=f"{case.ours}-{i}-{magnitude}")
        for i, case in enumerate(CASES)
        for magnitude in case.magnitudes
    ],
)
def test_value_gradient_and_reward_are_trls(case, magnitude, seed):
    leaves, pair = pairs(magnitude, seed, case.preference_probs)
    objective = torchmpo.resolve(case.ours, **case.hyper)
    losses, *rewards = case.theirs(pair)
    expected = case.after(losses, pair)
    assert expected.shape == (PAIRS,)
    assert expected.isfinite().all()
    actual = objective(pair)
    same(actual, expected)
    same(gradients(actual, leaves, seed), gradients(expected, leaves, seed))
    if case.rewards:
        same(implicit_rewards(objective, pair), tuple(rewards))


@pytest.mark.parametrize("unit", ["sum", "mean"])
@pytest.mark.parametrize("beta", [0.05, 0.7])
def test_ipo_without_a_reference_is_cpo_trainers(beta, unit):
    # Ours always has a reference; here it finds both responses equally likely.
    leaves, pair = pairs()
    flat = [torch.zeros(PAIRS, dtype=torch.float64)] * 2
    expected = cpo("ipo", unit=unit, beta=beta)(pair)[0]
    policy = trl_methods.policy(pair, unit)
    actual = LOSSES["ipo"](*policy, *flat, beta=beta, reduction="sum")
    same(actual, expected)
    same(gradients(actual, leaves, 0), gradients(expected, leaves, 0))


# Whole objectives

# Name of ours, its hyper-parameters, lengths of the texts, TRL's objective.
BATCHES = [
    ("dpo", {}, UNEQUAL, lambda *a: whole_dpo(*a, "sigmoid")),
    ("hinge_dpo", {}, UNEQUAL, lambda *a: whole_dpo(*a, "hinge")),
    ("aot_unpaired", {}, UNEQUAL, lambda *a: whole_dpo(*a, "aot_pair")),
    ("ipo", {}, UNEQUAL, lambda *a: whole_dpo(*a, "ipo", unit="mean")),
    ("sft", {}, EQUAL, lambda *a: whole_dpo(*a, "sft")),
    ("rpo", {"sft_coef": 0.6}, EQUAL, lambda *a: whole_dpo(*a, "sigmoid", rpo_alpha=0.6)),
    ("cpo", {"sft_coef": 0.6}, EQUAL, lambda t, m, _: whole_cpo(t, m, "sigmoid", cpo_alpha=0.6)),
    ("orpo", {"po_coef": 0.3}, BARE, lambda t, m, _: whole_orpo(t, m, 0.3)),
    (
        "simpo",
        {"beta": 2.5, "target_margin": 0.3},
        UNEQUAL,
        lambda t, m, _: whole_cpo(t, m, "simpo", beta=2.5, simpo_gamma=0.3, cpo_alpha=0.0),
    ),
    (
        "alpha_po",
        {"beta": 2.5, "target_margin": 0.5, "alpha": 0.4},
        UNEQUAL,
        lambda t, m, _: whole_cpo(t, m, "simpo", beta=2.5, cpo_alpha=0.0, alpha=0.4),
    ),
]


@pytest.mark.parametrize("seed", SEEDS)
@pytest.mark.parametrize(
    ("name", "hyper", "lengths", "theirs"), BATCHES, ids=[name for name, *_ in BATCHES]
)
def test_objective_of_a_batch_is_trls(name, hyper, lengths, theirs, seed):
    model, ref, texts = Bigram(seed), Bigram(seed + 100), Texts(**lengths, seed=seed)
    expected = theirs(texts, model, ref)
    actual = torchmpo.resolve(name, **hyper)(texts.pair(model, ref)).mean()
    same(actual, expected)
    same(gradients(actual, [model.table]), gradients(expected, [model.table]))


def test_adapter_stands_in_for_trls_method():
    model, ref, texts = Bigram(0), Bigram(1), Texts(**UNEQUAL)
    expected = whole_dpo(texts, model, ref, "apo_down", beta=0.3)
    adapted = trl_signature("apo_down", beta=0.3)

    def dpo_loss(chosen, rejected, ref_chosen, ref_rejected, *unused):
        return adapted(chosen, rejected, ref_chosen, ref_rejected)

    # Its beta and its loss type are not asked any more.
    actual = whole_dpo(texts, model, ref, "none", dpo_loss=dpo_loss)
    same(actual, expected)


# Single responses, which TRL gives to its trainers in two halves

SINGLE = {"kto", "bco_unpaired", "apo_zero_unpaired"}


def _joined(pair):
    good = torch.arange(2 * len(pair.chosen_logps)) < len(pair.chosen_logps)
    logps = torch.cat([pair.chosen_logps, pair.rejected_logps])
    return PairLogps(
        logps=logps,
        ref_logps=torch.cat([pair.ref_chosen_logps, pair.ref_rejected_logps]),
        desirable=good,
        mismatched_logps=logps.detach() - 3,
        ref_mismatched_logps=logps.detach() - 4,
    )


@pytest.mark.parametrize("seed", SEEDS)
@pytest.mark.parametrize("name", sorted(SINGLE))
def test_single_responses_are_trls(name, seed):
    leaves, pair = pairs(seed=seed)
    single = _joined(pair)
    loss = torchmpo.resolve(name, beta=0.2)(single)
    if name == "bco_unpaired":
        expected = trl_methods.bco_first_step(0.2, pair)
    else:
        loss_type = "kto" if name == "kto" else "apo_zero_unpaired"
        expected = trl_methods.kto_halves(loss_type, 0.2, pair, single)
    same(loss, expected)
    same(gradients(loss, leaves), gradients(expected, leaves))


# What has no counterpart

TRL_HAS_NONE = {
    "rrhf": "no ranking loss",
    "lpo": "a hinge in TRL always ends",
    "colpo": "no term that a threshold of the likelihood switches",
    "closed_form": "no linear term, and none that grows with the margin",
    "r_dpo": "no length in a margin; ld_alpha discounts tokens instead",
    "dpo_positive_reference": "the reference's margin is taken as it is",
    "margin_dpo": "no reward of a response reaches a loss",
    "smpo": "a pair has no label but chosen and rejected",
    "madpo": "no reward of a response reaches a loss",
    "modpo": "no reward of a response reaches a loss",
    "vpo_offline": "no term in the sum of the chosen response alone; XPO's is online",
    "padll": "of DiscoPOP's losses TRL has the log-ratio modulated one alone",
    "cell": "of DiscoPOP's losses TRL has the log-ratio modulated one alone",
    "pfl": "of DiscoPOP's losses TRL has the log-ratio modulated one alone",
    "aql": "of DiscoPOP's losses TRL has the log-ratio modulated one alone",
    "aqfl": "of DiscoPOP's losses TRL has the log-ratio modulated one alone",
    "dbaql": "of DiscoPOP's losses TRL has the log-ratio modulated one alone",
    "cpl": "both responses count alike",
    "dpo_shift": "both responses count alike",
    "dpop": "no fine for a chosen response below its reference",
    "minor_dpo": "both responses count alike",
    "bpo_min": "both responses count",
    "cal_dpo": "SPPO's targets are there, without a preference term",
    "c2_dpo": "no constraint on the sum of the log-ratios",
    "h_dpo": "no entropy parameter",
    "chi_po": "no χ² among its divergences",
    "mix_dpo": "no reward of a response reaches a loss",
    "gpo": "of the family it has the logistic function and the hinge, held as dpo and hinge_dpo",
    "sym_po": "no symmetric function",
    "bregman_po": "no ratio matching",
    "focal_po": "no weight by the margin",
    "offset_dpo": "no margin in a loss with a reference",
    "dr_dpo": "the mean of a batch is the only sum over it",
    "beta_dpo": "β is fixed",
    "alpha_dpo": "SimPO's margin is fixed",
    "kto_pair": "it was taken out after 0.9",
    "samdpo": "every token counts",
    "ld_dpo": "ld_alpha is inside the trainer's forward pass; held in test_losses_of_steps.py",
    "bvpo": "every token counts alike",
    "tdpo": "no divergence of single tokens",
    "tb_po": "no divergence of single tokens",
    "sparse_po": "no weights of tokens",
    "wpo": "use_weighting is inside the trainer's step; held in tests/finetune/test_steps.py",
    "spo_silu": "no SiLU",
    "cpo_ipo": "its SFT term is one of a batch; the square is held as ipo without a reference",
    "hypo": "no responses drawn while it learns",
    "vpo_online": "no responses drawn while it learns",
    "plackett_luce": "no lists",
    "self_po": "no lists",
    "lambda_po": "no lists",
    "tpo": "TPO came after 0.24",
}
# Loss methods: held against ours above, and not.
HELD = {
    "dpo_trainer.dpo_loss",
    "cpo_trainer.cpo_loss",
    "orpo_trainer.odds_ratio_loss",
    "bco_trainer.bco_loss",
    "kto_trainer.kto_loss",
}
WE_HAVE_NONE = {
    "xpo_trainer._compute_losses": "online: DPO or IPO of fresh samples, and a term in these",
    "nash_md_trainer._compute_losses": "online: policy gradient against a mixture of policies",
    "gkd_trainer.generalized_jsd_loss": "distillation from a teacher: no preference",
    "sft_trainer.dft_loss": "supervised: tokens weighted by their probability",
}
# Settings of the trainers whose losses are held, by the field that makes them.
SETTINGS_WE_HAVE_NONE = {
    (DPOConfig, "use_weighting"): "WPO: pair weights from the policy's whole distribution",
    (DPOConfig, "ld_alpha"): "LD-DPO: discounts tokens beyond the shorter response's length",
    (DPOConfig, "loss_weights"): "a sum of losses inside its step of training; weighted_sum here",
    (DPOConfig, "f_divergence_type"): "also in robust, exo_pair, hinge, ipo; ours is of DPO alone",
    (CPOConfig, "label_smoothing"): "also in AlphaPO; ours has none",
}


def _loss_types(method):
    return set(re.findall(r'loss_type == "(\w+)"', inspect.getsource(method)))


def test_every_loss_of_ours_is_held_against_trl_or_has_a_reason():
    held = {case.ours for case in CASES} | {name for name, *_ in BATCHES} | SINGLE
    assert held | set(TRL_HAS_NONE) == set(LOSSES)
    assert not held & set(TRL_HAS_NONE)


def test_every_loss_type_of_trl_is_held_against_ours():
    held = {case.ours for case in CASES} | {name for name, *_ in BATCHES}
    for method, known in (
        (trl_methods.DPOTrainer.dpo_loss, DPO_TYPES),
        (trl_methods.CPOTrainer.cpo_loss, CPO_TYPES),
        (trl_methods.KTOTrainer.kto_loss, KTO_TYPES),
    ):
        assert _loss_types(method) == set(known)
        assert set(known.values()) <= held
    divergences = {case.hyper.get("divergence") for case in CASES}
    assert {x.value for x in FDivergenceType} == set(DIVERGENCES)
    assert set(DIVERGENCES.values()) <= divergences


def test_every_loss_method_of_trl_is_known():
    methods = set()
    for path in Path(trl.__file__).parent.glob("trainer/*_trainer.py"):
        names = re.findall(r"def (\w*loss(?:es)?\w*)\(", path.read_text(encoding="utf-8"))
        methods |= {f"{path.stem}.{name}" for name in names}
    # What runs a model and calls a loss, or is one of rewards and not of preferences.
    plumbing = re.compile(r"_?compute_(liger_)?loss(_liger)?|cross_entropy_loss|get_batch_loss_.*")
    methods = {x for x in methods if not plumbing.fullmatch(x.partition(".")[2])}
    assert methods == HELD | set(WE_HAVE_NONE)
    for config, field in SETTINGS_WE_HAVE_NONE:
        assert field in config.__dataclass_fields__
