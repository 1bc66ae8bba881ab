"""Where TRL 0.24 and we are known to differ, why, and a test that each is so."""

import math

import pytest
import torch
import trl_methods
from samples import (
    EQUAL,
    PAIRS,
    SEEDS,
    UNEQUAL,
    Bigram,
    Texts,
    differ,
    gradients,
    one_pair,
    pairs,
    same,
    tensor,
)
from test_trl import DPO_TYPES
from torch.nn.functional import logsigmoid, softplus
from trl import CPOConfig, DPOConfig, ORPOConfig
from trl_methods import cpo, dpo, dpo_trainer, orpo, whole_cpo, whole_dpo, whole_orpo

import torchmpo
from torchmpo.metrics import implicit_rewards

# Each is the name of a test below.
DISAGREEMENTS = {
    "discopop_nan": (
        "TRL's m·e^{−x} is 0·∞ = NaN for x = βD far below 0; ours is computed as one exponential"
    ),
    "exo_smoothing_of_zero": (
        "TRL silently makes ε = 0 into 1e-3, and leaves it so for the loss types after it; ours "
        "refuses 0 and has 1e-3 as its default"
    ),
    "ipo_unit": (
        "TRL's method squares what it is given; that IPO takes per-step means is its trainer's "
        "doing. Ours says so by reduction"
    ),
    "ipo_in_a_mix": "with 'ipo' among several loss types, TRL gives per-step means to them all",
    "aot_pair_is_unpaired": "TRL's aot_pair is the unpaired variant, our aot_unpaired",
    "simpo_gamma": (
        "simpo_gamma is the margin itself, as our target_margin, though γ/β is what the authors "
        "of SimPO tune"
    ),
    "simpo_has_an_sft_term": (
        "CPOConfig(loss_type='simpo') keeps cpo_alpha = 1, which adds an SFT term; 'alphapo' "
        "does not"
    ),
    "alphapo_is_simpo": "CPOConfig(loss_type='alphapo') has alpha = 0: SimPO. Ours has 0.25",
    "alphapo_underflow": "TRL raises e^{logp} to −α: ∞ − ∞ = NaN where it underflows",
    "exponentials": (
        "TRL caps the α-divergence's exponents at the dtype's limit, without a gradient beyond, "
        "and AlphaPO's nowhere; ours go on as their tangents from 30"
    ),
    "alpha_coefficient": (
        "TRL's default α is 1, which is the forward KL; ours is ½, halfway to the reverse KL"
    ),
    "f_divergence_rewards": "TRL reports β·h under every divergence, ours β·f'",
    "f_divergence_scope": (
        "TRL's divergence also changes robust, exo_pair, hinge and ipo, and no other loss type"
    ),
    "reference_free": (
        "half of TRL's loss types, and its rewards, keep the reference under reference_free; ours "
        "say by their arguments whether they have one"
    ),
    "reference_gradient": "TRL lets a gradient into the reference's log-probabilities",
    "odds_ratio_sign": "odds_ratio_loss returns β·LS, which its trainer subtracts",
    "odds_ratio_at_zero": (
        "log1p(−exp(a)) is −∞ at a = 0, in float32 already at −1e-8; ours clamps at −1e-6"
    ),
    "bco_running_mean": (
        "TRL's bco_pair subtracts a running mean of the rewards, rounded to float32; ours has no "
        "memory and is TRL's at mean 0"
    ),
    "sft_is_one_scalar": (
        "TRL's SFT terms (sft, rpo_alpha, cpo_alpha, ORPO's) are one mean over the batch's tokens; "
        "ours are a mean per response, so long responses do not count for more"
    ),
    "sft_rewards": "under 'sft' TRL reports β·h; ours is the mean log-probability that is raised",
    "sft_skips_token_0": "DPOTrainer's SFT terms leave out token 0, even inside a response",
    "orpo_sft_covers_prompt": "ORPOTrainer's SFT term is over prompt and response",
    "smoothing_of_a_half": "TRL's robust divides by 0 at ε = ½; ours refuses it",
    "shapes": "TRL broadcasts [batch] with [batch, 1] to [batch, batch]; ours refuse",
    "defaults": "ours follow the paper of each loss, TRL's are those of the trainer",
}


def test_every_disagreement_has_a_test():
    prefix = "test_disagreement_"
    tested = [name.removeprefix(prefix) for name in globals() if name.startswith(prefix)]
    assert sorted(tested) == sorted(DISAGREEMENTS)


def ours(name, pair, **hyper):
    return torchmpo.resolve(name, **hyper)(pair)


def log_ratio(pair):
    return (pair.chosen_logps - pair.ref_chosen_logps).detach()


def config(kind, folder, **settings):
    return kind(output_dir=str(folder), use_cpu=True, bf16=False, report_to=[], **settings)


# Numbers that are not finite


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_disagreement_discopop_nan(dtype):
    leaves, pair = one_pair(-20001.0, -1.0, dtype=dtype)
    assert dpo("discopop", beta=0.05)(pair)[0].isnan().all()
    # x = −1000, where the loss is −LS(x) alone.
    losses = ours("discopop", pair, beta=0.05)
    same(losses, tensor(1000.0, dtype=dtype), rtol=1e-6)
    same(gradients(losses, leaves)[0], tensor(-0.05, dtype=dtype), rtol=1e-6)


def test_disagreement_alphapo_underflow():
    # Means as low as this are a policy gone wrong; ours still leads back.
    leaves, pair = one_pair(-120.0, -110.0, dtype=torch.float32)
    assert cpo("simpo", unit="mean", alpha=0.25)(pair)[0].isnan().all()
    losses = ours("alpha_po", pair)
    chosen, rejected = gradients(losses, leaves)
    assert losses.isfinite().all()
    assert -torch.inf < chosen < 0 <= rejected < torch.inf


@pytest.mark.parametrize(
    ("value", "dtype"), [(0.0, torch.float64), (0.0, torch.float32), (-1e-8, torch.float32)]
)
def test_disagreement_odds_ratio_at_zero(value, dtype):
    for chosen, rejected in ((value, -1.0), (-1.0, value), (value, value)):
        leaves, pair = one_pair(chosen, rejected, dtype=dtype)
        theirs = orpo(0.1)(pair)[0]
        assert not all(x.isfinite().all() for x in (theirs, *gradients(theirs, leaves)))
        losses = ours("orpo", pair)
        assert all(x.isfinite().all() for x in (losses, *gradients(losses, leaves)))


def test_disagreement_smoothing_of_a_half():
    _, pair = pairs()
    assert not dpo("robust", label_smoothing=0.5)(pair)[0].isfinite().any()
    with pytest.raises(ValueError, match="label_smoothing"):
        torchmpo.resolve("robust_dpo", label_smoothing=0.5)


def test_disagreement_exponentials():
    # A chosen response 1000 nats below its reference, and β so small that the loss is near log 2.
    leaves, pair = one_pair(-1001.0, -1.0)
    theirs = dpo("sigmoid", beta=1e-308, divergence="alpha_divergence")(pair)[0]
    cap = math.floor(math.log(torch.finfo(torch.float64).max) * 1e4) / 1e4
    assert cap == 709.7827
    same(theirs, softplus(tensor(1e-308 * math.exp(cap))))
    assert gradients(theirs, leaves)[0] == 0
    losses = ours("f_dpo", pair, beta=1e-13, divergence="forward_kl")
    # e^30·(1 + 970) − 1: the tangent at 30.
    z = tensor(1e-13 * (971 * math.exp(30) - 1))
    same(losses, softplus(z))
    same(gradients(losses, leaves)[0], -1e-13 * math.exp(30) * torch.sigmoid(z))
    # AlphaPO between the two limits.
    _, pair = one_pair(-40.0, -1.0)
    theirs = cpo("simpo", unit="mean", beta=1e-13, simpo_gamma=0.0, alpha=1.0)(pair)[0]
    same(theirs, softplus(tensor(1e-13 * (math.exp(40) - math.e))))
    losses = ours("alpha_po", pair, beta=1e-13, target_margin=0.0, alpha=1.0)
    same(losses, softplus(tensor(1e-13 * (11 * math.exp(30) - math.e))))


# What a setting or a name means


def test_disagreement_exo_smoothing_of_zero():
    _, pair = pairs()
    trainer = dpo_trainer("exo_pair", "sigmoid")
    logps = (*trl_methods.policy(pair), *trl_methods.reference(pair))
    assert trainer.label_smoothing == 0.0
    same(trainer.dpo_loss(*logps, "exo_pair")[0], ours("exo_pair", pair, label_smoothing=1e-3))
    assert trainer.label_smoothing == 1e-3
    same(trainer.dpo_loss(*logps, "sigmoid")[0], ours("dpo", pair, label_smoothing=1e-3))
    with pytest.raises(ValueError, match="label_smoothing"):
        torchmpo.resolve("exo_pair", label_smoothing=0.0)


def test_disagreement_ipo_unit():
    _, pair = pairs()
    given_sums = dpo("ipo")(pair)[0]
    same(given_sums, ours("ipo", pair, reduction="sum"))
    assert differ(given_sums, ours("ipo", pair))


def test_disagreement_ipo_in_a_mix():
    model, ref, texts = Bigram(0), Bigram(1), Texts(**UNEQUAL)
    pair = texts.pair(model, ref)
    theirs = whole_dpo(texts, model, ref, "sigmoid", "ipo", unit="mean", beta=1.0)
    ipo = ours("ipo", pair, beta=1.0)
    same(theirs, (ours("dpo_norm", pair, beta=1.0) + ipo).mean())
    assert differ(theirs, (ours("dpo", pair, beta=1.0) + ipo).mean())


def test_disagreement_aot_pair_is_unpaired():
    _, pair = pairs()
    losses = dpo("aot_pair")(pair)[0]
    # Which chosen response a rejected one belongs to makes no difference.
    order = torch.randperm(PAIRS, generator=torch.Generator().manual_seed(0))
    shuffled = pair._replace(
        rejected_logps=pair.rejected_logps[order], ref_rejected_logps=pair.ref_rejected_logps[order]
    )
    same(dpo("aot_pair")(shuffled)[0], losses)
    assert differ(dpo("aot")(shuffled)[0], dpo("aot")(pair)[0])
    same(losses, ours("aot_unpaired", pair))
    assert differ(losses, ours("aot", pair))


def test_disagreement_simpo_gamma():
    # β·Δ̄ = 0.5, so a margin of 0.5 makes log 2; γ/β = 0.5 would be a margin of 1.
    _, pair = one_pair(-1.0, -1.25)
    theirs = cpo("simpo", unit="mean", beta=2.0, simpo_gamma=0.5)(pair)[0]
    same(theirs, tensor(math.log(2)))
    same(theirs, ours("simpo", pair, beta=2.0, target_margin=0.5))


def test_disagreement_simpo_has_an_sft_term(tmp_path):
    assert config(CPOConfig, tmp_path, loss_type="simpo").cpo_alpha == 1.0
    assert config(CPOConfig, tmp_path, loss_type="alphapo").cpo_alpha == 0.0
    model, ref, texts = Bigram(0), Bigram(1), Texts(**EQUAL)
    pair = texts.pair(model, ref)
    theirs = whole_cpo(texts, model, "simpo", beta=2.0)
    same(theirs, (ours("simpo", pair) + ours("sft", pair)).mean())


def test_disagreement_alphapo_is_simpo(tmp_path):
    made = config(CPOConfig, tmp_path, loss_type="alphapo")
    assert (made.loss_type, made.alpha) == ("simpo", 0.0)
    assert torchmpo.resolve("alpha_po").hyper["alpha"] == 0.25


def test_disagreement_alpha_coefficient():
    _, pair = pairs()
    default = DPOConfig.__dataclass_fields__["f_alpha_divergence_coef"].default
    theirs = dpo("sigmoid", divergence="alpha_divergence", coef=default)(pair)[0]
    same(theirs, ours("f_dpo", pair, divergence="forward_kl"))
    assert differ(theirs, ours("f_dpo", pair, divergence="alpha"))


SEE_THE_DIVERGENCE = {"sigmoid", "robust", "exo_pair", "hinge", "ipo"}


def changed_by(**settings):
    """The loss types of which a setting changes anything."""
    _, pair = pairs()
    return {
        loss_type
        for loss_type in DPO_TYPES
        # sft is given its loss.
        if loss_type != "sft"
        and not torch.equal(dpo(loss_type, **settings)(pair)[0], dpo(loss_type)(pair)[0])
    }


@pytest.mark.parametrize("divergence", ["js_divergence", "alpha_divergence"])
def test_disagreement_f_divergence_scope(divergence):
    assert changed_by(divergence=divergence) == SEE_THE_DIVERGENCE


@pytest.mark.parametrize(
    ("divergence", "name"), [("js_divergence", "js"), ("alpha_divergence", "forward_kl")]
)
def test_disagreement_f_divergence_rewards(divergence, name):
    _, pair = pairs()
    losses, reward, _ = dpo("sigmoid", divergence=divergence)(pair)
    same(reward, 0.1 * log_ratio(pair))
    chosen, rejected = implicit_rewards(torchmpo.resolve("f_dpo", divergence=name), pair)
    assert differ(chosen, reward)
    # It is the margin of ours that the loss sees.
    same(losses, -logsigmoid(chosen - rejected))


def test_disagreement_reference_free():
    assert changed_by(reference_free=True) == SEE_THE_DIVERGENCE | {"apo_zero", "apo_down"}
    _, pair = pairs()
    _, reward, _ = dpo("sigmoid", reference_free=True)(pair)
    same(reward, 0.1 * log_ratio(pair))
    chosen, _ = implicit_rewards(torchmpo.resolve("dpo_gamma", ref_coef=0.0), pair)
    same(chosen, 0.1 * pair.chosen_logps.detach())


def test_disagreement_reference_gradient():
    _, pair = pairs()
    refs = [x.clone().requires_grad_() for x in trl_methods.reference(pair)]
    pair = pair._replace(ref_chosen_logps=refs[0], ref_rejected_logps=refs[1])
    assert all(g.abs().max() > 0 for g in gradients(dpo("sigmoid")(pair)[0], refs))
    assert all(g.abs().max() == 0 for g in gradients(ours("dpo", pair), refs))


def test_disagreement_odds_ratio_sign():
    _, pair = pairs()
    theirs = orpo(0.3)(pair)[0]
    assert (theirs < 0).all()
    same(-theirs, ours("orpo", pair, po_coef=0.3) - ours("sft", pair))


def test_disagreement_bco_running_mean():
    beta, running, means = 0.7, trl_methods.running_moments(), []
    for seed in SEEDS:
        leaves, pair = pairs(seed=seed)
        theirs, *rewards = dpo("bco_pair", beta=beta, running=running)(pair)
        assert differ(theirs, ours("bco_pair", pair, beta=beta))
        # Every batch counts as one observation, in float32.
        means.append(torch.cat(rewards).mean().item())
        mean = sum(means) / len(means)
        assert running.mean == pytest.approx(mean, rel=1e-6)
        assert running.mean != mean
        # The mean has no gradient: a reference that much higher gives all that TRL gives.
        shifted = pair._replace(
            ref_chosen_logps=pair.ref_chosen_logps + running.mean / beta,
            ref_rejected_logps=pair.ref_rejected_logps + running.mean / beta,
        )
        losses = ours("bco_pair", shifted, beta=beta)
        same(losses, theirs)
        same(gradients(losses, leaves, seed), gradients(theirs, leaves, seed))


def test_disagreement_shapes():
    _, pair = pairs()
    pair = pair._replace(ref_chosen_logps=pair.ref_chosen_logps[:, None])
    assert dpo("sigmoid")(pair)[0].shape == (PAIRS, PAIRS)
    with pytest.raises(ValueError, match="shape"):
        ours("dpo", pair)


# SFT terms

# TRL's objective with an SFT term of weight 1, and the rest of it.
SFT_TERMS = {
    "sft": (lambda *a: whole_dpo(*a, "sft"), None),
    "rpo": (lambda *a: whole_dpo(*a, "sigmoid", rpo_alpha=1.0), ("dpo", {})),
    "cpo": (lambda t, m, _: whole_cpo(t, m, "sigmoid"), ("cpo", {"sft_coef": 0.0})),
}


@pytest.mark.parametrize("name", SFT_TERMS)
def test_disagreement_sft_is_one_scalar(name):
    theirs, preference = SFT_TERMS[name]
    model, ref, texts = Bigram(0), Bigram(1), Texts(**UNEQUAL)
    pair = texts.pair(model, ref)
    rest = 0.0
    if preference:
        rest = ours(preference[0], pair, **preference[1]).mean()
    over_tokens = -pair.chosen_logps.sum() / pair.chosen_lengths.sum()
    over_pairs = ours("sft", pair).mean()
    assert differ(over_tokens, over_pairs)
    same(theirs(texts, model, ref), over_tokens + rest)
    same(ours(name, pair).mean(), over_pairs + rest)


def _sft(pair):
    logps = (*trl_methods.policy(pair), *trl_methods.reference(pair))
    return dpo_trainer("sft").dpo_loss(*logps, "sft", {"nll_loss": tensor(3.0).squeeze()})


def test_disagreement_sft_rewards():
    _, pair = pairs()
    losses, reward, _ = _sft(pair)
    # The method repeats what the trainer computed.
    same(losses, torch.full((PAIRS,), 3.0, dtype=torch.float64))
    same(reward, 0.1 * log_ratio(pair))
    chosen, _ = implicit_rewards(torchmpo.resolve("sft"), pair)
    same(chosen, pair.chosen_mean_logps.detach())


def test_disagreement_sft_skips_token_0():
    model, ref, texts = Bigram(0), Bigram(1), Texts(**EQUAL, lowest=0)
    steps = torch.cat([model.step_logps(*x) for x in texts.of("chosen")])
    zero = torch.cat(texts.responses["chosen"]) == 0
    assert zero.any()
    assert differ(steps.mean(), steps[~zero].mean())
    same(whole_dpo(texts, model, ref, "sft"), -steps[~zero].mean())
    same(ours("sft", texts.pair(model, ref)).mean(), -steps.mean())


def test_disagreement_orpo_sft_covers_prompt():
    model, ref, texts = Bigram(0), Bigram(1), Texts(**EQUAL)
    pair = texts.pair(model, ref)
    # From the second token of the prompt on: nothing predicts the first.
    whole = [torch.cat(x) for x in texts.of("chosen")]
    everywhere = -torch.cat([model.step_logps(x[:1], x[1:]) for x in whole]).mean()
    preference = (ours("orpo", pair, po_coef=0.3) - ours("sft", pair)).mean()
    same(whole_orpo(texts, model, 0.3), everywhere + preference)
    assert differ(everywhere, ours("sft", pair).mean())


# Defaults

# Ours: loss, hyper-parameter, default. TRL's: configuration, field, default.
DIFFERENT = [
    (("dpo_norm", "beta", 5.0), (DPOConfig, "beta", 0.1)),
    (("discopop", "beta", 0.05), (DPOConfig, "beta", 0.1)),
    (("exo_pair", "label_smoothing", 1e-3), (DPOConfig, "label_smoothing", 0.0)),
    (("f_dpo", "alpha", 0.5), (DPOConfig, "f_alpha_divergence_coef", 1.0)),
    (("rpo", "sft_coef", 1.0), (DPOConfig, "rpo_alpha", None)),
    (("simpo", "beta", 2.0), (CPOConfig, "beta", 0.1)),
    (("alpha_po", "beta", 2.0), (CPOConfig, "beta", 0.1)),
    (("alpha_po", "alpha", 0.25), (CPOConfig, "alpha", 0.0)),
    (("slic_hf", "sft_coef", 0.1), (CPOConfig, "cpo_alpha", 1.0)),
]
BETA_OF_THE_TRAINER = [
    *("dpo", "robust_dpo", "rpo", "ipo", "hinge_dpo", "exo_pair", "nca_pair", "bco_pair"),
    *("sppo_hard", "aot", "aot_unpaired", "apo_zero", "apo_down", "f_dpo", "soft_label_dpo"),
]
EQUAL_DEFAULTS = [
    *((name, "beta", DPOConfig, "beta") for name in BETA_OF_THE_TRAINER),
    *((x, "label_smoothing", DPOConfig, "label_smoothing") for x in ("dpo", "robust_dpo", "aot")),
    ("discopop", "tau", DPOConfig, "discopop_tau"),
    ("cpo", "beta", CPOConfig, "beta"),
    ("cpo", "sft_coef", CPOConfig, "cpo_alpha"),
    ("simpo", "target_margin", CPOConfig, "simpo_gamma"),
    ("alpha_po", "target_margin", CPOConfig, "simpo_gamma"),
    ("orpo", "po_coef", ORPOConfig, "beta"),
]


def test_disagreement_defaults():
    for (name, key, mine), (kind, field, theirs) in DIFFERENT:
        assert mine != theirs
        assert torchmpo.resolve(name).hyper[key] == mine, name
        assert kind.__dataclass_fields__[field].default == theirs, field
    for name, key, kind, field in EQUAL_DEFAULTS:
        default = kind.__dataclass_fields__[field].default
        assert torchmpo.resolve(name).hyper[key] == default, (name, key)
