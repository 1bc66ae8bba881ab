import itertools

import pytest
import torch
import torch.nn.functional as F
from torch.utils._python_dispatch import TorchDispatchMode

import torchmpo.linear_logps as module
from torchmpo.linear_logps import linear_logps

PRODUCTS = ("mm", "addmm", "bmm", "addmm_", "matmul", "linear")


def dense(hidden, weight, labels, bias=None, softcap=None, ignore_index=-100):
    """All logits at once."""
    logits = F.linear(hidden, weight, bias)
    logits = logits.to(torch.promote_types(logits.dtype, torch.float32))
    if softcap is not None:
        logits = softcap * torch.tanh(logits / softcap)
    kept = labels != ignore_index
    at = torch.where(kept, labels, 0)[..., None]
    return torch.where(kept, logits.log_softmax(-1).gather(-1, at).squeeze(-1), 0)


def make(shape=(2, 9), vocab=50, size=8, dtype=torch.float64, scale=1.0, seed=0):
    """hidden, weight, labels (some ignored), bias, upstream gradient."""
    draw = torch.Generator().manual_seed(seed)
    hidden = torch.randn(*shape, size, generator=draw, dtype=torch.float64)
    weight = torch.randn(vocab, size, generator=draw, dtype=torch.float64) * scale
    bias = torch.randn(vocab, generator=draw, dtype=torch.float64)
    labels = torch.randint(vocab, shape, generator=draw)
    labels[torch.rand(shape, generator=draw) < 0.3] = -100
    upstream = torch.randn(shape, generator=draw, dtype=torch.float64)
    return hidden.to(dtype), weight.to(dtype), labels, bias.to(dtype), upstream


def gradients(output, inputs, upstream):
    inputs = [tensor for tensor in inputs if tensor is not None and tensor.requires_grad]
    return torch.autograd.grad(output, inputs, upstream.to(output.dtype)) if inputs else ()


class Operations(TorchDispatchMode):
    """Counts products and notes the largest tensor made."""

    def __init__(self):
        super().__init__()
        self.products, self.largest = 0, 0

    def __torch_dispatch__(self, function, types, args=(), kwargs=None):
        found = function(*args, **(kwargs or {}))
        self.products += function.overloadpacket.__name__ in PRODUCTS
        for tensor in found if isinstance(found, (tuple, list)) else [found]:
            if isinstance(tensor, torch.Tensor):
                self.largest = max(self.largest, tensor.numel())
        return found


@pytest.fixture
def small_tiles(monkeypatch):
    monkeypatch.setattr(module, "TILE_ROWS", 16)  # 50 rows: three tiles and a rest


@pytest.mark.parametrize("softcap", [None, 3.0])
@pytest.mark.parametrize("chunk_size", [None, 1, 4, 100])
def test_values_and_gradients_equal_the_dense_path(small_tiles, softcap, chunk_size):
    for trained in itertools.product([False, True], repeat=3):
        for with_bias in [True] if trained[2] else [False, True]:
            hidden, weight, labels, bias, upstream = make()
            bias = bias if with_bias else None
            for tensor, train in zip((hidden, weight, bias), trained):
                if tensor is not None:
                    tensor.requires_grad_(train)
            options = {"bias": bias, "logit_softcap": softcap, "chunk_size": chunk_size}
            ours = linear_logps(hidden, weight, labels, **options)
            expected = dense(hidden, weight, labels, bias, softcap)
            torch.testing.assert_close(ours, expected)
            assert ours.requires_grad == any(trained)
            found = gradients(ours, (hidden, weight, bias), upstream)
            wanted = gradients(expected, (hidden, weight, bias), upstream)
            torch.testing.assert_close(found, wanted)


@pytest.mark.parametrize("trainable", [False, True])
def test_float32_with_the_default_tiles(trainable):
    hidden, weight, labels, bias, upstream = make((2, 20), 9000, 32, torch.float32, 0.3)
    hidden.requires_grad_()
    weight.requires_grad_(trainable)
    ours = linear_logps(hidden, weight, labels, bias=bias)
    expected = dense(hidden, weight, labels, bias)
    assert ours.dtype == torch.float32
    torch.testing.assert_close(ours, expected)
    torch.testing.assert_close(
        gradients(ours, (hidden, weight), upstream),
        gradients(expected, (hidden, weight), upstream),
        rtol=1e-4,
        atol=1e-6,
    )


@pytest.mark.parametrize("trainable", [False, True])
@pytest.mark.parametrize("softcap", [None, 2.0])
def test_gradcheck(small_tiles, trainable, softcap):
    hidden, weight, labels, bias, _ = make((2, 4), 20, 3)
    inputs = [hidden.requires_grad_()]
    if trainable:
        inputs += [weight.requires_grad_(), bias.requires_grad_()]

    def function(*_):
        return linear_logps(hidden, weight, labels, bias=bias, logit_softcap=softcap, chunk_size=3)

    assert torch.autograd.gradcheck(function, inputs)


def emulate_unrounded_products(monkeypatch):
    """What CUDA does: low-precision factors stay so, and their product comes in float32."""

    def add_product(total, a, b, *, keep=True):
        assert a.dtype == b.dtype
        assert total.dtype == torch.float32
        total.addmm_(a.float(), b.float(), beta=1 if keep else 0)

    monkeypatch.setattr(module, "_unrounded", lambda device: True)
    monkeypatch.setattr(module, "_add_product", add_product)


@pytest.mark.parametrize("unrounded", [False, True])
@pytest.mark.parametrize("trainable", [False, True])
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_low_precision_is_nearer_the_truth_than_the_dense_path(
    monkeypatch, dtype, trainable, unrounded
):
    if unrounded:
        emulate_unrounded_products(monkeypatch)
    monkeypatch.setattr(module, "TILE_ROWS", 256)
    hidden, weight, labels, bias, upstream = make((40,), 1500, 64, dtype, 0.3)
    hidden.requires_grad_()
    weight.requires_grad_(trainable)
    bias.requires_grad_(trainable)
    inputs = hidden, weight, bias
    exact = [tensor.detach().double().requires_grad_(tensor.requires_grad) for tensor in inputs]
    truth = dense(*exact[:2], labels, exact[2])
    ours, rival = linear_logps(hidden, weight, labels, bias=bias), dense(*inputs[:2], labels, bias)
    assert ours.dtype == torch.float32

    def error(found, wanted):
        return (found.double() - wanted).norm() / wanted.norm()

    assert error(ours, truth) < 1e-6
    assert error(ours, truth) < error(rival, truth)
    for found, other, wanted in zip(
        gradients(ours, inputs, upstream),
        gradients(rival, inputs, upstream),
        gradients(truth, exact, upstream),
        strict=True,
    ):
        assert found.dtype == dtype
        assert error(found, wanted) <= error(other, wanted)


@pytest.mark.parametrize("trainable", [False, True])
@pytest.mark.parametrize("softcap", [None, 30.0])
def test_extreme_logits_stay_finite(small_tiles, trainable, softcap):
    weight = torch.linspace(-1e4, 1e4, 50)[:, None].requires_grad_(trainable)
    hidden = torch.tensor([[1.0], [-1.0], [1.0]], requires_grad=True)
    labels = torch.tensor([49, 49, 0])
    ours = linear_logps(hidden, weight, labels, logit_softcap=softcap)
    expected = dense(hidden, weight, labels, softcap=softcap)
    torch.testing.assert_close(ours, expected)
    inputs, upstream = (hidden, weight), torch.ones(3)
    found = gradients(ours, inputs, upstream)
    assert all(gradient.isfinite().all() for gradient in found)
    torch.testing.assert_close(found, gradients(expected, inputs, upstream), rtol=1e-4, atol=1e-2)


@pytest.mark.parametrize("trainable", [False, True])
def test_a_large_common_offset_costs_no_accuracy(trainable):
    hidden, weight = torch.ones(1, 1), torch.tensor([[1e6], [1e6 + 1], [1e6 + 3]])
    hidden.requires_grad_()
    weight.requires_grad_(trainable)
    logps = linear_logps(hidden, weight, torch.tensor([0]))
    expected = torch.tensor([0.0, 1.0, 3.0], dtype=torch.float64).log_softmax(-1)
    torch.testing.assert_close(logps, expected[:1].float())
    if trainable:
        (found,) = torch.autograd.grad(logps, weight, torch.ones(1))
        wanted = torch.tensor([1.0, 0.0, 0.0]) - expected.exp()
        torch.testing.assert_close(found[:, 0], wanted.float())


def test_tokens_forbidden_by_a_bias_of_minus_infinity(small_tiles):
    hidden, weight, labels, bias, upstream = make()
    bias[:20] = -torch.inf  # the whole first tile
    labels = labels.clamp(min=20)
    hidden.requires_grad_()
    ours = linear_logps(hidden, weight, labels, bias=bias)
    expected = dense(hidden, weight[20:], labels - 20, bias[20:])
    torch.testing.assert_close(ours, expected)
    torch.testing.assert_close(
        gradients(ours, [hidden], upstream), gradients(expected, [hidden], upstream)
    )


@pytest.mark.parametrize("trainable", [False, True])
def test_the_logits_are_never_held_and_a_frozen_head_multiplies_nothing_in_the_backward(
    monkeypatch, trainable
):
    monkeypatch.setattr(module, "TILE_ROWS", 100)
    hidden, weight, _, _, upstream = make((2, 40), 1000, 4)
    labels = torch.arange(80).view(2, 40)
    hidden.requires_grad_()
    weight.requires_grad_(trainable)
    tiles, chunks = 10, 4
    with Operations() as forward:
        logps = linear_logps(hidden, weight, labels, chunk_size=20)
    with Operations() as backward:
        gradients(logps, (hidden, weight), upstream)
    assert max(forward.largest, backward.largest) <= max(100 * 20, weight.numel())
    assert forward.products == tiles * chunks * (1 if trainable else 2)
    assert backward.products == (tiles * chunks * 3 if trainable else 0)


def test_no_gradient_no_direction(monkeypatch):
    hidden, weight, labels, _, _ = make()
    expected = linear_logps(hidden, weight, labels)
    hidden.requires_grad_()
    with torch.no_grad(), Operations() as without:
        logps = linear_logps(hidden, weight, labels)
    assert without.products == 1
    assert not logps.requires_grad
    torch.testing.assert_close(logps, expected, rtol=0, atol=0)


def test_a_frozen_head_keeps_one_direction_for_each_completion_token():
    hidden, weight, labels, _, _ = make((2, 9), 50, 7)
    hidden.requires_grad_()
    kept = []
    with torch.autograd.graph.saved_tensors_hooks(lambda t: kept.append(t.shape) or t, lambda t: t):
        linear_logps(hidden, weight, labels)
    tokens = int((labels != -100).sum())
    assert kept == [(tokens,), (tokens,), (tokens, 7)]


@pytest.mark.parametrize("chunk_size", [None, 2])
def test_only_completion_positions_are_computed(chunk_size):
    hidden, weight, labels, _, upstream = make()
    labels[0] = labels[1] = -100
    labels[1, -2:] = torch.tensor([3, 49])
    hidden[labels == -100] = torch.nan  # nobody looks there
    hidden.requires_grad_()
    weight.requires_grad_()
    logps = linear_logps(hidden, weight, labels, chunk_size=chunk_size)
    torch.testing.assert_close(logps[1, -2:], dense(hidden[1, -2:], weight, labels[1, -2:]))
    assert (logps[labels == -100] == 0).all()
    grad_hidden, grad_weight = gradients(logps, (hidden, weight), upstream)
    assert (grad_hidden[labels == -100] == 0).all()
    assert grad_weight.isfinite().all()


@pytest.mark.parametrize("trainable", [False, True])
@pytest.mark.parametrize("shape", [(2, 3), (0,), (2, 0)])
def test_nothing_but_ignored_positions_is_zero(trainable, shape):
    hidden, weight, labels, bias, upstream = make(shape)
    hidden.requires_grad_()
    weight.requires_grad_(trainable)
    bias.requires_grad_(trainable)
    logps = linear_logps(hidden, weight, torch.full_like(labels, 7), bias=bias, ignore_index=7)
    assert logps.shape == shape
    for tensor in (logps, *gradients(logps, (hidden, weight, bias), upstream)):
        assert (tensor == 0).all()


@pytest.mark.parametrize("trainable", [False, True])
@pytest.mark.parametrize("shape", [(5,), (2, 5), (2, 3, 4), (1, 1), (2, 1)])
def test_any_shape_and_memory_layout(small_tiles, shape, trainable):
    hidden, weight, labels, _, upstream = make((*shape[:-1], shape[-1] + 1))
    whole = hidden.requires_grad_()
    hidden, labels, upstream = hidden[..., :-1, :], labels[..., 1:], upstream[..., 1:]  # the shift
    weight = weight.T.contiguous().T.requires_grad_(trainable)
    ours, expected = linear_logps(hidden, weight, labels), dense(hidden, weight, labels)
    torch.testing.assert_close(ours, expected)
    torch.testing.assert_close(
        gradients(ours, (whole, weight), upstream), gradients(expected, (whole, weight), upstream)
    )


def test_integer_labels_of_any_width():
    hidden, weight, _, _, _ = make((3,), 200)
    labels = torch.tensor([156, 3, 199])  # 156 = −100 modulo 256
    expected = dense(hidden, weight, labels)
    for dtype in (torch.int32, torch.int16, torch.uint8):
        torch.testing.assert_close(linear_logps(hidden, weight, labels.to(dtype)), expected)


@pytest.mark.parametrize("trainable", [False, True])
def test_mixed_dtypes_are_promoted_and_gradients_keep_their_own(trainable):
    hidden, weight, labels, _, upstream = make(dtype=torch.bfloat16)
    weight = weight.float().requires_grad_(trainable)
    hidden.requires_grad_()
    logps = linear_logps(hidden, weight, labels)
    torch.testing.assert_close(logps, dense(hidden.float(), weight, labels))
    assert logps.dtype == torch.float32
    found = gradients(logps, (hidden, weight), upstream)
    assert [gradient.dtype for gradient in found] == [torch.bfloat16, torch.float32][: len(found)]


def test_autocast_rounds_the_factors_and_nothing_else():
    hidden, weight, labels, _, upstream = make(dtype=torch.float32)
    hidden.requires_grad_()
    weight.requires_grad_()
    with torch.autocast("cpu", dtype=torch.bfloat16):
        logps = linear_logps(hidden, weight, labels)
        found = gradients(logps, (hidden, weight), upstream)
    rounded = [t.detach().bfloat16().float().requires_grad_() for t in (hidden, weight)]
    expected = dense(*rounded, labels)
    torch.testing.assert_close(logps, expected)
    torch.testing.assert_close(found, gradients(expected, rounded, upstream))


def test_the_same_backward_twice_but_no_second_derivative():
    hidden, weight, labels, _, upstream = make()
    hidden.requires_grad_()
    logps = linear_logps(hidden, weight, labels)
    (first,) = torch.autograd.grad(logps, hidden, upstream, retain_graph=True)
    (second,) = torch.autograd.grad(logps, hidden, upstream, retain_graph=True)
    torch.testing.assert_close(first, second, rtol=0, atol=0)
    upstream.requires_grad_()
    (third,) = torch.autograd.grad(logps, hidden, upstream, create_graph=True)
    with pytest.raises(RuntimeError, match="once_differentiable"):
        third.sum().backward()


def test_a_compiled_model_breaks_its_graph_here_once():
    hidden, weight, labels, _, _ = make(dtype=torch.float32)
    graphs = []

    def backend(graph, _):
        graphs.append(graph)
        return graph.forward

    def model(hidden):
        return linear_logps(torch.sin(hidden), weight, labels).sum(-1).exp()

    torch._dynamo.reset()
    found, expected = torch.compile(model, backend=backend)(hidden), model(hidden)
    torch.testing.assert_close(found, expected)
    assert len(graphs) == 2
    assert not any(node.target is torch.addmm for graph in graphs for node in graph.graph.nodes)
    torch._dynamo.reset()


def bad(**changes):
    hidden, weight, labels, bias, _ = make()
    return {"hidden": hidden, "weight": weight, "labels": labels, "bias": bias, **changes}


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"hidden": torch.zeros(2, 8, 8)}, r"shapes are \[2, 8, 8\] and \[2, 9\]"),
        ({"hidden": torch.zeros(8), "labels": torch.tensor(1)}, "at least one dimension"),
        ({"hidden": torch.zeros(2, 9, 8).long()}, "hidden must be floating point"),
        ({"weight": torch.zeros(50, 7)}, r"hidden_size 8 .* is \[50, 7\]"),
        ({"weight": torch.zeros(8)}, "weight must be"),
        ({"bias": torch.zeros(49)}, r"bias must be \[50\], but its shape is \[49\]"),
        ({"labels": torch.zeros(2, 9)}, "labels must be integers"),
        ({"labels": torch.zeros(2, 9).bool()}, "labels must be integers"),
        ({"labels": torch.full((2, 9), 50)}, r"\[0, 50\) .* but one is 50"),
        ({"labels": torch.full((2, 9), -1)}, "but one is -1"),
        ({"labels": torch.full((2, 9), -100), "ignore_index": 0}, "but one is -100"),
        ({"logit_softcap": 0.0}, "logit_softcap must be positive"),
        ({"logit_softcap": float("nan")}, "logit_softcap must be positive"),
        ({"logit_softcap": float("inf")}, "logit_softcap must be positive and finite"),
        ({"chunk_size": 0}, "chunk_size must be at least 1"),
    ],
)
def test_mistakes_are_told(changes, message):
    with pytest.raises(ValueError, match=message):
        linear_logps(**bad(**changes))
