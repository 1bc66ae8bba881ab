"""Slow, plain float64 twins of the formulas, in python's own mathematics; nothing of ours is used.

Every function takes and returns python floats: one pair at a time. A loss that depends on the rest
of the batch takes lists and returns a list. A twin of a loss has the loss's name and takes its
arguments in the same order; c and r are the chosen and the rejected response's log-probabilities,
rc and rr the reference's, nc and nr lengths.
"""

import math
from statistics import fmean, stdev, variance


def log_sigmoid(x):
    return -math.log1p(math.exp(-x)) if x >= 0 else x - math.log1p(math.exp(x))


def sigmoid(x):
    return 1 / (1 + math.exp(-x)) if x >= 0 else math.exp(x) / (1 + math.exp(x))


def log_odds(a):
    p = math.exp(a)
    return math.log(p / (1 - p))


def exp_then_line(x):
    """eˣ, and from 30 on its tangent there."""
    return math.exp(x) if x <= 30 else math.exp(30) * (1 + (x - 30))


def gaussian_logp(action, mean, std):
    return sum(
        math.log(math.exp(-((a - m) ** 2) / (2 * s**2)) / (s * math.sqrt(2 * math.pi)))
        for a, m, s in zip(action, mean, std, strict=True)
    )


# Losses without a reference.


def sft(c):
    return -c


def rrhf(c, r, *, sft_coef):
    return max(0.0, r - c) - sft_coef * c


def slic_hf(c, r, nc=1, nr=1, *, delta, sft_coef, reduction):
    if reduction == "mean":
        c, r = c / nc, r / nr
    return max(0.0, delta - c + r) - sft_coef * c


def lpo(c, r, nc=1, nr=1, *, sft_coef, reduction):
    if reduction == "mean":
        c, r = c / nc, r / nr
    return r - (1 + sft_coef) * c


def smoothed_logistic(x, label_smoothing):
    return -(1 - label_smoothing) * log_sigmoid(x) - label_smoothing * log_sigmoid(-x)


def cpo(c, r, c_mean, *, beta, sft_coef, label_smoothing):
    return smoothed_logistic(beta * (c - r), label_smoothing) - sft_coef * c_mean


def orpo(c, r, *, po_coef):
    return -c - po_coef * log_sigmoid(log_odds(c) - log_odds(r))


def simpo(c, r, *, beta, target_margin, sft_coef, label_smoothing):
    return smoothed_logistic(beta * (c - r) - target_margin, label_smoothing) - sft_coef * c


def alpha_po(c, r, *, beta, alpha, target_margin):
    def reward(a):
        return (1 - exp_then_line(-alpha * a)) / alpha

    return -log_sigmoid(beta * (reward(c) - reward(r)) - target_margin)


def colpo(c, r, *, po_coef, delta, threshold):
    goal = delta if c > threshold else 0.0
    return -c + po_coef * max(0.0, goal - (c - r))


def closed_form(
    c,
    r,
    *,
    sft_coef,
    sigmoid_coef,
    beta,
    target_margin,
    linear_coef,
    softplus_coef,
    sharpness,
    threshold,
):
    fading = sigmoid_coef * log_sigmoid(beta * (c - r) - target_margin)
    z = sharpness * (c - r - threshold)
    growing = softplus_coef * (max(z, 0.0) + math.log1p(math.exp(-abs(z)))) / sharpness
    return -(sft_coef * c + fading + linear_coef * (c - r) + growing)


# The logistic loss of the reference-adjusted margin, and its modifications.


def margin(c, r, rc, rr):
    return (c - rc) - (r - rr)


def logistic(c, r, rc, rr, *, beta, ref_coef, margin, scale, label, weight):
    z = scale * (beta * ((c - r) - ref_coef * (rc - rr)) - margin)
    return weight * (-label * log_sigmoid(z) - (1 - label) * log_sigmoid(-z))


def dpo(c, r, rc, rr, *, beta, label_smoothing):
    x = beta * margin(c, r, rc, rr)
    return -(1 - label_smoothing) * log_sigmoid(x) - label_smoothing * log_sigmoid(-x)


def robust_dpo(c, r, rc, rr, *, beta, label_smoothing):
    x = beta * margin(c, r, rc, rr)
    kept = -(1 - label_smoothing) * log_sigmoid(x)
    flipped = -label_smoothing * log_sigmoid(-x)
    return (kept - flipped) / (1 - 2 * label_smoothing)


def r_dpo(c, r, rc, rr, nc, nr, *, beta, alpha):
    return -log_sigmoid(beta * margin(c, r, rc, rr) + alpha * (nc - nr))


def dpo_norm(c, r, rc, rr, *, beta, label_smoothing):
    return dpo(c, r, rc, rr, beta=beta, label_smoothing=label_smoothing)


def rpo(c, r, rc, rr, c_mean, *, beta, sft_coef):
    return -log_sigmoid(beta * margin(c, r, rc, rr)) - sft_coef * c_mean


def dpo_gamma(c, r, rc, rr, *, beta, ref_coef):
    return -log_sigmoid(beta * (c - r) - beta * ref_coef * (rc - rr))


def dpo_positive_reference(c, r, rc, rr, *, beta):
    return -log_sigmoid(beta * (c - r - max(0.0, rc - rr)))


def soft_label_dpo(c, r, rc, rr, p, *, beta):
    x = beta * margin(c, r, rc, rr)
    return -p * log_sigmoid(x) - (1 - p) * log_sigmoid(-x)


def margin_dpo(c, r, rc, rr, score_c, score_r, *, beta, margin_coef):
    return -log_sigmoid(beta * margin(c, r, rc, rr) - margin_coef * (score_c - score_r))


def smpo(c, r, rc, rr, p, *, beta, scale):
    return -log_sigmoid(scale * (2 * p - 1) * beta * margin(c, r, rc, rr))


def madpo_weight(judge, *, max_coef, min_coef, sharpness, tau):
    if judge <= -tau:
        return 1.0
    odds = (max_coef - 1) / (1 - min_coef) * math.exp(sharpness * (abs(judge) - tau))
    coef = min_coef + (max_coef - min_coef) / (1 + odds)
    return sigmoid(coef * judge) / sigmoid(judge)


def madpo(c, r, rc, rr, score_c, score_r, *, beta, eta, max_coef, min_coef, sharpness, tau):
    weight = madpo_weight(
        (score_c - score_r) / eta,
        max_coef=max_coef,
        min_coef=min_coef,
        sharpness=sharpness,
        tau=tau,
    )
    return -weight * log_sigmoid(beta * margin(c, r, rc, rr))


def modpo(c, r, rc, rr, score_c, score_r, *, beta, po_coef, reward_coef):
    """Scores and ``reward_coef`` are floats, or lists of the same length."""
    if not isinstance(score_c, list):
        score_c, score_r, reward_coef = [score_c], [score_r], [reward_coef]
    m = sum(w * (a - b) for w, a, b in zip(reward_coef, score_c, score_r, strict=True))
    return -log_sigmoid((beta * margin(c, r, rc, rr) - m) / po_coef)


def vpo_offline(c, r, rc, rr, *, beta, alpha):
    return -log_sigmoid(beta * margin(c, r, rc, rr)) - alpha * beta * (c - rc)


def vpo_online(c, r, rc, rr, drawn, *, beta, alpha):
    return -log_sigmoid(beta * margin(c, r, rc, rr)) + alpha * beta * sum(drawn) / len(drawn)


def hypo_held(c, r, rc, rr, own, ref_own, **hyper):
    h, weights = [a - b for a, b in zip(own, ref_own, strict=True)], []
    for i, ratio in enumerate(h):
        others = h[:i] + h[i + 1 :]
        weights.append(ratio - sum(others) / len(others))
    return weights


def hypo(c, r, rc, rr, own, ref_own, *, held=None, beta, kl_coef):
    weights = hypo_held(c, r, rc, rr, own, ref_own) if held is None else held
    term = math.fsum(w * logp for w, logp in zip(weights, own, strict=True)) / len(own)
    return -log_sigmoid(beta * margin(c, r, rc, rr)) + kl_coef * term


# Other functions of the implicit rewards.


def ipo(c, r, rc, rr, nc=1, nr=1, *, beta, reduction):
    hc, hr = c - rc, r - rr
    if reduction == "mean":
        hc, hr = hc / nc, hr / nr
    return (hc - hr - 0.5 / beta) ** 2


def hinge_dpo(c, r, rc, rr, *, beta):
    return max(0.0, 1 - beta * margin(c, r, rc, rr))


def exo_pair(c, r, rc, rr, *, beta, label_smoothing):
    x = beta * margin(c, r, rc, rr)
    right = sigmoid(x) * (log_sigmoid(x) - math.log(1 - label_smoothing))
    wrong = sigmoid(-x) * (log_sigmoid(-x) - math.log(label_smoothing))
    return right + wrong


def nca_pair(c, r, rc, rr, *, beta):
    hc, hr = beta * (c - rc), beta * (r - rr)
    return -log_sigmoid(hc) - 0.5 * log_sigmoid(-hc) - 0.5 * log_sigmoid(-hr)


def bco_pair(c, r, rc, rr, *, beta):
    return -log_sigmoid(beta * (c - rc)) - log_sigmoid(-beta * (r - rr))


def sppo_hard(c, r, rc, rr, *, beta):
    goal = 1 / (2 * beta)
    return (c - rc - goal) ** 2 + (r - rr + goal) ** 2


def apo_zero(c, r, rc, rr, *, beta):
    return sigmoid(-beta * (c - rc)) + sigmoid(beta * (r - rr))


def apo_down(c, r, rc, rr, *, beta):
    return sigmoid(beta * (c - rc)) + sigmoid(-beta * margin(c, r, rc, rr))


def f_dpo(c, r, rc, rr, *, beta, divergence, alpha):
    """f'(u) at u = eʰ for f(u) = u log u, −log u, Jensen–Shannon's, and the α-divergence's."""

    def slope(h):
        if divergence == "reverse_kl":
            return h
        if divergence == "forward_kl":
            return 1 - exp_then_line(-h)
        if divergence == "js":
            return math.log(2) + log_sigmoid(h)
        if divergence == "chi_squared":
            return exp_then_line(h) + h
        return (1 - exp_then_line(-alpha * h)) / alpha

    return -log_sigmoid(beta * (slope(c - rc) - slope(r - rr)))


# Losses that treat the two responses, or two kinds of pairs, differently.


def cpl(c, r, nc=1, nr=1, *, beta, rejected_coef, reduction):
    if reduction == "mean":
        c, r = c / nc, r / nr
    return -log_sigmoid(beta * c - beta * rejected_coef * r)


def dpo_shift(c, r, rc, rr, *, beta, rejected_coef):
    return -log_sigmoid(beta * (c - rc) - beta * rejected_coef * (r - rr))


def dpop(c, r, rc, rr, *, beta, penalty_coef):
    return -log_sigmoid(beta * (margin(c, r, rc, rr) - penalty_coef * max(0.0, rc - c)))


def minor_dpo(c, r, rc, rr, *, beta):
    return -log_sigmoid(beta * (c - rc - max(0.0, r - rr)))


def bpo_min(c, r, rc, rr, *, beta, balance):
    return -log_sigmoid(beta * min(c - rc, balance * (rr - r)))


def cal_dpo(c, r, rc, rr, *, beta, calibration_coef):
    regression = sppo_hard(c, r, rc, rr, beta=beta)
    return -log_sigmoid(margin(c, r, rc, rr)) + calibration_coef * regression


def c2_dpo(c, r, rc, rr, *, beta, constraint_coef):
    x = beta * margin(c, r, rc, rr)
    return -log_sigmoid(x) + constraint_coef * (c - rc + r - rr) ** 2


def h_dpo(c, r, rc, rr, *, beta, alpha):
    return -log_sigmoid(beta * alpha * (c - r) - beta * (rc - rr))


def chi_po(c, r, rc, rr, *, beta, max_margin):
    chosen, rejected = (exp_then_line(h) + h for h in (c - rc, r - rr))
    return -log_sigmoid(min(max(beta * (chosen - rejected), -max_margin), max_margin))


def mix_dpo(c, r, rc, rr, c_mean, score_c, score_r, *, beta, threshold, sft_coef):
    if score_c - score_r > threshold:
        return -log_sigmoid(beta * margin(c, r, rc, rr))
    return -sft_coef * c_mean


# Other functions of the margin.


def gpo(c, r, rc, rr, *, beta, curve):
    x = beta * margin(c, r, rc, rr)
    if curve == "logistic":
        return -log_sigmoid(x)
    if curve == "savage":
        return math.exp(2 * log_sigmoid(-x))
    if curve == "exponential":
        return exp_then_line(-x)
    gap = 1 - x if curve == "squared" else max(0.0, 1 - x)
    return gap if curve == "hinge" else gap**2


def sym_po(c, r, rc, rr, *, beta, curve):
    x = beta * margin(c, r, rc, rr)
    if curve == "sigmoid":
        return sigmoid(-x)
    return 1 - x if curve == "unhinged" else min(max((1 - x) / 2, 0.0), 1.0)


def power_logarithm(x, k):
    return (exp_then_line(k * x) - 1) / k if k else x


def bregman_po(c, r, rc, rr, *, beta, power):
    """h'(R)·R − h(R) − h'(1/R) for Basu's h at R = e^{−x}, scaled, less what it is at R = 1."""
    x = beta * margin(c, r, rc, rr)
    return (power_logarithm(-x, power + 1) - power_logarithm(x, power)) / 4


def focal_po(c, r, rc, rr, *, beta, focus):
    logistic = log_sigmoid(beta * margin(c, r, rc, rr))
    return -math.exp(focus * logistic) * logistic


def offset_dpo(c, r, rc, rr, *, beta, target_margin):
    return -log_sigmoid(beta * margin(c, r, rc, rr) - target_margin)


# Losses found by language models.


def discopop(c, r, rc, rr, *, beta, tau):
    x = beta * margin(c, r, rc, rr)
    return sigmoid(-x / tau) * -log_sigmoid(x) + math.exp(log_sigmoid(x / tau) - x)


def padll(c, r, rc, rr, *, beta):
    d = margin(c, r, rc, rr)
    return 0.9 * (0.5 if d < 0 else 1.0) * -log_sigmoid(beta * d)


def cell(c, r, rc, rr, *, beta):
    x = beta * margin(c, r, rc, rr)
    return (exp_then_line(-x) - log_sigmoid(x)) / 2


def pfl(c, r, rc, rr, *, beta):
    x = beta * margin(c, r, rc, rr)
    return -log_sigmoid(x) / 2 if c > r else 2 * max(0.0, 1 - x)


# Losses of a whole batch: lists in, a list out.


def margins(c, r, rc, rr):
    return [margin(*pair) for pair in zip(c, r, rc, rr, strict=True)]


def aot(c, r, rc, rr, *, beta, label_smoothing):
    """The k-th value belongs to the k-th smallest margins."""
    policy = sorted(a - b for a, b in zip(c, r, strict=True))
    reference = sorted(a - b for a, b in zip(rc, rr, strict=True))
    return [
        smoothed_logistic(beta * (a - b), label_smoothing)
        for a, b in zip(policy, reference, strict=True)
    ]


def aot_unpaired(c, r, rc, rr, *, beta, label_smoothing):
    """The k-th value belongs to the k-th smallest log-ratios."""
    chosen = sorted(a - b for a, b in zip(c, rc, strict=True))
    rejected = sorted(a - b for a, b in zip(r, rr, strict=True))
    return [
        smoothed_logistic(beta * (a - b), label_smoothing)
        for a, b in zip(chosen, rejected, strict=True)
    ]


def _blend(x, weights):
    return [
        q * -log_sigmoid(v) + (1 - q) * max(0.0, 1 - v) for q, v in zip(weights, x, strict=True)
    ]


def aql(c, r, rc, rr, *, beta, tau):
    x = [beta * d for d in margins(c, r, rc, rr)]
    u = [v / tau for v in x]
    m = 0.5 + 0.01 * (sigmoid(fmean(u)) - 0.5)
    return _blend(x, [sigmoid(m - v) for v in u])


def aqfl(c, r, rc, rr, *, beta, tau):
    x = [beta * d for d in margins(c, r, rc, rr)]
    u = [v / tau for v in x]
    m = (stdev(u) if len(u) > 1 else 0.0) * fmean(sigmoid(-v) for v in u)
    m += 0.05 * (sigmoid(fmean(u)) - m)
    return _blend(x, [sigmoid(0.1 * abs(v - m)) for v in u])


def dbaql(c, r, rc, rr, *, beta, tau):
    x = [beta * d for d in margins(c, r, rc, rr)]
    spread = variance([v / tau for v in x]) if len(x) > 1 else 0.0
    return [
        sigmoid(spread) * -log_sigmoid(v / 0.9) + sigmoid(-spread) * exp_then_line(-0.9 * v)
        for v in x
    ]


def dr_dpo(c, r, rc, rr, *, beta, temperature):
    scaled = [log_sigmoid(beta * d) / temperature for d in margins(c, r, rc, rr)]
    top = max(scaled)
    mean = fmean(math.exp(a - top) for a in scaled)
    return [-temperature * (top + math.log(mean))] * len(scaled)


def kto_pair(c, r, rc, rr, *, beta):
    chosen = [a - b for a, b in zip(c, rc, strict=True)]
    rejected = [a - b for a, b in zip(r, rr, strict=True)]
    high, low = max(0.0, fmean(chosen)), max(0.0, fmean(rejected))
    pairs = zip(chosen, rejected, strict=True)
    return [(sigmoid(beta * (low - a)) + sigmoid(beta * (b - high))) / 2 for a, b in pairs]


def beta_dpo_held(c, r, rc, rr, *, beta, alpha, baseline):
    return max(1e-3, beta * (1 + alpha * (fmean(margins(c, r, rc, rr)) - baseline)))


def beta_dpo(c, r, rc, rr, *, held=None, **hyper):
    used = beta_dpo_held(c, r, rc, rr, **hyper) if held is None else held
    return [-log_sigmoid(used * d) for d in margins(c, r, rc, rr)]


def alpha_dpo_held(c, r, rc, rr, *, beta, alpha, target_margin):
    gaps = margins(c, r, rc, rr)
    mean, spread = fmean(gaps), stdev(gaps) if len(gaps) > 1 else 0.0
    return [target_margin + alpha * beta * ((d - mean) / spread if spread else 0.0) for d in gaps]


def alpha_dpo(c, r, rc, rr, *, held=None, **hyper):
    asked = alpha_dpo_held(c, r, rc, rr, **hyper) if held is None else held
    pairs = zip(c, r, asked, strict=True)
    return [-log_sigmoid(hyper["beta"] * (a - b) - m) for a, b, m in pairs]


# Single responses: y is the policy's log-probability, ry the reference's.


def labelled(y, ry, desirable, beta, desirable_coef, undesirable_coef):
    for a, b, good in zip(y, ry, desirable, strict=True):
        yield (
            (beta * (a - b), 1, desirable_coef) if good else (beta * (a - b), -1, undesirable_coef)
        )


def kto(y, ry, desirable, my=None, mry=None, *, beta, **coefs):
    moved = (y, ry) if my is None else (my, mry)
    z = beta * max(0.0, fmean(a - b for a, b in zip(*moved, strict=True)))
    rows = labelled(y, ry, desirable, beta, **coefs)
    return [weight * (1 - sigmoid(sign * (reward - z))) for reward, sign, weight in rows]


def bco_unpaired_held(y, ry, desirable, *, beta, **coefs):
    return beta * fmean(a - b for a, b in zip(y, ry, strict=True))


def bco_unpaired(y, ry, desirable, *, held=None, **hyper):
    shift = bco_unpaired_held(y, ry, desirable, **hyper) if held is None else held
    rows = labelled(y, ry, desirable, **hyper)
    return [-weight * log_sigmoid(sign * (reward - shift)) for reward, sign, weight in rows]


def apo_zero_unpaired(y, ry, desirable, **hyper):
    rows = labelled([y], [ry], [desirable], **hyper)
    return sum(weight * (1 - sigmoid(sign * reward)) for reward, sign, weight in rows)


# Losses of steps: lists instead of numbers; a mask says which count, n how many there are in all.


def wpo_held(c, r, rc, rr, c_mean, r_mean, cc=0.0, cr=0.0, **hyper):
    return math.exp(min(30.0, c_mean - cc + r_mean - cr))


def wpo(c, r, rc, rr, c_mean, r_mean, cc=0.0, cr=0.0, *, held=None, beta, label_smoothing):
    weight = wpo_held(c, r, rc, rr, c_mean, r_mean, cc, cr) if held is None else held
    return weight * smoothed_logistic(beta * margin(c, r, rc, rr), label_smoothing)


def samdpo(c, r, rc, rr, nc, nr, *, beta):
    return -log_sigmoid(beta * min(nc, nr) * ((c - rc) / nc - (r - rr) / nr))


def counted(values, mask):
    return [value for value, counts in zip(values, mask, strict=True) if counts]


def ratios(logps, ref, mask):
    return counted([a - b for a, b in zip(logps, ref, strict=True)], mask)


def total(values, n):
    return math.fsum(values) * n / len(values)


def spo_silu(c, r, rc, rr, *, beta):
    x = beta * margin(c, r, rc, rr)
    return -x * sigmoid(-x)


def cpo_ipo(c, r, *, beta, sft_coef):
    return (c - r - 1 / (2 * beta)) ** 2 - sft_coef * c


def tpo(
    c, r, gold, nc=1, nr=1, *, beta, sft_coef, target_margin, label_smoothing, curve, reduction
):
    if reduction == "mean":
        c, r = c / nc, r / nr
    z = beta * (c - r) - target_margin
    if curve == "hinge":
        return max(0.0, 1 - z) - sft_coef * gold
    if curve == "squared":
        return (c - r - target_margin / beta - 1 / (2 * beta)) ** 2 - sft_coef * gold
    return smoothed_logistic(z, label_smoothing) - sft_coef * gold


def scores(y, ref, beta):
    return [beta * (a - b) for a, b in zip(y, ref, strict=True)]


def plackett_luce(y, ref, *, beta):
    s, loss = scores(y, ref, beta), 0.0
    for k in range(len(s) - 1):
        top = max(s[k:])
        loss += top + math.log(math.fsum(math.exp(x - top) for x in s[k:])) - s[k]
    return loss


def self_po(y, ref, *, beta):
    s = scores(y, ref, beta)
    return -math.fsum(log_sigmoid(a - b) for i, a in enumerate(s) for b in s[i + 1 :])


def lambda_po(y, ref, *, beta):
    s = scores(y, ref, beta)
    n = len(s)
    gain = [2 ** ((n - 1 - i) / (n - 1)) - 1 for i in range(n)]
    order = sorted(range(n), key=lambda i: -s[i])
    discount = [1 / math.log(2 + order.index(i)) for i in range(n)]
    pairs = [(i, j) for i in range(n) for j in range(i + 1, n)]
    weights = [abs(gain[i] - gain[j]) * abs(discount[i] - discount[j]) for i, j in pairs]
    mean = fmean(weights)
    rows = zip(pairs, weights, strict=True)
    return -math.fsum(w / mean * log_sigmoid(s[i] - s[j]) for (i, j), w in rows)


def ld_dpo(c, r, rc, rr, mc, mr, nc, nr, *, beta, excess_coef):
    sums = []
    for y, ref, mask, n in ((c, rc, mc, nc), (r, rr, mr, nr)):
        h = ratios(y, ref, mask)
        late = [(k + 0.5) * n / len(h) > min(nc, nr) for k in range(len(h))]
        sums.append(
            total([excess_coef * x if far else x for x, far in zip(h, late, strict=True)], n)
        )
    return -log_sigmoid(beta * (sums[0] - sums[1]))


def bvpo(c, r, rc, rr, mc, mr, nc, nr, *, beta, mix, window):
    whole, part = [], []
    for y, ref, mask, n in ((c, rc, mc, nc), (r, rr, mr, nr)):
        h = ratios(y, ref, mask)
        whole.append(total(h, n))
        inside = [(k + 0.5) / len(h) > 1 - window for k in range(len(h))]
        part.append(total([x if i else 0.0 for x, i in zip(h, inside, strict=True)], n))
    full, end = (log_sigmoid(beta * (a - b)) for a, b in (whole, part))
    return -mix * full - (1 - mix) * end


def tdpo(c, r, rc, rr, kc, kr, mc, mr, nc, nr, *, beta, alpha, variant):
    u = total(ratios(c, rc, mc), nc) - total(ratios(r, rr, mr), nr)
    delta = total(counted(kr, mr), nr) - total(counted(kc, mc), nc)
    return -log_sigmoid(beta * (u - (1.0 if variant == "tdpo1" else alpha) * delta))


def tb_po(c, r, rc, rr, kc, kr, mc, mr, nc, nr, *, beta):
    columns = zip(c, rc, kc, mc, r, rr, kr, mr, strict=True)
    return fmean(
        -log_sigmoid(beta * ((a - ra + ka) - (b - rb + kb)))
        for a, ra, ka, ma, b, rb, kb, mb in columns
        if ma and mb
    )


def sparse_po(c, r, rc, rr, kc, kr, wc, wr, mc, mr, nc, nr, *, beta, sparsity_coef):
    sums = []
    norm = total(counted(wc, mc), nc) + total(counted(wr, mr), nr)
    for y, ref, kl, weights, mask, n in ((c, rc, kc, wc, mc, nc), (r, rr, kr, wr, mr, nr)):
        h = zip(weights, y, ref, kl, strict=True)
        sums.append(total(counted([w * (a - b + k) for w, a, b, k in h], mask), n))
    return -log_sigmoid(beta * (sums[0] - sums[1])) + sparsity_coef * norm


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
