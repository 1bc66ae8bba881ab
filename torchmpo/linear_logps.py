"""Token log-probabilities straight from hidden states and the LM head, never holding the logits.

At 2 × 1024 tokens and a vocabulary of 131 072 the logits alone take 1 GiB in float32, and the dense
path, backward included, three times that. Here a tile of logits (some vocabulary rows × some
tokens) is made, folded into a running log-sum-exp, and overwritten by the next.
"""

import math
from collections.abc import Callable, Iterator
from typing import cast

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable

# A tile of 4096 vocabulary rows by 2048 tokens (32 MiB in float32) runs at the speed of the one big
# matrix product; tiles half as wide or half as tall lose a few per cent of it on a CPU.
TILE_ROWS = 4096
TILE_NUMBERS = 2**23


def linear_logps(
    hidden: Tensor,
    weight: Tensor,
    labels: Tensor,
    *,
    bias: Tensor | None = None,
    logit_softcap: float | None = None,
    ignore_index: int = -100,
    chunk_size: int | None = None,
) -> Tensor:
    """Log-probability of each label under the softmax of ``hidden @ weight.T``.

    z = W h + b,    z ← c·tanh(z / c) with soft-capping,    log p = z_y − log Σ_v exp(z_v)

    Only positions whose label is not ``ignore_index`` are computed: set the prompt's and the
    padding's labels to it, and only the completion costs anything. A sequence's log-probability is
    ``logps.sum(-1)``, its mean that over ``(labels != ignore_index).sum(-1)``.

    Products are summed in float32 (float64 if a factor is float64), whatever the inputs' dtype, and
    log-probabilities stay in it. Inputs of different dtypes are promoted. Under autocast, hidden
    states and weight are rounded to its dtype, as ``F.linear`` would, and nothing else is.

    With a frozen head (neither ``weight`` nor ``bias`` requires grad) the forward pass also makes
    each token's gradient direction, ``[tokens, hidden_size]``, since all that comes from upstream
    is one factor per token: the backward pass multiplies, and nothing is computed twice. With a
    trainable head the backward pass makes the logits again, tile by tile. Differentiable once.

    The positions are counted on the host, so on a CUDA device this waits for the stream; the
    labels' range is checked while it does. ``torch.compile`` breaks the graph here.

    Args:
        hidden: ``[..., hidden_size]``, the input of the LM head; at least one leading dimension.
        weight: ``[vocab, hidden_size]``, the LM head's weight. Rows beyond the tokenizer's
            vocabulary count in the softmax, as they do in the model.
        labels: ``[...]``, integers in [0, vocab) or ``ignore_index``, already shifted:
            ``labels[..., t]`` is the token that ``hidden[..., t]`` predicts. From a model's outputs
            take ``hidden[:, :-1]`` and ``input_ids[:, 1:]``.
        bias: ``[vocab]`` or None.
        logit_softcap: c > 0 (30 for Gemma 2), or None for none.
        ignore_index: the label of the positions to skip.
        chunk_size: tokens per tile, ≥ 1. None takes what fills a tile of 32 MiB in float32: 2048
            tokens for vocabularies of 4096 and more. Working memory is about one tile (two with
            soft-capping) and 3 × tokens × hidden_size numbers; off CUDA, low-precision weights are
            widened 4096 rows at a time besides.

    Returns:
        ``[...]``, ≤ 0, nats, 0 at ignored positions; float32, or float64 if ``hidden`` or
        ``weight`` is.

    Raises:
        ValueError: shapes do not match, labels that are not integers or out of range,
            ``logit_softcap`` or ``chunk_size`` not positive.

    Source: the running log-sum-exp is Milakov and Gimelshein, *Online normalizer calculation for
    softmax*, arXiv:1805.02867, algorithm 3; soft-capping is Gemma 2, arXiv:2408.00118, section 2.

    >>> hidden, weight = torch.zeros(2, 3, 8), torch.zeros(4, 8)
    >>> linear_logps(hidden, weight, torch.tensor([[-100, 0, 3], [-100, 2, -100]]))
    tensor([[ 0.0000, -1.3863, -1.3863],
            [ 0.0000, -1.3863,  0.0000]])
    """
    if torch.compiler.is_compiling():
        # Traced, the loops over tiles would be unrolled and the tiles kept apart in memory.
        options = {"bias": bias, "logit_softcap": logit_softcap, "ignore_index": ignore_index}
        eager = cast(Callable[..., Tensor], torch.compiler.disable(linear_logps))
        return eager(hidden, weight, labels, **options, chunk_size=chunk_size)
    _check(hidden, weight, labels, bias, logit_softcap, chunk_size)
    labels = labels.long()  # an unsigned dtype would take -100 for 156
    kept = (labels != ignore_index).nonzero(as_tuple=True)
    targets = labels[kept]
    if len(targets):
        lowest, highest = torch.stack(targets.aminmax()).tolist()
        if lowest < 0 or highest >= len(weight):
            raise ValueError(
                f"labels must lie in [0, {len(weight)}) or be ignore_index={ignore_index}, "
                f"but one is {lowest if lowest < 0 else highest}"
            )
    head = _Head(hidden, weight, logit_softcap, chunk_size, len(targets))
    # Inside the Function grad mode is off, and needs_input_grad says yes even under no_grad.
    recording = torch.is_grad_enabled()
    return _LinearLogps.apply(hidden, weight, bias, labels, kept, head, recording)


def _check(hidden, weight, labels, bias, logit_softcap, chunk_size):
    def shape(tensor):
        return list(tensor.shape)

    for name, tensor in (("hidden", hidden), ("weight", weight), ("labels", labels)):
        if not isinstance(tensor, Tensor):
            raise ValueError(f"{name} must be a tensor; got a {type(tensor).__name__}")
    for name, tensor in (("hidden", hidden), ("weight", weight), ("bias", bias)):
        if tensor is not None and not tensor.is_floating_point():
            raise ValueError(f"{name} must be floating point, but its dtype is {tensor.dtype}")
    if labels.is_floating_point() or labels.is_complex() or labels.dtype == torch.bool:
        raise ValueError(f"labels must be integers, but their dtype is {labels.dtype}")
    if labels.ndim < 1 or hidden.shape[:-1] != labels.shape:
        raise ValueError(
            "hidden must be [..., hidden_size] and labels [...], with at least one dimension, "
            f"but their shapes are {shape(hidden)} and {shape(labels)}"
        )
    if weight.ndim != 2 or weight.shape[1] != hidden.shape[-1]:
        raise ValueError(
            f"weight must be [vocab, hidden_size] with hidden_size {hidden.shape[-1]} as in "
            f"hidden, but its shape is {shape(weight)}"
        )
    if bias is not None and bias.shape != weight.shape[:1]:
        raise ValueError(f"bias must be [{len(weight)}], but its shape is {shape(bias)}")
    if logit_softcap is not None and not 0 < logit_softcap < math.inf:
        raise ValueError(f"logit_softcap must be positive and finite, but it is {logit_softcap}")
    if chunk_size is not None and not (isinstance(chunk_size, int) and chunk_size >= 1):
        raise ValueError(f"chunk_size must be at least 1, but it is {chunk_size!r}")


def _add_product(total: Tensor, a: Tensor, b: Tensor, *, keep: bool = True) -> None:
    """total ← total + a @ b (or a @ b alone), summed in ``total``'s dtype.

    Written into ``total``, so autocast leaves it alone.
    """
    beta = 1 if keep else 0
    if a.dtype == total.dtype:
        torch.addmm(total, a, b, beta=beta, out=total)
    else:
        torch.addmm(total, a, b, out_dtype=total.dtype, beta=beta, out=total)


def _unrounded(device: torch.device) -> bool:
    """Whether products of bfloat16 and float16 factors can be had in float32."""
    return device.type == "cuda" and torch.version.hip is None


class _Head:
    """The LM head in tiles: dtypes, sizes, and one tile of logits at a time."""

    def __init__(self, hidden, weight, softcap, chunk_size, tokens):
        dtype = torch.promote_types(hidden.dtype, weight.dtype)
        device = hidden.device.type
        if torch.is_autocast_enabled(device) and dtype != torch.float64:
            dtype = torch.get_autocast_dtype(device)
        self.rounded = dtype  # what the factors are rounded to
        self.wide = torch.float64 if dtype == torch.float64 else torch.float32  # and summed in,
        self.factor = dtype if _unrounded(hidden.device) else self.wide  # and multiplied as
        self.softcap = softcap
        self.rows = min(len(weight), TILE_ROWS)
        size = chunk_size or max(1, TILE_NUMBERS // max(1, self.rows))
        self.chunks = [slice(i, min(i + size, tokens)) for i in range(0, tokens, size)]
        self.numbers = min(size, tokens) * self.rows

    def factors(self, tensor: Tensor) -> Tensor:
        return tensor.to(self.rounded).to(self.factor)

    def tiles(self, weight: Tensor) -> Iterator[tuple[slice, Tensor]]:
        """Vocabulary rows and their weights ``[rows, hidden_size]``, each converted once."""
        for start in range(0, len(weight), self.rows):
            rows = slice(start, min(start + self.rows, len(weight)))
            yield rows, self.factors(weight[rows])

    def logits(self, buffer: Tensor, states: Tensor, tile: Tensor, bias: Tensor | None) -> Tensor:
        """``[tokens, rows]`` in the memory of ``buffer``."""
        z = buffer[: len(states) * len(tile)].view(len(states), len(tile))
        _add_product(z, states, tile.T, keep=False)
        if bias is not None:
            z += bias
        if self.softcap is not None:
            z.div_(self.softcap).tanh_().mul_(self.softcap)
        return z

    def slope(self, z: Tensor) -> Tensor | None:
        """Derivative of the capped logits ``z`` with respect to the raw ones; None if it is 1."""
        return None if self.softcap is None else (z / self.softcap).square_().neg_().add_(1)


def _columns(targets: Tensor, rows: slice) -> tuple[Tensor, Tensor]:
    """Each target's column in the tile of these rows, 0 without one, and whether it has one."""
    at = targets - rows.start
    inside = (at >= 0) & (at < rows.stop - rows.start)
    return torch.where(inside, at, 0)[:, None], inside[:, None]


class _LinearLogps(torch.autograd.Function):
    @staticmethod
    def forward(ctx, hidden, weight, bias, labels, kept, head, recording):
        needs_hidden, needs_weight, needs_bias = ctx.needs_input_grad[:3]
        trainable = recording and (needs_weight or needs_bias)
        targets, states = labels[kept], head.factors(hidden[kept])
        # −∞ would make NaN of a tile of which a bias of −∞ forbids every row.
        peak = states.new_full((len(states), 1), torch.finfo(head.wide).min, dtype=head.wide)
        total, own = torch.zeros_like(peak), torch.zeros_like(peak)
        direction = None
        if recording and needs_hidden and not trainable:
            direction = states.new_zeros(states.shape, dtype=head.wide)
        buffer = states.new_empty(head.numbers, dtype=head.wide)
        for rows, tile in head.tiles(weight):
            for chunk in head.chunks:
                z = head.logits(buffer, states[chunk], tile, None if bias is None else bias[rows])
                at, inside = _columns(targets[chunk], rows)
                own[chunk] = torch.where(inside, z.gather(1, at), own[chunk])
                new_peak = torch.maximum(peak[chunk], z.amax(1, keepdim=True))
                shrink = torch.exp(peak[chunk] - new_peak)
                peak[chunk] = new_peak
                slope = None if direction is None else head.slope(z)
                z.sub_(new_peak).exp_()
                total[chunk] = total[chunk] * shrink + z.sum(1, keepdim=True)
                if direction is not None:
                    if slope is not None:
                        z *= slope
                    _add_product(direction[chunk].mul_(shrink), z.to(head.factor), tile)
        if direction is not None:
            # So far Σ_v exp(z_v − peak) s_v W_v, s the slopes: now s_y W_y − Σ_v p_v s_v W_v.
            direction /= -total
            slope = head.slope(own)
            for chunk in head.chunks:
                label_rows = head.factors(weight[targets[chunk]])
                direction[chunk] += label_rows if slope is None else slope[chunk] * label_rows
        ctx.head, ctx.trainable, ctx.like = head, trainable, (hidden.shape, hidden.dtype)
        if trainable:
            ctx.save_for_backward(*kept, hidden, weight, bias, targets, peak, total)
        else:
            ctx.save_for_backward(*kept, direction)
        logps = states.new_zeros(labels.shape, dtype=head.wide)
        logps[kept] = (own - peak - total.log()).squeeze(1)
        return logps

    @staticmethod
    @once_differentiable
    def backward(ctx, upstream):
        shape, dtype = ctx.like
        saved, dims = ctx.saved_tensors, len(shape) - 1
        kept, rest = saved[:dims], saved[dims:]
        upstream = upstream[kept][:, None]
        if ctx.trainable:
            hidden, *rest = rest
            needs = ctx.needs_input_grad[:3]
            direction, grad_weight, grad_bias = _recompute(
                ctx.head, needs, upstream, hidden[kept], *rest
            )
        else:
            direction, grad_weight, grad_bias = rest[0] * upstream, None, None
        grad_hidden = None
        if direction is not None:
            grad_hidden = upstream.new_zeros(shape, dtype=dtype)
            grad_hidden[kept] = direction.to(dtype)
        return grad_hidden, grad_weight, grad_bias, None, None, None, None


def _recompute(head, needs, upstream, states, weight, bias, targets, peak, total):
    """Gradients of Σ upstream · logps with respect to states, weight and bias, where needed.

    The vocabulary is the outer loop, so each row of the weight's gradient is summed over all tokens
    in a tile that stays in the cache, and is written once.
    """
    needs_states, needs_weight, needs_bias = needs
    states = head.factors(states)
    grad_states = states.new_zeros(states.shape, dtype=head.wide) if needs_states else None
    # Without a single token the loop writes nothing.
    new = torch.empty_like if len(states) else torch.zeros_like
    grad_weight = new(weight) if needs_weight else None
    grad_bias = upstream.new_zeros(len(weight)) if needs_bias else None
    scale = -upstream / total
    buffer = states.new_empty(head.numbers, dtype=head.wide)
    for rows, tile in head.tiles(weight):
        grad_tile = None if grad_weight is None else grad_weight[rows]
        if grad_tile is not None and head.wide != weight.dtype:
            grad_tile = new(grad_tile, dtype=head.wide)
        for chunk in head.chunks:
            z = head.logits(buffer, states[chunk], tile, None if bias is None else bias[rows])
            slope = head.slope(z)
            z.sub_(peak[chunk]).exp_().mul_(scale[chunk])
            at, inside = _columns(targets[chunk], rows)
            z.scatter_add_(1, at, torch.where(inside, upstream[chunk], 0))
            if slope is not None:
                z *= slope
            if grad_bias is not None:
                grad_bias[rows] += z.sum(0)
            factor = z.to(head.factor)
            if grad_states is not None:
                _add_product(grad_states[chunk], factor, tile)
            if grad_tile is not None:
                _add_product(grad_tile, factor.T, states[chunk], keep=chunk.start > 0)
        if grad_tile is not None and grad_weight is not None and head.wide != weight.dtype:
            grad_weight[rows] = grad_tile
    if grad_bias is not None and bias is not None:
        grad_bias = grad_bias.to(bias.dtype)
    return grad_states, grad_weight, grad_bias
