"""What the tests of the losses share: settings worth trying, and data for the inputs they name."""

import inspect

import torch

from torchmpo.losses import LOSSES

# Every loss by name, with settings away from its defaults. The first changes every numeric
# hyper-parameter, and stays in range when they are all multiplied by anything from 0.5 to 1.4.
SETTINGS = {
    "sft": [{}],
    "rrhf": [{"sft_coef": 0.3}],
    "slic_hf": [{"delta": 1.7, "sft_coef": 0.3}, {"reduction": "mean"}],
    "lpo": [{"sft_coef": 0.3}, {"reduction": "mean"}],
    "cpo": [{"beta": 0.4, "sft_coef": 0.7}],
    "orpo": [{"po_coef": 0.6}],
    "simpo": [{"beta": 1.3, "target_margin": 0.2}],
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
POLICY = ("chosen_logps", "rejected_logps", "chosen_mean_logps", "rejected_mean_logps")


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
        if field.endswith("_lengths"):
            values = torch.randint(1, 9, (batch,), generator=gen)
        elif field.endswith("_rewards"):
            values = (2 * torch.randn(batch, generator=gen)).to(dtype)
        elif field == "preference_probs":
            values = torch.rand(batch, generator=gen).to(dtype)
        else:
            values = (-spread * torch.rand(batch, generator=gen) - 0.01).to(dtype)
        data[field] = values.to(device)
    return data


def call(name, data, **hyper):
    return LOSSES[name](*data.values(), **hyper)


def policy_fields(data):
    return [field for field in data if field in POLICY]


def policy_gradients(name, data, **hyper):
    """The losses and the gradients of their sum, one per policy log-probability, stacked."""
    data = {k: v.detach().clone().requires_grad_(k in POLICY) for k, v in data.items()}
    loss = call(name, data, **hyper)
    grads = torch.autograd.grad(loss.sum(), [data[field] for field in policy_fields(data)])
    return loss.detach(), torch.stack(grads)
