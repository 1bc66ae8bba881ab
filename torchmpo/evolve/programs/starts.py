"""Losses of the library that are short formulas: where a search of formulas begins."""

# With the library's default hyper-parameters.
FORMULAS = {
    "orpo": "0.1 * softplus(log_odds(r) - log_odds(c)) - c",
    "dpo": "softplus(-0.1 * D)",
    "sft": "-c",
    "cpo": "softplus(-0.1 * margin_sum) - c",
    "simpo": "softplus(0.5 - 2 * margin)",
    "slic_hf": "relu(1 - margin_sum) - 0.1 * c_sum",
    "rrhf": "relu(-margin) - c",
    "ipo": "square(D_mean - 5)",
}
