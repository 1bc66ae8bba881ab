"""What the tests of the losses share: settings worth trying, and data for the inputs they name."""

import inspect

import torch

from torchmpo.losses import LOSSES
from torchmpo.objectives.inputs import DRAWN

# Every loss by name, with settings away from its defaults. The first changes every numeric
# hyper-parameter, and stays in range when they are all multiplied by anything from 0.5 to 1.4.
SETTINGS = {
    "sft": [{}],
    "rrhf": [{"sft_coef": 0.3}],
    "slic_hf": [{"delta": 1.7, "sft_coef": 0.3}, {"reduction": "mean"}],
    "lpo": [{"sft_coef": 0.3}, {"reduction": "mean"}],
    "cpo": [{"beta": 0.4, "sft_coef": 0.7, "label_smoothing": 0.1}],
    "orpo": [{"po_coef": 0.6}],
    "simpo": [
        {"beta": 1.3, "target_margin": 0.2, "sft_coef": 0.7, "label_smoothing": 0.1},
        {"sft_coef": 0.7},
    ],
    "alpha_po": [{"beta": 1.3, "alpha": 0.6, "target_margin": 0.2}],
    "colpo": [{"po_coef": 0.8, "delta": 1.5, "threshold": -2.0}],
    "closed_form": [
        {
            "sft_coef": 0.7,
            "sigmoid_coef": 0.4,
            "beta": 1.3,
            "target_margin": 0.2,
            "linear_coef": 0.3,
            "softplus_coef": 0.6,
            "sharpness": 2.5,
            "threshold": -0.4,
        }
    ],
    "dpo": [{"beta": 0.3, "label_smoothing": 0.1}],
    "robust_dpo": [{"beta": 0.3, "label_smoothing": 0.1}],
    "r_dpo": [{"beta": 0.3, "alpha": 0.2}],
    "dpo_norm": [{"beta": 1.3, "label_smoothing": 0.1}],
    "rpo": [{"beta": 0.3, "sft_coef": 0.7}],
    "dpo_gamma": [{"beta": 0.3, "ref_coef": 0.6}, {"ref_coef": 2.0}],
    "dpo_positive_reference": [{"beta": 0.3}],
    "soft_label_dpo": [{"beta": 0.3}],
    "margin_dpo": [{"beta": 0.3, "margin_coef": 0.6}],
    "smpo": [{"beta": 0.3, "scale": 1.7}],
    "madpo": [
        {
            "beta": 0.3,
            "eta": 0.7,
            "max_coef": 3.0,
            "min_coef": 0.4,
            "sharpness": 1.6,
            "tau": 1.1,
        }
    ],
    "modpo": [{"beta": 0.3, "po_coef": 0.7, "reward_coef": 0.2}],
    "vpo_offline": [{"beta": 0.3, "alpha": 0.4}],
    "vpo_online": [{"beta": 0.3, "alpha": 0.4}],
    "hypo": [{"beta": 0.3, "kl_coef": 0.4}],
    "ipo": [{"beta": 0.3}, {"reduction": "sum"}],
    "hinge_dpo": [{"beta": 0.3}],
    "nca_pair": [{"beta": 0.3}],
    "bco_pair": [{"beta": 0.3}],
    "sppo_hard": [{"beta": 0.3}],
    "apo_zero": [{"beta": 0.3}],
    "apo_down": [{"beta": 0.3}],
    "exo_pair": [{"beta": 0.3, "label_smoothing": 0.1}],
    "f_dpo": [
        {"beta": 0.3, "alpha": 0.4},
        {"divergence": "forward_kl"},
        {"divergence": "js"},
        {"divergence": "alpha", "alpha": 0.4},
        {"divergence": "chi_squared"},
    ],
    "cpl": [{"beta": 0.3, "rejected_coef": 0.6}, {"reduction": "mean"}],
    "dpo_shift": [{"beta": 0.3, "rejected_coef": 0.6}],
    "dpop": [{"beta": 0.2, "penalty_coef": 3.0}],
    "minor_dpo": [{"beta": 0.3}],
    "bpo_min": [{"beta": 0.3, "balance": 0.6}],
    "cal_dpo": [{"beta": 0.3, "calibration_coef": 0.6}],
    "c2_dpo": [{"beta": 0.3, "constraint_coef": 0.01}],
    "h_dpo": [{"beta": 0.3, "alpha": 0.7}],
    "chi_po": [{"beta": 0.3, "max_margin": 1.3}],
    "mix_dpo": [{"beta": 0.3, "threshold": -0.7, "sft_coef": 0.6}],
    "gpo": [
        {"beta": 0.3},
        {"curve": "logistic"},
        {"curve": "hinge"},
        {"curve": "squared"},
        {"curve": "truncated_quadratic"},
        {"curve": "savage"},
    ],
    "sym_po": [{"beta": 0.3}, {"curve": "ramp"}, {"curve": "unhinged"}],
    "bregman_po": [{"beta": 0.3, "power": 0.7}, {"power": 0.0}],
    "focal_po": [{"beta": 0.3, "focus": 0.6}],
    "offset_dpo": [{"beta": 0.3, "target_margin": 0.2}],
    "dr_dpo": [{"beta": 0.3, "temperature": 0.6}],
    "beta_dpo": [{"beta": 0.3, "alpha": 0.2, "baseline": 0.4}],
    "kto_pair": [{"beta": 0.3}],
    "kto": [{"beta": 0.3, "desirable_coef": 1.3, "undesirable_coef": 0.7}],
    "bco_unpaired": [{"beta": 0.3, "desirable_coef": 1.3, "undesirable_coef": 0.7}],
    "apo_zero_unpaired": [{"beta": 0.3, "desirable_coef": 1.3, "undesirable_coef": 0.7}],
    "alpha_dpo": [{"beta": 1.3, "alpha": 0.3, "target_margin": 0.2}],
    "wpo": [{"beta": 0.3, "label_smoothing": 0.1}],
    "samdpo": [{"beta": 0.3}],
    "ld_dpo": [{"beta": 0.3, "excess_coef": 0.6}],
    "bvpo": [{"beta": 0.3, "mix": 0.6, "window": 0.4}],
    "tdpo": [{"beta": 0.3, "alpha": 0.7}, {"variant": "tdpo1"}],
    "tb_po": [{"beta": 0.3}],
    "sparse_po": [{"beta": 0.3, "sparsity_coef": 0.2}],
    "spo_silu": [{"beta": 0.3}],
    "cpo_ipo": [{"beta": 0.3, "sft_coef": 0.7}],
    "plackett_luce": [{"beta": 0.3}],
    "self_po": [{"beta": 0.3}],
    "lambda_po": [{"beta": 0.3}],
    "tpo": [
        {"beta": 0.3, "sft_coef": 0.7, "target_margin": 0.2, "label_smoothing": 0.1},
        {"curve": "hinge", "beta": 0.3},
        {"curve": "squared", "beta": 0.3, "reduction": "mean"},
    ],
    "discopop": [{"beta": 0.3, "tau": 0.2}],
    "padll": [{"beta": 0.3}],
    "cell": [{"beta": 0.3}],
    "pfl": [{"beta": 0.3}],
    "aot": [{"beta": 0.3, "label_smoothing": 0.1}],
    "aot_unpaired": [{"beta": 0.3, "label_smoothing": 0.1}],
    "aql": [{"beta": 0.3, "tau": 0.2}],
    "aqfl": [{"beta": 0.3, "tau": 0.2}],
    "dbaql": [{"beta": 0.3, "tau": 0.2}],
}
CASES = [
    (name, setting) for name in SETTINGS for setting in ({}, *(s for s in SETTINGS[name] if s))
]
# A part of these depends on the policy and sends no gradient into it: the function of that name in
# oracles.py with ``_held`` behind it.
STOPPED = ("beta_dpo", "alpha_dpo", "bco_unpaired", "wpo", "hypo")
# Losses of steps; the divergences of steps are looked at in test_losses_of_steps.py.
OF_STEPS = ("ld_dpo", "bvpo", "tdpo", "tb_po", "sparse_po")
OF_LISTS = ("plackett_luce", "self_po", "lambda_po")
OF_DRAWN = ("hypo", "vpo_online")
STEPS = 6
RESPONSES = 4
POLICY = (
    *("chosen_logps", "rejected_logps", "chosen_mean_logps", "rejected_mean_logps", "logps"),
    *("chosen_step_logps", "rejected_step_logps", "list_logps", "gold_mean_logps"),
    *("own_logps", "calibration_logps"),
)


def case_id(value):
    return ",".join(f"{k}={v}" for k, v in value.items()) if isinstance(value, dict) else str(value)


def input_names(name):
    parameters = inspect.signature(LOSSES[name]).parameters.values()
    return [p.name for p in parameters if p.kind is not p.KEYWORD_ONLY]


def defaults(name):
    parameters = inspect.signature(LOSSES[name]).parameters.values()
    return {p.name: p.default for p in parameters if p.kind is p.KEYWORD_ONLY}


def make_inputs(name, batch=6, seed=0, dtype=torch.float64, spread=3.0, device="cpu"):
    """Random data for a loss, by the names of its inputs; log-probabilities in (−spread, 0)."""
    gen = torch.Generator().manual_seed(seed)
    data = {}
    for field in input_names(name):
        shape = (batch, STEPS) if "_step_" in field else (batch,)
        shape = (batch, RESPONSES) if "list_" in field or field in DRAWN else shape
        if field.endswith("_lengths"):
            values = torch.randint(1, 9, (batch,), generator=gen)
        elif field.endswith("_mask"):  # made below, of the lengths
            values = torch.zeros(batch, STEPS, dtype=torch.bool)
        elif field.endswith(("_step_kl", "_step_weights")):
            values = torch.rand(shape, generator=gen).to(dtype)
        elif field.endswith("_rewards"):
            values = (2 * torch.randn(batch, generator=gen)).to(dtype)
        elif field == "desirable":
            values = torch.rand(batch, generator=gen) < 0.5
        elif field == "preference_probs":
            values = torch.rand(batch, generator=gen).to(dtype)
        else:
            values = (-spread * torch.rand(shape, generator=gen) - 0.01).to(dtype)
        data[field] = values.to(device)
    for side in ("chosen", "rejected"):
        if f"{side}_mask" in data:  # a response of more than STEPS is known by a sample
            place = torch.arange(STEPS, device=device)
            data[f"{side}_mask"] = place < data[f"{side}_lengths"][:, None]
    return data


def call(name, data, **hyper):
    return LOSSES[name](*data.values(), **hyper)


def policy_fields(data):
    """Those that a gradient reaches; of a weight by likelihood, none does."""
    weighed = "chosen_log_collision" in data
    return [field for field in data if field in POLICY and not (weighed and "mean" in field)]


def policy_gradients(name, data, **hyper):
    """The losses and the gradients of their sum, one per policy log-probability, stacked."""
    free = policy_fields(data)
    data = {k: v.detach().clone().requires_grad_(k in free) for k, v in data.items()}
    loss = call(name, data, **hyper)
    grads = torch.autograd.grad(loss.sum(), [data[field] for field in policy_fields(data)])
    return loss.detach(), stacked(grads)


def stacked(values):
    """One tensor; where some have a dimension more, the others are its first place, and 0 after."""
    widest = max(values, key=lambda x: x.dim())
    pad = torch.nn.functional.pad
    return torch.stack(
        [
            x if x.dim() == widest.dim() else pad(x[..., None], (0, widest.shape[-1] - 1))
            for x in values
        ]
    )
