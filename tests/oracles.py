"""Slow, plain float64 twins of the formulas, in python's own mathematics; nothing of ours is used.

Every function takes and returns python floats: one pair at a time.
"""

import math


def log_sigmoid(x):
    return -math.log1p(math.exp(-x)) if x >= 0 else x - math.log1p(math.exp(x))


def log_odds(a):
    p = math.exp(a)
    return math.log(p / (1 - p))


def gaussian_logp(action, mean, std):
    return sum(
        math.log(math.exp(-((a - m) ** 2) / (2 * s**2)) / (s * math.sqrt(2 * math.pi)))
        for a, m, s in zip(action, mean, std, strict=True)
    )


def sft(c_mean):
    return -c_mean


def slic_hf(c, r, *, delta, sft_coef):
    return max(0.0, delta - c + r) - sft_coef * c


def lpo(c, r, *, sft_coef):
    return r - (1 + sft_coef) * c


def cpo(c, r, c_mean, *, beta, sft_coef):
    return -log_sigmoid(beta * (c - r)) - sft_coef * c_mean


def orpo(c_mean, r_mean, *, po_coef):
    return -c_mean - po_coef * log_sigmoid(log_odds(c_mean) - log_odds(r_mean))


def simpo(c_mean, r_mean, *, beta, target_margin):
    return math.log(1 + math.exp(-(beta * (c_mean - r_mean) - target_margin)))


def dpo(c, r, rc, rr, *, beta, label_smoothing):
    x = beta * (math.log(math.exp(c - rc) / math.exp(r - rr)))
    right = 1 / (1 + math.exp(-x))
    return -(1 - label_smoothing) * math.log(right) - label_smoothing * math.log(1 - right)


def ipo(c, r, rc, rr, *, beta):
    return ((c - r) - (rc - rr) - 0.5 / beta) ** 2


def kl(p, q):
    return sum(a * math.log(a / b) for a, b in zip(p, q, strict=True))


def _guarded(name, z):
    """The activations of the learned class, ε = 1e-3 and straight lines beyond 4."""
    pos = max(z, 0.0)
    if name == "identity":
        return z
    if name == "square":
        return pos**2 if pos <= 4 else 16 + 8 * (pos - 4)
    if name == "cube":
        if abs(z) <= 4:
            return z**3
        return math.copysign(64 + 48 * (abs(z) - 4), z)
    if name == "square_root":
        return (pos + 1e-3) ** 0.5 - 1e-3**0.5
    if name == "cube_root":
        return (pos + 1e-3) ** (1 / 3) - 1e-3 ** (1 / 3)
    if name == "log":
        return math.log(pos + 1e-3)
    if name == "exp":
        return math.exp(z) if z <= 4 else math.exp(4) * (z - 3)
    if name == "tanh":
        return math.tanh(z)
    if name == "logit":
        p = min(max(z, 1e-3), 1 - 1e-3)
        return math.log(p) - math.log(1 - p)
    raise KeyError(name)


def monotone_network(names, theta, slope, offset, x, t=None):
    """Σ_j relu(θ_v) σ_j(relu(w₀ + θ_w)·x + θ_u·t + b₀ + θ_b), unit by unit.

    theta is flat: [v; w; b] or, with t, [v; w; b; u], each len(names)·units; slope and offset are
    lists of rows, one per activation.
    """
    units = len(slope[0])
    count = len(names) * units
    total = 0.0
    for k, name in enumerate(names):
        for i in range(units):
            j = k * units + i
            v = max(theta[j], 0.0)
            z = max(slope[k][i] + theta[count + j], 0.0) * x + offset[k][i] + theta[2 * count + j]
            if t is not None:
                z += theta[3 * count + j] * t
            total += v * _guarded(name, z)
    return total
