"""TRL 0.24's own losses as plain functions: its methods, run on trainers without model or data.

A loss method of TRL reads a few settings from its trainer. Here a trainer is made without its
``__init__`` and given those settings and nothing else, so what runs is TRL's code, unchanged.
"""

from types import SimpleNamespace

import torch
from trl.trainer.bco_trainer import BCOTrainer
from trl.trainer.cpo_trainer import CPOTrainer
from trl.trainer.dpo_config import FDivergenceConstants, FDivergenceType
from trl.trainer.dpo_trainer import DPOTrainer
from trl.trainer.kto_trainer import KTOTrainer
from trl.trainer.orpo_trainer import ORPOTrainer
from trl.trainer.utils import RunningMoments

# One process: nothing is gathered.
ACCELERATOR = SimpleNamespace(
    device=torch.device("cpu"), use_distributed=False, gather_for_metrics=lambda x: x
)


def _trainer(kind, **settings):
    trainer = object.__new__(kind)
    language_model = {
        "aux_loss_enabled": False,
        "is_encoder_decoder": False,
        "label_pad_token_id": -100,
        "pad_token_id": 0,
    }
    vars(trainer).update({"accelerator": ACCELERATOR} | language_model | settings)
    return trainer


def dpo_trainer(*loss_types, tau=0.05, rpo_alpha=None, divergence="reverse_kl", coef=1.0, **other):
    """A DPOTrainer; ``coef`` is that of ``divergence="alpha_divergence"``."""
    settings = {
        "args": SimpleNamespace(
            discopop_tau=tau, rpo_alpha=rpo_alpha, ld_alpha=None, use_liger_loss=False
        ),
        "beta": 0.1,
        "label_smoothing": 0.0,
        "loss_type": list(loss_types),
        "loss_weights": None,
        "reference_free": False,
        "f_divergence_type": FDivergenceType(divergence),
        "f_divergence_params": {FDivergenceConstants.ALPHA_DIVERGENCE_COEF_KEY: coef},
        # bco_pair's running mean, held at 0.
        "running": SimpleNamespace(mean=0.0, update=lambda rewards: None),
        "use_weighting": False,
        "max_length": None,
        "use_logits_to_keep": False,
        "padding_free": False,
    }
    return _trainer(DPOTrainer, **(settings | other))


def cpo_trainer(loss_type, **other):
    settings = {
        "loss_type": loss_type,
        "beta": 0.1,
        "label_smoothing": 0.0,
        "simpo_gamma": 0.5,
        "alpha": 0.0,
        "cpo_alpha": 1.0,
        "padding_value": 0,
    }
    return _trainer(CPOTrainer, **(settings | other))


def orpo_trainer(beta=0.1):
    return _trainer(ORPOTrainer, beta=beta, padding_value=0)


def running_moments():
    """The running mean that bco_pair subtracts, at its start."""
    return RunningMoments(ACCELERATOR)


# Pair by pair. Each makes a function of a PairLogps that returns losses and both rewards, [batch].
# ``unit`` says what the method is given: sums, as most trainers do, or per-step means.


def policy(pair, unit="sum"):
    mean = "" if unit == "sum" else "mean_"
    return [getattr(pair, f"{side}_{mean}logps") for side in ("chosen", "rejected")]


def reference(pair, unit="sum"):
    mean = "" if unit == "sum" else "mean_"
    return [getattr(pair, f"ref_{side}_{mean}logps") for side in ("chosen", "rejected")]


def dpo(loss_type, *, unit="sum", **settings):
    def method(pair):
        trainer = dpo_trainer(loss_type, **settings)
        return trainer.dpo_loss(*policy(pair, unit), *reference(pair, unit), loss_type)

    return method


def cpo(loss_type, *, unit="sum", **settings):
    return lambda pair: cpo_trainer(loss_type, **settings).cpo_loss(*policy(pair, unit))


def orpo(beta):
    return lambda pair: orpo_trainer(beta).odds_ratio_loss(*policy(pair, "mean"))[:3]


def bco(beta):
    """BCOTrainer's loss, its two halves put together, before its running mean has moved from 0."""

    def method(pair):
        trainer = _trainer(
            BCOTrainer,
            beta=beta,
            running=running_moments(),
            embedding_func=None,
            embedding_tokenizer=None,
        )
        logps = (*policy(pair), *reference(pair))
        losses, *rewards = trainer.bco_loss(*logps, None, None, do_train=False)[:3]
        return sum(losses.chunk(2)), *rewards

    return method


def kto(loss_type, beta):
    """KTOTrainer's loss, its two halves put together; "kto" without its estimate of the KL."""

    def method(pair):
        trainer = _trainer(
            KTOTrainer,
            loss_type=loss_type,
            beta=beta,
            calculate_KL=False,
            desirable_weight=1.0,
            undesirable_weight=1.0,
        )
        losses, *rewards = trainer.kto_loss(*policy(pair), None, *reference(pair), None)[:3]
        return sum(losses.chunk(2)), *rewards

    return method


def kto_halves(loss_type, beta, pair, single):
    """KTOTrainer's losses of chosen and rejected responses, with mismatched ones."""
    trainer = _trainer(
        KTOTrainer,
        loss_type=loss_type,
        beta=beta,
        calculate_KL=loss_type == "kto",
        accelerator=ACCELERATOR,
        desirable_weight=1.0,
        undesirable_weight=1.0,
    )
    mismatched = single.mismatched_logps, single.ref_mismatched_logps
    return trainer.kto_loss(*policy(pair), mismatched[0], *reference(pair), mismatched[1])[0]


def bco_first_step(beta, pair):
    """BCOTrainer's losses with the mean of this batch as its running mean."""
    moments = running_moments()
    rewards = [beta * (a - b) for a, b in zip(policy(pair), reference(pair), strict=True)]
    moments.mean = torch.cat(rewards).detach().mean()
    none = {"embedding_func": None, "embedding_tokenizer": None}
    trainer = _trainer(BCOTrainer, beta=beta, running=moments, **none)
    logps = (*policy(pair), *reference(pair))
    return trainer.bco_loss(*logps, None, None, do_train=False)[0]


# Whole objectives: a batch of token ids in, one number out.


def whole_dpo(texts, model, ref, *loss_types, unit="sum", **settings):
    trainer = dpo_trainer(*loss_types, **settings)
    batch = texts.dpo_batch(*reference(texts.pair(model, ref), unit))
    return trainer.get_batch_loss_metrics(model, batch)[0]


def whole_cpo(texts, model, loss_type, **settings):
    trainer = cpo_trainer(loss_type, **settings)
    return trainer.get_batch_loss_metrics(model, texts.cpo_batch())[0]


def whole_orpo(texts, model, beta):
    return orpo_trainer(beta).get_batch_loss_metrics(model, texts.cpo_batch())[0]
