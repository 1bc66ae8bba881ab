"""Every loss of the library as one writes it into a training script, at its defaults.

The equation in plain PyTorch, as stable as ours, but without checks of shapes and hyper-parameters
and without keeping gradients from the reference. Arguments come in the order of the library's
function of the same name: c and r are the chosen and the rejected response's log-probabilities, rc
and rr the reference's, nc and nr lengths. `benchmarks/losses.py` times them.
"""

import math

import torch
from torch import relu, sigmoid
from torch.nn.functional import logsigmoid, softplus

# Of a margin.


def dpo(c, r, rc, rr, beta=0.1):
    return -logsigmoid(beta * ((c - rc) - (r - rr)))


def robust_dpo(c, r, rc, rr, beta=0.1, eps=0.0):
    x = beta * ((c - rc) - (r - rr))
    return (-(1 - eps) * logsigmoid(x) + eps * logsigmoid(-x)) / (1 - 2 * eps)


def r_dpo(c, r, rc, rr, nc, nr, beta=0.1, alpha=0.05):
    return -logsigmoid(beta * ((c - rc) - (r - rr)) - alpha * (nr - nc).to(c.dtype))


def dpo_norm(c, r, rc, rr, beta=5.0):
    return -logsigmoid(beta * ((c - rc) - (r - rr)))


def rpo(c, r, rc, rr, c_mean, beta=0.1, sft_coef=1.0):
    return -logsigmoid(beta * ((c - rc) - (r - rr))) - sft_coef * c_mean


def dpo_gamma(c, r, rc, rr, beta=0.1, ref_coef=1.0):
    return -logsigmoid(beta * ((c - r) - ref_coef * (rc - rr)))


def dpo_positive_reference(c, r, rc, rr, beta=0.1):
    return -logsigmoid(beta * ((c - r) - relu(rc - rr)))


def soft_label_dpo(c, r, rc, rr, p, beta=0.1):
    x = beta * ((c - rc) - (r - rr))
    return p * -logsigmoid(x) - (1 - p) * logsigmoid(-x)


def margin_dpo(c, r, rc, rr, reward_c, reward_r, beta=0.1, margin_coef=1.0):
    return -logsigmoid(beta * ((c - rc) - (r - rr)) - margin_coef * (reward_c - reward_r))


def smpo(c, r, rc, rr, p, beta=0.1, scale=1.0):
    return -logsigmoid(scale * (2 * p - 1) * beta * ((c - rc) - (r - rr)))


def madpo(c, r, rc, rr, reward_c, reward_r, beta=0.1, eta=1.0, most=2.0, least=0.5, k=1.0, tau=2.0):
    gap = (reward_c - reward_r) / eta
    clear = sigmoid(k * (gap.abs() - tau))
    ratio = (most - 1) / (1 - least)
    coef = least + (most - least) * (1 - clear) / (1 - clear + ratio * clear)
    gap = torch.where(gap > -tau, gap, 0.0)
    weight = torch.exp(logsigmoid(coef * gap) - logsigmoid(gap))
    return weight * -logsigmoid(beta * ((c - rc) - (r - rr)))


def modpo(c, r, rc, rr, reward_c, reward_r, beta=0.1, po_coef=0.5, reward_coef=0.5):
    x = beta * ((c - rc) - (r - rr)) - reward_coef * (reward_c - reward_r)
    return -logsigmoid(x / po_coef)


def vpo_offline(c, r, rc, rr, beta=0.1, alpha=0.1):
    return -logsigmoid(beta * ((c - rc) - (r - rr))) - alpha * beta * (c - rc)


def ipo(c, r, rc, rr, beta=0.1):
    return ((c - rc) - (r - rr) - 1 / (2 * beta)) ** 2


def hinge_dpo(c, r, rc, rr, beta=0.1):
    return relu(1 - beta * ((c - rc) - (r - rr)))


def offset_dpo(c, r, rc, rr, beta=0.1, target_margin=1.0):
    return -logsigmoid(beta * ((c - rc) - (r - rr)) - target_margin)


def gpo(c, r, rc, rr, beta=0.1):
    x = beta * ((c - rc) - (r - rr))
    return _exp_then_line(-x)


def sym_po(c, r, rc, rr, beta=0.1):
    x = beta * ((c - rc) - (r - rr))
    return sigmoid(-x)


def spo_silu(c, r, rc, rr, beta=0.1):
    x = beta * ((c - rc) - (r - rr))
    return -x * sigmoid(-x)


def focal_po(c, r, rc, rr, beta=0.1, focus=0.05):
    logp = logsigmoid(beta * ((c - rc) - (r - rr)))
    return -torch.exp(focus * logp) * logp


def _exp_then_line(x, limit=30.0):
    return torch.exp(x.clamp(max=limit)) * (1 + relu(x - limit))


def _expm1_then_line(x, limit=30.0):
    return torch.expm1(x.clamp(max=limit)) + math.exp(limit) * relu(x - limit)


def bregman_po(c, r, rc, rr, beta=0.1, power=0.5):
    x = beta * ((c - rc) - (r - rr))
    ratio = _expm1_then_line(-(power + 1) * x) / (power + 1)
    return (ratio - _expm1_then_line(power * x) / power) / 4


def discopop(c, r, rc, rr, beta=0.05, tau=0.05):
    x = beta * ((c - rc) - (r - rr))
    exponential = _exp_then_line(logsigmoid(x / tau) - x)
    return -sigmoid(-x / tau) * logsigmoid(x) + exponential


def padll(c, r, rc, rr, beta=0.1):
    x = beta * ((c - rc) - (r - rr))
    return -(0.9 - 0.45 * (x < 0)) * logsigmoid(x)


def cell(c, r, rc, rr, beta=0.1):
    x = beta * ((c - rc) - (r - rr))
    return -0.5 * logsigmoid(x) + 0.5 * _exp_then_line(-x)


def pfl(c, r, rc, rr, beta=0.1):
    x = beta * ((c - rc) - (r - rr))
    return torch.where(c > r, -0.5 * logsigmoid(x), 2 * relu(1 - x))


def wpo(c, r, rc, rr, c_mean, r_mean, beta=0.1):
    weight = torch.exp((c_mean.detach() + r_mean.detach()).clamp(max=30.0))
    return weight * -logsigmoid(beta * ((c - rc) - (r - rr)))


# Of both sides.


def exo_pair(c, r, rc, rr, beta=0.1, eps=1e-3):
    x = beta * ((c - rc) - (r - rr))
    right = sigmoid(x) * (logsigmoid(x) - math.log1p(-eps))
    return right + sigmoid(-x) * (logsigmoid(-x) - math.log(eps))


def nca_pair(c, r, rc, rr, beta=0.1):
    chosen, rejected = beta * (c - rc), beta * (r - rr)
    return -logsigmoid(chosen) - 0.5 * logsigmoid(-chosen) - 0.5 * logsigmoid(-rejected)


def bco_pair(c, r, rc, rr, beta=0.1):
    return -logsigmoid(beta * (c - rc)) - logsigmoid(-beta * (r - rr))


def sppo_hard(c, r, rc, rr, beta=0.1):
    return (c - rc - 1 / (2 * beta)) ** 2 + (r - rr + 1 / (2 * beta)) ** 2


def apo_zero(c, r, rc, rr, beta=0.1):
    return sigmoid(-beta * (c - rc)) + sigmoid(beta * (r - rr))


def apo_down(c, r, rc, rr, beta=0.1):
    chosen = c - rc
    return sigmoid(beta * chosen) + sigmoid(-beta * (chosen - (r - rr)))


def f_dpo(c, r, rc, rr, beta=0.1):
    return -logsigmoid(beta * ((c - rc) - (r - rr)))


def dpo_shift(c, r, rc, rr, beta=0.1, rejected_coef=0.75):
    return -logsigmoid(beta * ((c - rc) - rejected_coef * (r - rr)))


def dpop(c, r, rc, rr, beta=0.3, penalty_coef=50.0):
    return -logsigmoid(beta * ((c - rc) - (r - rr) - penalty_coef * relu(rc - c)))


def minor_dpo(c, r, rc, rr, beta=0.1):
    return -logsigmoid(beta * ((c - rc) - relu(r - rr)))


def bpo_min(c, r, rc, rr, beta=0.1, balance=0.3):
    return -logsigmoid(beta * torch.minimum(c - rc, -balance * (r - rr)))


def cal_dpo(c, r, rc, rr, beta=0.1):
    chosen, rejected = c - rc, r - rr
    calibration = (chosen - 1 / (2 * beta)) ** 2 + (rejected + 1 / (2 * beta)) ** 2
    return -logsigmoid(chosen - rejected) + calibration


def c2_dpo(c, r, rc, rr, beta=0.1, constraint_coef=2e-4):
    chosen, rejected = c - rc, r - rr
    return -logsigmoid(beta * (chosen - rejected)) + constraint_coef * (chosen + rejected) ** 2


def h_dpo(c, r, rc, rr, beta=0.1, alpha=0.95):
    return -logsigmoid(beta * ((alpha * c - rc) - (alpha * r - rr)))


def chi_po(c, r, rc, rr, beta=0.1, end=10.0):
    chosen, rejected = c - rc, r - rr
    phi = (_exp_then_line(chosen) + chosen) - (_exp_then_line(rejected) + rejected)
    return -logsigmoid((beta * phi).clamp(-end, end))


def mix_dpo(c, r, rc, rr, c_mean, reward_c, reward_r, beta=0.1, threshold=0.5):
    logistic = -logsigmoid(beta * ((c - rc) - (r - rr)))
    return torch.where(reward_c - reward_r > threshold, logistic, -c_mean)


# Without a reference.


def sft(c):
    return -c


def rrhf(c, r, sft_coef=1.0):
    return relu(r - c) - sft_coef * c


def slic_hf(c, r, delta=1.0, sft_coef=0.1):
    return relu(delta - (c - r)) - sft_coef * c


def lpo(c, r, sft_coef=0.1):
    return -(c - r) - sft_coef * c


def cpo(c, r, c_mean, beta=0.1, sft_coef=1.0):
    return -logsigmoid(beta * (c - r)) - sft_coef * c_mean


def cpo_ipo(c, r, beta=0.1, sft_coef=1.0):
    return (c - r - 1 / (2 * beta)) ** 2 - sft_coef * c


def cpl(c, r, beta=0.1, rejected_coef=0.5):
    return -logsigmoid(beta * (c - rejected_coef * r))


def orpo(c, r, po_coef=0.1):
    chosen, rejected = c.clamp(max=-1e-6), r.clamp(max=-1e-6)
    chosen = chosen - torch.log(-torch.expm1(chosen))
    rejected = rejected - torch.log(-torch.expm1(rejected))
    return -c - po_coef * logsigmoid(chosen - rejected)


def simpo(c, r, beta=2.0, target_margin=0.5):
    return -logsigmoid(beta * (c - r) - target_margin)


def alpha_po(c, r, beta=2.0, alpha=0.25, target_margin=0.5):
    margin = (_expm1_then_line(-alpha * r) - _expm1_then_line(-alpha * c)) / alpha
    return -logsigmoid(beta * margin - target_margin)


def colpo(c, r, po_coef=0.5, delta=10.0, threshold=-1.2):
    return -c + po_coef * relu(delta * (c > threshold) - (c - r))


def closed_form(
    c,
    r,
    sft_coef=1.0,
    po_coef=0.1,
    beta=1.0,
    gamma=0.0,
    linear=0.0,
    soft=0.0,
    sharpness=16.0,
    threshold=0.0,
):
    margin = c - r
    preference = -po_coef * logsigmoid(beta * margin - gamma) - linear * margin
    soft_term = soft * softplus(sharpness * (margin - threshold)) / sharpness
    return preference - sft_coef * c - soft_term


# Of a batch, which may be of one pair, or of equal ones.


def _variance(x):
    return (x - x.mean()).square().sum() / max(len(x) - 1, 1)


def _deviation(x):
    variance = _variance(x)
    varied = variance > 0
    return torch.where(varied, torch.where(varied, variance, 1.0).sqrt(), 0.0)


def aot(c, r, rc, rr, beta=0.1):
    return -logsigmoid(beta * (torch.sort(c - r).values - torch.sort(rc - rr).values))


def aot_unpaired(c, r, rc, rr, beta=0.1):
    return -logsigmoid(beta * (torch.sort(c - rc).values - torch.sort(r - rr).values))


def aql(c, r, rc, rr, beta=0.1, tau=0.05):
    x = beta * ((c - rc) - (r - rr))
    quantile = 0.5 + 0.01 * (sigmoid((x / tau).mean()) - 0.5)
    blend = sigmoid(quantile - x / tau)
    return -blend * logsigmoid(x) + (1 - blend) * relu(1 - x)


def aqfl(c, r, rc, rr, beta=0.1, tau=0.05):
    x = beta * ((c - rc) - (r - rr))
    y = x / tau
    quantile = _deviation(y) * sigmoid(-y).mean()
    quantile = quantile + 0.05 * (sigmoid(y.mean()) - quantile)
    blend = sigmoid(0.1 * (y - quantile).abs())
    return -blend * logsigmoid(x) + (1 - blend) * relu(1 - x)


def dbaql(c, r, rc, rr, beta=0.1, tau=0.05):
    x = beta * ((c - rc) - (r - rr))
    variance = _variance(x / tau)
    logistic = -sigmoid(variance) * logsigmoid(x / 0.9)
    return logistic + sigmoid(-variance) * _exp_then_line(-0.9 * x)


def dr_dpo(c, r, rc, rr, beta=0.1, temperature=1.0):
    u = logsigmoid(beta * ((c - rc) - (r - rr)))
    highest = u.detach().amax(0)
    below = torch.expm1((u - highest) / temperature).mean(0)
    return (-highest - temperature * torch.log1p(below)).expand_as(u)


def beta_dpo(c, r, rc, rr, beta=0.1, alpha=0.6):
    d = (c - rc) - (r - rr)
    return -logsigmoid((beta * (1 + alpha * d.detach().mean())).clamp(min=1e-3) * d)


def alpha_dpo(c, r, rc, rr, beta=2.5, alpha=0.2, target_margin=1.5):
    margin = c - r
    d = (margin - (rc - rr)).detach()
    spread = _deviation(d)
    varied = spread > 0
    m = torch.where(varied, (d - d.mean()) / torch.where(varied, spread, 1.0), 0.0)
    return -logsigmoid(beta * margin - target_margin - alpha * beta * m)


def kto_pair(c, r, rc, rr, beta=0.1):
    chosen, rejected = c - rc, r - rr
    good = sigmoid(-beta * (chosen - relu(rejected.mean())))
    return 0.5 * good + 0.5 * sigmoid(-beta * (relu(chosen.mean()) - rejected))


# Of single responses.


def kto(logps, ref, desirable, beta=0.1, desirable_coef=1.0, undesirable_coef=1.0):
    h = logps - ref
    baseline = relu(h.detach().mean())
    good = desirable_coef * sigmoid(-beta * (h - baseline))
    return torch.where(desirable, good, undesirable_coef * sigmoid(-beta * (baseline - h)))


def bco_unpaired(logps, ref, desirable, beta=0.1, desirable_coef=1.0, undesirable_coef=1.0):
    h = logps - ref
    x = beta * (h - h.detach().mean())
    good, bad = -desirable_coef * logsigmoid(x), -undesirable_coef * logsigmoid(-x)
    return torch.where(desirable, good, bad)


def apo_zero_unpaired(logps, ref, desirable, beta=0.1, desirable_coef=1.0, undesirable_coef=1.0):
    x = beta * (logps - ref)
    good, bad = desirable_coef * sigmoid(-x), undesirable_coef * sigmoid(x)
    return torch.where(desirable, good, bad)


# Of steps, some of which are a sample of the response.


def _scale(mask, n):
    return n / mask.sum(-1).clamp(min=1)  # of a response that was cut away, nothing counts


def _total(values, mask, n):
    return torch.where(mask, values, 0.0).sum(-1) * _scale(mask, n)


def samdpo(c, r, rc, rr, nc, nr, beta=0.1):
    return -logsigmoid(beta * torch.minimum(nc, nr) * ((c - rc) / nc - (r - rr) / nr))


def ld_dpo(c, r, rc, rr, mask_c, mask_r, nc, nr, beta=0.1, alpha=0.5):
    shared = torch.minimum(nc, nr)[:, None]
    sums = []
    for h, mask, n in ((c - rc, mask_c, nc), (r - rr, mask_r, nr)):
        place = (mask.cumsum(-1) - 0.5) * _scale(mask, n)[:, None]
        sums.append(_total(torch.where(place > shared, alpha * h, h), mask, n))
    return -logsigmoid(beta * (sums[0] - sums[1]))


def bvpo(c, r, rc, rr, mask_c, mask_r, nc, nr, beta=0.1, mix=0.5, window=0.25):
    whole, part = [], []
    for h, mask, n in ((c - rc, mask_c, nc), (r - rr, mask_r, nr)):
        place = (mask.cumsum(-1) - 0.5) * _scale(mask, n)[:, None]
        whole.append(_total(h, mask, n))
        inside = place > (1 - window) * n[:, None]
        part.append(_total(torch.where(inside, h, 0.0), mask, n))
    full = logsigmoid(beta * (whole[0] - whole[1]))
    return -mix * full - (1 - mix) * logsigmoid(beta * (part[0] - part[1]))


def tdpo(c, r, rc, rr, kl_c, kl_r, mask_c, mask_r, nc, nr, beta=0.1, alpha=0.5):
    margin = _total(c - rc, mask_c, nc) - _total(r - rr, mask_r, nr)
    kl = _total(kl_r, mask_r, nr) - _total(kl_c, mask_c, nc).detach()
    return -logsigmoid(beta * (margin - alpha * kl))


def sparse_po(c, r, rc, rr, kl_c, kl_r, w_c, w_r, mask_c, mask_r, nc, nr, beta=0.1):
    good = w_c * torch.where(mask_c, c - rc + kl_c, 0.0)
    bad = w_r * torch.where(mask_r, r - rr + kl_r, 0.0)
    return -logsigmoid(beta * (_total(good, mask_c, nc) - _total(bad, mask_r, nr)))


def tb_po(c, r, rc, rr, kl_c, kl_r, mask_c, mask_r, nc, nr, beta=0.1):
    both = mask_c & mask_r
    margin = torch.where(both, (c - rc + kl_c) - (r - rr + kl_r), 0.0)
    loss = torch.where(both, -logsigmoid(beta * margin), 0.0)
    return loss.sum(-1) / both.sum(-1).clamp(min=1)


# Of lists, and of a third response.


def plackett_luce(logps, ref, beta=0.1):
    s = beta * (logps - ref)
    left = torch.logcumsumexp(s.flip(-1), -1).flip(-1)
    return (left - s)[:, :-1].sum(-1)


def self_po(logps, ref, beta=0.1):
    s = beta * (logps - ref)
    difference = s[:, :, None] - s[:, None, :]
    before = torch.ones(s.shape[1], s.shape[1], dtype=torch.bool).triu(1)
    return torch.where(before, -logsigmoid(difference), 0.0).sum((-2, -1))


def lambda_po(logps, ref, beta=0.1):
    s = beta * (logps - ref)
    n = s.shape[1]
    difference = s[:, :, None] - s[:, None, :]
    before = torch.ones(n, n, dtype=torch.bool).triu(1)
    gain = torch.exp2((n - 1 - torch.arange(n)) / (n - 1)) - 1
    now = s.detach().argsort(dim=-1, descending=True, stable=True).argsort(-1)
    discount = 1 / torch.log(2.0 + now)
    weight = (gain[:, None] - gain).abs() * (discount[:, :, None] - discount[:, None, :]).abs()
    weight = torch.where(before, weight, 0.0)
    weight = weight * (n * (n - 1) / 2) / weight.sum((-2, -1), keepdim=True)
    return torch.where(before, weight * -logsigmoid(difference), 0.0).sum((-2, -1))


def tpo(c, r, gold_mean, beta=0.01, sft_coef=1.0, gamma=0.0):
    return -logsigmoid(beta * (c - r) - gamma) - sft_coef * gold_mean


def hypo(c, r, rc, rr, own, ref_own, beta=0.1, kl_coef=0.01):
    ratio = (own - ref_own).detach()
    n = own.shape[-1]
    others = (ratio.sum(-1, keepdim=True) - ratio) / (n - 1)
    kl = ((ratio - others) * own).mean(-1)
    return -logsigmoid(beta * ((c - rc) - (r - rr))) + kl_coef * kl


def vpo_online(c, r, rc, rr, drawn, beta=0.1, alpha=0.1):
    return -logsigmoid(beta * ((c - rc) - (r - rr))) + alpha * beta * drawn.mean(-1)


BY_HAND = {
    name: function
    for name, function in list(globals().items())
    if getattr(function, "__module__", "") == __name__ and not name.startswith("_")
}
