"""Rules of power series: every operation, random graphs of them, norms and whole networks."""

import hypothesis.strategies as st
import numpy as np
import pytest
import torch
import torch.nn.functional as F
from cases import case_named, make_problem, randomize_norms
from hypothesis import HealthCheck, given, settings
from torch import nn

import theory.taylor
from deep.models import build_model
from theory.network import evaluating
from theory.series import RULES
from theory.taylor import taylor_terms

aten = torch.ops.aten
torch.manual_seed(0)
W = torch.randn(3, 4, 6).double()
X = torch.randn(3, 4, 6, 6).double()
Y = torch.randn(2, 2, 4, 4, 4).double()
P = torch.randn(3, 6, 6).double()
Q = P[:, :4]
V = torch.randn(3, 4, 6).double() / 2
LOWER = torch.ones(4, 4).tril().bool()


def module(layer):
    return layer.double().eval()


# Functions of a (3, 4, 6) tensor, all with derivatives that nested jvp takes rightly.
ON_W = {
    **{
        name: getattr(F, name)
        for name in [
            "relu",
            "relu6",
            "hardtanh",
            "hardswish",
            "elu",
            "selu",
            "celu",
            "leaky_relu",
            "softplus",
            "gelu",
            "silu",
            "mish",
            "logsigmoid",
            "softsign",
            "tanhshrink",
            "softshrink",
            "hardshrink",
        ]
    },
    **{
        name: getattr(torch, name)
        for name in [
            "exp",
            "sin",
            "cos",
            "tanh",
            "sigmoid",
            "expm1",
            "erf",
            "atan",
            "abs",
            "square",
            "neg",
        ]
    },
    "gelu tanh": lambda w: F.gelu(w, approximate="tanh"),
    "softplus beta": lambda w: F.softplus(w, beta=2.0, threshold=1.5),
    "elu alpha": lambda w: F.elu(w, 0.7),
    "threshold": lambda w: F.threshold(w, 0.1, 5.0),
    "prelu": module(nn.PReLU(4)),
    "clamp": lambda w: w.clamp(-0.5, 0.5),
    "clamp one side": lambda w: w.clamp_min(0) * 2 + w.clamp_max(0.3) + w.clamp(max=Q),
    "sign": lambda w: w * w.sign(),
    "round": lambda w: w + w.round() + w.floor() + w.ceil() + w.trunc(),
    "comparisons": lambda w: w * ((w > 0) & (w < 1) | (w >= 2) | (w <= -1) | (w == 0)) * (w != 3),
    "finite": lambda w: torch.where(w.isfinite() & ~w.isnan() & ~w.isinf(), w.sin(), w),
    "logical": lambda w: (
        w * torch.logical_and(w, w > 0) + w * torch.logical_or(w, w < 0).logical_not()
    ),
    "any all": lambda w: w * (w > 0).any(1, keepdim=True) * (w > -9).all() + w * w.any() * w.all(),
    "argmax": lambda w: w * F.one_hot(w.argmax(2), 6) + w * F.one_hot(w.argmin(2), 6),
    "argsort": lambda w: w.gather(1, w.argsort(1)) * w.logical_not().logical_not(),
    "pow": lambda w: w**0 + w**2 + w**3 + w**-2,
    "pow half": lambda w: w.abs() ** 0.5,
    "pow of number": lambda w: 2**w,
    "pow both": lambda w: w.abs() ** w,
    "pow of constant": lambda w: Q.abs() ** w,
    "pow constant": lambda w: w.abs() ** Q,
    "pow whole constant": lambda w: w ** torch.tensor([2.0, 3.0, 1.0, -1.0, 5.0, 2.0]).double(),
    "pow one number": lambda w: w ** torch.tensor(3.0).double(),
    "sqrt": lambda w: w.abs().sqrt() + w.abs().rsqrt(),
    "log": lambda w: w.abs().log() + w.abs().log1p(),
    "div": lambda w: w / 2 + 1 / w + w / (1 + w.square()) + Q / w,
    "reciprocal": lambda w: w.reciprocal(),
    "add": lambda w: 2 - w + Q - 3 * w + torch.rsub(w, w.exp(), alpha=3) + torch.sub(Q, w, alpha=2),
    "broadcast": lambda w: w * w[0, 0] + w[0] / (2 + w.square()) + w[:, :1],
    "addcmul": lambda w: torch.addcmul(w, w.sin(), w, value=3),
    "addcdiv": lambda w: torch.addcdiv(w, w.sin(), w.exp(), value=-2),
    "lerp": lambda w: torch.lerp(w, w.exp(), 0.3) + torch.lerp(w, Q, w.sigmoid()),
    "prod": lambda w: w.prod(1) * w.prod(2, keepdim=True).sum() + w[0, 0, :3].prod(),
    "logaddexp": lambda w: torch.logaddexp(w, w.flip(1)) + torch.logaddexp(Q, w),
    "softmax": lambda w: w.softmax(-1) + w.softmax(1) + w.log_softmax(0),
    "masked softmax": lambda w: (w @ w.mT).masked_fill(~LOWER, float("-inf")).softmax(-1) @ w,
    "safe softmax": lambda w: aten._safe_softmax(w.masked_fill(W > 0.1, float("-inf")), 1),
    "logsumexp": lambda w: w.logsumexp((1, 2))[:, None, None] + w.logsumexp(-1, keepdim=True),
    "sum": lambda w: w.sum() * w.mean() * w.sum(1, keepdim=True) + w.mean((0, 2), keepdim=True),
    "var": lambda w: w.var(1, keepdim=True) + w.var() + w.var((1, 2), correction=0, keepdim=True),
    "std": lambda w: w.std(1) * torch.var_mean(w, 1)[0] + torch.var_mean(w, 1)[1],
    "norm": lambda w: w.norm(dim=1) + w.norm(p=1, dim=1) + w.norm(),
    "normalize": lambda w: F.normalize(w, dim=-1),
    "cosine": lambda w: F.cosine_similarity(w, w.flip(1), dim=1),
    "max": lambda w: w.max(1)[0] + w.min(1, keepdim=True)[0].sum() + w.max() - w.min(),
    "amax": lambda w: w.amax((1, 2), keepdim=True) * w + w.amin(1, keepdim=True),
    "maximum": lambda w: torch.maximum(w, w.flip(1)) + torch.minimum(w, Q) + torch.max(w, Q),
    "sort": lambda w: w.sort(1)[0] * w.sort(1, descending=True)[0] + torch.sort(w, stable=True)[0],
    "median": lambda w: w.median(1)[0] + w.median() + w.median(2, keepdim=True)[0][:, 0],
    "topk": lambda w: w.topk(2, 1)[0] + w.topk(2, 1, largest=False)[0],
    "where": lambda w: torch.where(w > 0, w.exp(), 0.0) + torch.where(w > 0, 1.0, w.sin()),
    "masked fill": lambda w: w.masked_fill(w > 0, 2.0),
    "views": lambda w: (
        w.flatten(1)
        .unflatten(1, (6, 4))
        .mT.movedim(1, 2)
        .permute(0, -1, 1)
        .transpose(0, 1)[:, None]
    ),
    "matrix views": lambda w: w[0].t() * w[1].T + w[2].t().contiguous().view(6, 4),
    "unsafe": lambda w: (
        aten._unsafe_view(w, [3, 24])
        + torch.cat(torch.unsafe_split(w, 2, 1), 2).flatten(1).repeat(1, 1)
    ),
    "unsafe sizes": lambda w: aten.unsafe_split_with_sizes(w, [1, 3], 1)[1],
    "alias": lambda w: aten.alias(w) * aten.detach(w.detach() * 0 + 1),
    "squeeze": lambda w: w[:, :1].squeeze(1) + w[:, :1].squeeze() + w[:, :1].squeeze((1, 2)),
    "slices": lambda w: w[:, 1::2, ::3] * w[..., [0, 2]][:, [3, 0]] + w[1, :2, 4:6],
    "diagonal": lambda w: (w @ w.mT).diagonal(0, 1, 2) + (w @ w.mT).diagonal(dim1=1, dim2=2),
    "trace": lambda w: w[0, :, :4].trace() * w,
    "unfold": lambda w: w.unfold(2, 3, 2),
    "expand": lambda w: w[:, :1].expand(3, 4, 6) * w + w[0, 0].expand(3, 4, 6),
    "split": lambda w: w.split([1, 3], 1)[1] * w.chunk(2, 1)[0].unbind(1)[1][:, None],
    "split equal": lambda w: w.split(2, 1)[0] * w.tensor_split(2, 1)[1],
    "stack": lambda w: torch.stack([w, w.exp(), Q], 1),
    "aten stack": lambda w: aten.stack([w, w.exp(), Q], -1),
    "cat": lambda w: torch.cat([w, P, w.sin()], 1) * torch.cat([w, P, w], 1),
    "pad": lambda w: F.pad(w, (1, 2), value=2.0) * w.sum(),
    "pads": lambda w: (
        F.pad(w, (2, 1), mode="reflect") * F.pad(w, (2, 1), mode="replicate")
        + F.pad(w, (2, 1), mode="circular")
    ),
    "roll": lambda w: w.roll(1, 1) + w.flip(0) + w.rot90(2, (1, 2)),
    "tril": lambda w: w.tril() * w.triu(-1),
    "cumsum": lambda w: w.cumsum(1),
    "index": lambda w: w[[0, 1, 2], :, [0, 1, 2]] + w[:, :, torch.arange(6) == 3][..., 0],
    "gather": lambda w: (
        w.gather(1, torch.zeros(3, 4, 6).long())
        + w.index_select(1, torch.tensor([1, 1, 0, 2]))
        + torch.take_along_dim(w, torch.zeros(3, 1, 6).long(), 1)
    ),
    "repeat": lambda w: w.repeat(1, 2, 1) + w.repeat_interleave(2, 1),
    "cast": lambda w: w.to(torch.float64, copy=True) * w.to(torch.int64),
    "mm": lambda w: w[0] @ w[1].T @ w[2] + w[0] @ P[0] + Q[0] @ P[1],
    "bmm": lambda w: w.mT @ w + P @ w.mT @ w + w.mT @ Q,
    "mv": lambda w: w @ w[0, 0] + w @ P[0, 0] + (w[0] @ w[0, 1]) + Q[0] @ w[0, 0],
    "dot": lambda w: (
        (w[0, 0] @ w[1, 1]) * w + torch.dot(P[0, 0], w[0, 0]) + aten.dot(w[0, 1], P[1, 1])
    ),
    "addmm": lambda w: (
        torch.addmm(w[0], w[1, :, :4], w[2], beta=0.5, alpha=2)
        + torch.addmm(Q[0], w[1, :, :4], w[2], beta=0.5)
    ),
    "addmv": lambda w: torch.addmv(w[0, :, 0], w[1], w[0, 0], beta=2, alpha=3),
    "baddbmm": lambda w: torch.baddbmm(w, w[:, :, :4], w, beta=0.5, alpha=2),
    "einsum": lambda w: torch.einsum("bct,bdt->bcd", w, w) @ torch.einsum("bct,bts->bcs", w, P),
    "outer": lambda w: torch.outer(w[0, 0], w[0, 1]),
    "linear": module(nn.Linear(6, 3)),
    "attention": lambda w: (
        F.scaled_dot_product_attention(w, w.sin(), w.cos(), is_causal=True)
        + F.scaled_dot_product_attention(w, w.sin(), w.cos(), attn_mask=LOWER)
    ),
    "layer norm": module(nn.LayerNorm((4, 6))),
    "rms norm": module(nn.RMSNorm(6)),
    "batch norm": module(nn.BatchNorm1d(4)),
    "batch norm by name": lambda w: (
        aten._native_batch_norm_legit(
            w[:1], Q[0, 0, :4], None, Q[0, 1, :4], Q[0, 2, :4].exp(), False, 0.1, 1e-5
        )[0]
        * aten._native_batch_norm_legit_no_training(
            w, None, Q[0, 0, :4], Q[0, 1, :4], Q[0, 2, :4].exp(), 0.1, 1e-5
        )[0]
    ),
    "transposed in place": lambda w: w.sin().transpose_(1, 2).unsqueeze_(0).squeeze_(0) @ w,
    "conv": module(nn.Conv1d(4, 3, 3)),
    "transposed conv": module(nn.ConvTranspose1d(4, 3, 3)),
    "pool": lambda w: (
        F.max_pool1d(w, 2)
        + F.adaptive_max_pool1d(w, 3)
        + F.avg_pool1d(w, 2)
        + aten.avg_pool1d(w, [2])
        + F.adaptive_avg_pool1d(w, 3)
    ),
    "upsample": lambda w: (
        F.interpolate(w, scale_factor=2) + F.interpolate(w, scale_factor=2, mode="linear")
    ),
    "filled in place": lambda w: filled_in_place(w.sin()),
}


def filled_in_place(h):
    h[:, 0] = 0.1
    h[:, 1].zero_()
    h[:, 2] = Q[:, 2]
    h[:, 3].mul_(3.0).fill_(h.new_tensor(0.7))
    return h + torch.full_like(h, 0.2).copy_(h)


# Functions of a (3, 4, 6, 6) tensor.
ON_X = {
    "conv": module(nn.Conv2d(4, 4, 3, stride=2, padding=1, groups=2, padding_mode="reflect")),
    "circular": module(nn.Conv2d(4, 2, 3, padding=1, padding_mode="circular")),
    "transposed conv": module(nn.ConvTranspose2d(4, 3, 3, stride=2, output_padding=1)),
    "batch norm": module(nn.BatchNorm2d(4, affine=False)),
    "group norm": module(nn.GroupNorm(2, 4)),
    "instance norm": module(nn.InstanceNorm2d(4, affine=True)),
    "max pool": lambda x: F.max_pool2d(x, 3, 2, 1) * F.adaptive_max_pool2d(x, 3),
    "average pool": lambda x: F.avg_pool2d(x, 3, 2, 1) * F.adaptive_avg_pool2d(x, 3),
    "upsample": lambda x: (
        F.interpolate(x, scale_factor=2)
        + F.interpolate(x, scale_factor=2, mode="bilinear")
        + F.interpolate(x, scale_factor=2, mode="bicubic")
    ),
    "unfold": lambda x: F.fold(F.unfold(x, 2), (6, 6), 2),
    "shuffle": lambda x: F.pixel_unshuffle(F.pixel_shuffle(x, 2), 3),
    "replicate": module(nn.ReplicationPad2d(1)),
    "zero pad": module(nn.ZeroPad2d(1)),
    "response norm": module(nn.LocalResponseNorm(2)),
    "power pool": lambda x: F.lp_pool2d(x.abs(), 2, 2),
    "squeeze and excite": lambda x: x * torch.sigmoid(F.adaptive_avg_pool2d(x, 1)),
    "channels last": lambda x: F.conv2d(
        x.contiguous(memory_format=torch.channels_last), torch.ones(2, 4, 3, 3).double()
    ),
}

# Functions of a (2, 2, 4, 4, 4) tensor.
ON_Y = {
    "max pool": lambda y: F.max_pool3d(y, 2) * F.adaptive_max_pool3d(y, 2),
    "average pool": lambda y: F.avg_pool3d(y, 2) * F.adaptive_avg_pool3d(y, 2),
    "pads": lambda y: F.pad(y, (1,) * 6, mode="reflect") + F.pad(y, (1,) * 6, mode="replicate"),
    "upsample": lambda y: F.interpolate(y, scale_factor=2, mode="trilinear"),
    "conv": module(nn.Conv3d(2, 2, 2)),
}

# Operations that nested jvp has no rule for, or (CELU, whose α it rounds to float32) a less exact
# one, beside the same functions in other words.
IN_OTHER_WORDS = {
    "hardsigmoid": (F.hardsigmoid, lambda w: F.relu6(w + 3) / 6),
    "glu": (lambda w: F.glu(w, 2), lambda w: w[..., :3] * torch.sigmoid(w[..., 3:])),
    "celu": (
        lambda w: F.celu(w, 0.4),
        lambda w: torch.where(w > 0, w, 0.4 * torch.expm1(w / 0.4)),
    ),
    # The series is that of the values, which detach does not change.
    "detached": (lambda w: w.detach() * w.sin(), lambda w: w * w.sin()),
}

GRAPHS = [
    *(pytest.param(W, f, id=name) for name, f in ON_W.items()),
    *(pytest.param(X, f, id=f"2d {name}") for name, f in ON_X.items()),
    *(pytest.param(Y, f, id=f"3d {name}") for name, f in ON_Y.items()),
]


def flat(f):
    """All results in one row of logits for every example."""

    def logits(x):
        result = f(x)
        return result.reshape(1, -1).expand(len(x), -1)

    return logits


def along(f):
    """A smooth way into f, so that all four coefficients that reach it are nonzero."""
    return lambda x: f(x + 0.05 * x.sin())


def compare(f, x, order=3, rtol=1e-9, atol=1e-10, words=None):
    """The engine on f equals nested jvp on f, or on the same function in other words."""
    v = 0.5 * torch.randn(x.shape, generator=torch.Generator().manual_seed(1)).double()
    with evaluating(nn.Identity()):
        got = taylor_terms(flat(f), x, v, order)
        truth = taylor_terms(flat(words or f), x, v, order, "nested")
    torch.testing.assert_close(got, truth, rtol=rtol, atol=atol)
    return got


@pytest.mark.parametrize(("x", "f"), GRAPHS)
def test_a_rule_equals_nested_jvp_to_third_order(x, f):
    """On series of two coefficients and of four, which rules treat differently."""
    compare(f, x)
    compare(along(f), x)


@pytest.mark.parametrize(("f", "words"), IN_OTHER_WORDS.values(), ids=IN_OTHER_WORDS)
def test_a_rule_equals_the_function_in_other_words(f, words):
    compare(f, W, words=words)
    compare(along(f), W, words=along(words))


def test_attention_of_a_row_that_is_masked_out_is_zero():
    mask = torch.ones(4, 4, dtype=torch.bool).tril(-1)  # the first row sees nothing

    def attention(w):
        return F.scaled_dot_product_attention(w, w.sin(), w.cos(), attn_mask=mask)

    with evaluating(nn.Identity()):
        got = taylor_terms(flat(attention), W, V, 3)
        rest = taylor_terms(flat(lambda w: attention(w)[:, 1:]), W, V, 3, "nested")
    got = got[:, 0].unflatten(1, W.shape)
    assert (got[:, :, 0] == 0).all()
    torch.testing.assert_close(got[:, :, 1:].flatten(1), rest[:, 0], rtol=1e-9, atol=1e-10)


def test_a_tensor_times_itself_in_place():
    """PyTorch's forward mode loses a factor there."""

    def own(w):
        h = w.sin()
        return h.mul_(h)

    compare(own, W, words=lambda w: w.sin().square())


# Rules that no ordinary CPU call reaches, or whose results are no floating-point numbers.
ELSEWHERE = {aten.cudnn_batch_norm}


def test_every_rule_has_a_case(monkeypatch):
    seen = set()

    class Watched(dict):
        def get(self, operation, default=None):
            seen.add(operation)
            return super().get(operation, default)

    monkeypatch.setattr(theory.taylor, "RULES", Watched(RULES))
    with evaluating(nn.Identity()):
        graphs = [graph.values for graph in GRAPHS]
        graphs += [(W, f) for f, _ in IN_OTHER_WORDS.values()]
        for x, f in graphs:
            taylor_terms(flat(f), x, x.flip(0), 2)
    missing = set(RULES) - seen - ELSEWHERE
    assert not missing, sorted(str(operation) for operation in missing)


# Norms. Nested jvp is wrong from second order on through PyTorch's own layers, so the truth is a
# form in elementary operations, by nested jvp and by Cauchy's integral.


def normed(z, axes, eps, weight, bias, shape, centre=True):
    """The norms written out, for real and for complex tensors."""
    centred = z - z.mean(axes, keepdim=True) if centre else z
    y = centred / ((centred * centred).mean(axes, keepdim=True) + eps).sqrt()
    return y * weight.reshape(shape) + (0 if bias is None else bias.reshape(shape))


def group_normed(z, layer):
    grouped = z.unflatten(1, (layer.num_groups, -1))
    y = normed(grouped, (2, 3, 4), layer.eps, torch.ones(1), None, (1,)).flatten(1, 2)
    return y * layer.weight.reshape(-1, 1, 1) + layer.bias.reshape(-1, 1, 1)


def channels(layer):
    return (layer.eps, layer.weight, layer.bias, (-1, 1, 1))


NORMS = {
    "layer": (
        nn.LayerNorm((3, 4), eps=1e-3),
        lambda z, n: normed(z, (-2, -1), n.eps, n.weight, n.bias, (3, 4)),
    ),
    "group": (nn.GroupNorm(2, 4, eps=1e-2), group_normed),
    "instance": (
        nn.InstanceNorm2d(4, affine=True),
        lambda z, n: normed(z, (2, 3), *channels(n)),
    ),
    "root mean square": (
        nn.RMSNorm(4, eps=1e-3),
        lambda z, n: normed(z, -1, n.eps, n.weight, None, (4,), centre=False),
    ),
    "one example by batch": (
        nn.BatchNorm2d(4, track_running_stats=False),
        lambda z, n: normed(z, (0, 2, 3), *channels(n)),
    ),
}


def by_cauchy(f, x, v, order, radius=0.1, nodes=64):
    """Coefficients by Cauchy's integral over a circle, in complex arithmetic."""
    angles = torch.arange(nodes, dtype=torch.float64) * (2 * np.pi / nodes)
    points = torch.polar(torch.full_like(angles, radius), angles)
    with torch.no_grad():
        values = torch.stack([f(x + a * v) for a in points])
    return torch.stack(
        [torch.tensordot(points**-k, values, 1).real / nodes for k in range(order + 1)]
    )


@pytest.mark.parametrize("name", NORMS)
def test_a_norm_to_fourth_order_equals_its_written_out_form_and_cauchys_integral(name):
    """The engine is right where nested jvp through PyTorch's own layer is, or was, wrong."""
    torch.manual_seed(3)
    layer, written = NORMS[name]
    layer = layer.double()
    with torch.no_grad():
        for parameter in layer.parameters():
            parameter.uniform_(0.5, 1.5)
    x, v = torch.randn(2, 1 if "one" in name else 3, 4, 3, 4).double()
    with evaluating(layer):
        got = taylor_terms(flat(lambda z: layer(z + 0.1 * z.square())), x, v, 4)

    def curve(z):
        return flat(lambda z: written(z + 0.1 * z * z, layer))(z)

    torch.testing.assert_close(got, taylor_terms(curve, x, v, 4, "nested"), rtol=1e-9, atol=1e-10)
    torch.testing.assert_close(got, by_cauchy(curve, x, v, 4), rtol=1e-9, atol=1e-9)


@pytest.mark.parametrize(
    "f",
    [
        lambda w: w.sin() * w.cos() + w.tanh() / (3 + w.sigmoid()),
        lambda w: w.exp().log1p() ** 1.5 + (1 + w * w).sqrt() - (1 + w * w).rsqrt(),
        lambda w: (w @ w.mT).exp().sum(-1) / (1 + w.exp()).sum(-1) * (w * w).mean(-1),
        lambda w: (w.exp() / w.exp().sum(-1, keepdim=True)) @ w.mT,
    ],
)
def test_smooth_functions_to_eighth_order_equal_cauchys_integral(f):
    w, v = 0.5 * W, 0.5 * W.flip(0)
    got = taylor_terms(flat(f), w, v, 8)
    size = got.abs().amax((1, 2), keepdim=True)
    error = (got - by_cauchy(flat(f), w, v, 8, radius=0.4)).abs() / size
    assert error.max() < 1e-9


# Random graphs.


def written_to(a, b):
    h = a + 0 * b  # as many coefficients as b, without which writing into a part is refused
    h[:, 1:3] += b[:, :2]
    h.relu_().add_(b, alpha=0.5)
    return h


# Functions of two (3, 4) series with a (3, 4) result; numbers stay near one.
STEPS = [
    lambda a, b: a + b,
    lambda a, b: a - 0.5 * b,
    lambda a, b: a * b.tanh(),
    lambda a, b: a / (1.5 + b.square()),
    lambda a, b: a.sin(),
    lambda a, b: b.tanh().exp(),
    lambda a, b: F.relu(a),
    lambda a, b: F.leaky_relu(a, 0.1),
    lambda a, b: F.gelu(a) + F.softplus(b),
    lambda a, b: F.silu(a),
    lambda a, b: a.clamp(-0.5, 0.7),
    lambda a, b: a.abs(),
    lambda a, b: torch.maximum(a, 0.9 * b),
    lambda a, b: a.softmax(1) + b.mean(),
    lambda a, b: a.log_softmax(0),
    lambda a, b: torch.where(a > b, a.sin(), b),
    lambda a, b: F.elu(a) * b[:1],
    lambda a, b: a + b[:, :1] * b[1],
    lambda a, b: torch.cat([a[:, 2:], b[:, :2].sin()], 1),
    lambda a, b: torch.stack([a, b]).amax(0),
    lambda a, b: (a @ b.T).tanh() @ a,
    lambda a, b: torch.bmm(a[None], b.T[None])[0] @ Q[0, :3, :4] / 3,
    lambda a, b: F.layer_norm(a + b, (4,)),
    lambda a, b: a.view(2, 6).flip(0).reshape(3, 4).roll(1, 0),
    lambda a, b: a.sort(1)[0],
    lambda a, b: F.pad(a[:, 1:], (1, 0), value=0.3),
    lambda a, b: (1 + a.square()).sqrt() - (2 + b.sin()).log(),
    lambda a, b: a.logsumexp(1, keepdim=True) - b,
    lambda a, b: written_to(a, b),
    lambda a, b: a.cumsum(1) / 4 + b.var(1, keepdim=True),
    lambda a, b: a.tanh() ** 3 + (1.5 + b.sin()) ** -1.5,
    lambda a, b: F.max_pool1d(F.pad(a, (1, 1))[None], 3, 1)[0],
    lambda a, b: a.expand(2, 3, 4).prod(0).tanh(),
    lambda a, b: b.T.contiguous().T.masked_fill(Q[0, :3, :4] > 0, 0.0) + a,
]
GRAPH = st.lists(
    st.tuples(st.integers(0, len(STEPS) - 1), st.integers(0, 9), st.integers(0, 9)),
    min_size=2,
    max_size=7,
)


@settings(max_examples=60, suppress_health_check=list(HealthCheck), database=None)
@given(GRAPH, st.integers(0, 2**20))
def test_a_random_graph_of_rules_equals_nested_jvp(graph, seed):
    """To third order, relative to the largest entry of a term."""
    draw = torch.Generator().manual_seed(seed)
    x, v, constant = torch.randn(3, 3, 4, generator=draw, dtype=torch.float64)

    def f(x):
        values = [x, constant + 0 * x, x * 0.7]
        for step, i, j in graph:
            values.append(STEPS[step](values[-1 - i % len(values)], values[-1 - j % len(values)]))
        return values[-1] + values[-2]

    with evaluating(nn.Identity()):
        got, truth = taylor_terms(f, x, v, 3), taylor_terms(f, x, v, 3, "nested")
    size = truth.abs().amax((1, 2), keepdim=True).clamp(min=1.0)
    assert ((got - truth).abs() / size).max() < 1e-9


# Whole networks.


@pytest.mark.parametrize("activation", ["relu", "softplus", "gelu"])
def test_preact_resnet_18_to_fourth_order_equals_nested_jvp(activation, monkeypatch):
    torch.manual_seed(0)
    model = randomize_norms(build_model("preact18", num_classes=3, image_size=8, width=2)).double()
    if activation != "relu":
        monkeypatch.setattr(F, "relu", getattr(F, activation))
    x, v = torch.randn(2, 2, 3, 8, 8).double()
    with evaluating(model) as f:
        got, truth = taylor_terms(f, x, v, 4), taylor_terms(f, x, v, 4, "nested")
    for k in range(5):
        error = (got[k] - truth[k]).norm()
        assert error <= 1e-11 * truth[k].norm(), (k, error)
    assert bool(got[2:].any()) == (activation != "relu")


def test_a_transformer_to_fourth_order_equals_nested_jvp():
    """Attention, GELU and layer norm; nested jvp on a layer norm written out."""
    problem = make_problem(case_named("transformer"), n=2)
    v = torch.randn(problem.x.shape, generator=torch.Generator().manual_seed(1)).double()
    with evaluating(problem.model) as f:
        got = taylor_terms(f, problem.x, v, 4)
        truth = taylor_terms(f, problem.x, v, 4, "nested")
    for k in range(5):
        assert (got[k] - truth[k]).norm() <= 1e-11 * truth[k].norm()


class Recurrent(nn.Module):
    def __init__(self, kind):
        super().__init__()
        self.cells = kind(4, 5, num_layers=2, batch_first=True, bidirectional=True, dropout=0.3)
        self.fc = nn.Linear(10, 3)

    def forward(self, x):
        return self.fc(self.cells(x)[0][:, -1])


@pytest.mark.parametrize("kind", [nn.LSTM, nn.GRU, nn.RNN])
def test_recurrent_networks_equal_nested_jvp(kind):
    torch.manual_seed(0)
    model = Recurrent(kind).double()
    x, v = torch.randn(2, 3, 5, 4).double()
    with evaluating(model) as f:
        got, truth = taylor_terms(f, x, v, 3), taylor_terms(f, x, v, 3, "nested")
    torch.testing.assert_close(got, truth, rtol=1e-10, atol=1e-12)
