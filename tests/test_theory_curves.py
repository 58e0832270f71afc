"""Curves equal the network point by point, through every operation; others are named."""

import copy

import pytest
import torch
import torch.nn.functional as F
from hypothesis import given, settings
from hypothesis import strategies as st
from oracles import line_points
from torch import nn

from theory.curves import TICKS, Curves, Grid
from theory.errors import InputError
from theory.network import evaluating
from theory.segments import segment_pieces


def generator(seed):
    return torch.Generator().manual_seed(seed)


def assert_followed(f, *shape, segments=3, seed=0, atol=1e-12):
    """The polygons equal f at random points, and at five points of every piece."""
    x, partner = torch.randn(2, segments, *shape, generator=generator(seed), dtype=torch.float64)
    pieces = segment_pieces(f, x, partner)
    start, width = pieces.breakpoints[pieces.starts], pieces.breakpoints.diff()[pieces.starts]
    shares = torch.tensor([0.0, 0.13, 0.5, 0.77, 1.0], dtype=torch.float64)
    a = (start[:, None] + width[:, None] * shares).flatten()
    segment = pieces.segment.repeat_interleave(5)
    here = torch.lerp(pieces.logits[pieces.starts, None], pieces.logits[pieces.starts + 1, None],
                      shares[:, None])  # fmt: skip
    with torch.no_grad():
        truth = f(line_points(x[segment], partner[segment], a))
        torch.testing.assert_close(here.flatten(0, 1), truth, rtol=0, atol=atol)
        random = torch.rand(segments, 20, generator=generator(seed + 1), dtype=torch.float64)
        for s in range(segments):
            truth = f(
                line_points(x[s].expand(20, *shape), partner[s].expand(20, *shape), random[s])
            )
            torch.testing.assert_close(pieces.at(random)[s], truth, rtol=0, atol=atol)
    return pieces


VECTOR_RULES = {
    "relu": F.relu,
    "torch.relu": torch.relu,
    "relu method": lambda z: z.relu(),
    "relu inplace": lambda z: F.relu(z * 1.0, inplace=True),
    "relu_": lambda z: (z * 1.0).relu_(),
    "module inplace": nn.ReLU(inplace=True),
    "leaky": nn.LeakyReLU(0.3),
    "leaky inplace": nn.LeakyReLU(-0.5, inplace=True),
    "prelu": nn.PReLU(6).double(),
    "rrelu": nn.RReLU().eval(),
    "relu6": lambda z: F.relu6(8 * z),
    "hardtanh": nn.Hardtanh(-0.3, 0.8),
    "hardtanh inplace": nn.Hardtanh(inplace=True),
    "hardsigmoid": lambda z: F.hardsigmoid(5 * z),
    "clamp": lambda z: z.clamp(-0.2, max=0.5),
    "clamp below": lambda z: torch.clamp(z, min=0.1),
    "clamp_max": lambda z: z.clamp_max(0.3),
    "clamp_": lambda z: (z + 0.0).clamp_(-0.1, 0.1),
    "abs": lambda z: abs(z) + z.abs(),
    "maximum": lambda z: torch.maximum(z, z.flip(1)),
    "minimum with a constant": lambda z: torch.minimum(z, torch.full((6,), 0.2).double()),
    "max over an axis": lambda z: torch.cat([z.max(1, keepdim=True)[0], z.amin(-1)[:, None]], 1),
    "maxout": lambda z: z.view(len(z), 3, 2).amax(2),
    "max pool 1d": lambda z: F.max_pool1d(z[:, None], 3, 2, 1, ceil_mode=True).flatten(1),
    "softplus-free hinge": lambda z: 1 - z.clamp(max=1),
    "dense skip": lambda z: torch.cat([z, z.relu(), 2 * z - (1 - z).relu() / 3], dim=1),
    "stack": lambda z: torch.stack([z.relu(), z], 2).mean(2),
    "chunks": lambda z: sum(part.relu() for part in z.chunk(3, 1)),
    "unbound": lambda z: torch.stack([part.abs() for part in z.unbind(1)], -1),
    "masked": lambda z: z.masked_fill(torch.arange(6) > 3, 0.5).relu(),
    "where": lambda z: torch.where(torch.arange(6) > 3, z, -z).relu(),
    "indexed": lambda z: z[:, [0, 2, 2]].relu() + z[:, 1:4],
    "einsum": lambda z: torch.einsum("bi,ij->bj", z.relu(), torch.eye(6).double()),
    "matrix on the left": lambda z: (torch.ones(2, 6).double() @ z.relu()[:, :, None])[:, :, 0],
    "gated by a constant": lambda z: z.relu() * torch.linspace(-1, 1, 6) + z,
    "dropout in evaluation": nn.Sequential(nn.Dropout(0.5), nn.ReLU()).eval(),
    "batch norm": nn.Sequential(nn.BatchNorm1d(6), nn.ReLU()).double().eval(),
    "new zeros": lambda z: torch.cat([z.relu(), z.new_zeros(len(z), 2)], 1),
    "zeros like": lambda z: torch.maximum(z, torch.zeros_like(z)),
    "sizes": lambda z: z.relu().view(z.size(0), -1, 2).permute(0, 2, 1).reshape(z.shape[0], 6),
    "by example": lambda z: z.relu() - torch.ones(len(z), 1),
    "squeezed": lambda z: F.avg_pool1d(z[:, None].relu(), 6).squeeze().abs()[:, None],
    "reused": lambda z: z.relu() - (-z).relu() + z.relu().relu(),
}  # fmt: skip


@pytest.mark.parametrize("rule", VECTOR_RULES.values(), ids=VECTOR_RULES.keys())
def test_every_rule_follows_the_function(rule):
    torch.manual_seed(3)
    first, last = nn.Linear(4, 6).double(), nn.LazyLinear(3).double()
    pieces = assert_followed(lambda x: last(rule(first(x))), 4)
    assert int(pieces.counts.sum()) > 3 or rule is VECTOR_RULES["reused"]  # that one is affine


def test_relu_of_both_signs_cancels_and_leaves_no_piece():
    """relu(z) − relu(−z) = z: hidden kinks that the output does not feel are not counted."""
    f = nn.Linear(4, 3).double()
    pieces = assert_followed(lambda x: f(x.relu() - (-x).relu()), 4)
    assert pieces.counts.tolist() == [1, 1, 1]


IMAGE_RULES = {
    "max pool": nn.MaxPool2d(2),
    "max pool 3 2 1": nn.MaxPool2d(3, 2, 1),
    "max pool dilated": nn.MaxPool2d((2, 3), stride=1, padding=(0, 1), dilation=(2, 1)),
    "max pool ceil": nn.MaxPool2d(3, 2, ceil_mode=True),
    "adaptive max pool": nn.AdaptiveMaxPool2d((2, 3)),
    "global max": lambda z: z.amax((2, 3), keepdim=True),
    "avg pool": nn.Sequential(nn.ReLU(), nn.AvgPool2d(2)),
    "adaptive avg pool": nn.Sequential(nn.ReLU(), nn.AdaptiveAvgPool2d(2)),
    "reflection": nn.Sequential(nn.ReLU(), nn.Conv2d(2, 2, 3, padding=1, padding_mode="reflect")),
    "transposed": nn.Sequential(nn.ReLU(), nn.ConvTranspose2d(2, 1, 2, stride=2)),
    "pad": lambda z: F.pad(z.relu(), (1, 0, 0, 2)),
    "upsampled": nn.Sequential(nn.ReLU(), nn.Upsample(scale_factor=2, mode="bilinear")),
    "pixel shuffle": lambda z: F.pixel_unshuffle(z[:, :, :4, :4].relu(), 2),
    "unfold": lambda z: F.unfold(z.relu(), 2),
    "permuted": lambda z: z.permute(0, 2, 3, 1).relu().transpose(1, 2).contiguous(),
    "max pool 3d": lambda z: F.max_pool3d(z[:, None], (2, 2, 3), stride=(1, 2, 2)),
    "max after relu": nn.Sequential(nn.ReLU(), nn.MaxPool2d(2), nn.ReLU(inplace=True)),
}  # fmt: skip


@pytest.mark.parametrize("rule", IMAGE_RULES.values(), ids=IMAGE_RULES.keys())
def test_every_rule_for_images_follows_the_function(rule):
    torch.manual_seed(4)
    rule = copy.deepcopy(rule)
    if isinstance(rule, nn.Module):
        rule.double()
    conv, last = nn.Conv2d(1, 2, 3).double(), nn.LazyLinear(3).double()
    pieces = assert_followed(lambda x: last(rule(conv(x)).flatten(1)), 1, 7, 8)
    assert int(pieces.counts.min()) > 2


class InplaceNet(nn.Module):
    """Overwrites its tensors, as memory-saving code does, with the old values still in use."""

    def __init__(self):
        super().__init__()
        self.a, self.b, self.c = (nn.Linear(5, 5) for _ in range(3))

    def forward(self, x):
        z = self.a(x)
        out = F.relu(z, inplace=True)
        branch = self.b(out)
        branch += z  # z is the rectified one
        branch.mul_(0.5).sub_(0.1)
        branch = F.leaky_relu(branch, 0.1, inplace=True)
        branch /= 2
        return self.c(branch) + out


def test_overwritten_tensors_mean_what_they_mean_to_pytorch():
    torch.manual_seed(0)
    model = InplaceNet().double()
    with evaluating(model) as f:
        pieces = assert_followed(f, 5)
    assert int(pieces.counts.min()) > 2


@pytest.mark.parametrize(
    "function",
    [
        lambda z: F.relu(z.view(len(z), 1, 4), inplace=True).sum(1) + z,
        lambda z: z.flatten(1).relu_() + z,
        lambda z: z[:, :2].add_(1) + z[:, 2:],
    ],
    ids=["view", "flatten", "slice"],
)
def test_a_tensor_overwritten_through_a_view_is_refused(function):
    x, partner = torch.randn(2, 3, 4, generator=generator(0), dtype=torch.float64)
    with pytest.raises(InputError, match="overwritten in place through a view"):
        segment_pieces(lambda x: function(x * 1.0), x, partner)


REFUSALS = {
    "tanh": (torch.tanh, "tanh is not known to be piecewise affine"),
    "softmax": (lambda z: z.softmax(1), "softmax is not known"),
    "gelu": (F.gelu, "gelu is not known"),
    "sigmoid": (nn.Sigmoid(), "sigmoid is not known"),
    "threshold jumps": (nn.Threshold(0.1, 5.0), "threshold is not known"),
    "layer norm": (nn.LayerNorm(4).double(), "layer_norm is not known"),
    "group norm": (nn.GroupNorm(2, 4).double(), "group_norm is not known"),
    "batch statistics": (nn.BatchNorm1d(4).double(), "batch_norm normalises by the statistics"),
    "dropout": (nn.Dropout(0.1), "dropout is random in training mode"),
    "rrelu": (nn.RReLU(), "rrelu is random in training mode"),
    "square": (lambda z: z**2, "pow"),
    "product": (lambda z: z * z, "multiplies two tensors that depend on the input"),
    "self-attention": (lambda z: z[:, :, None] @ z[:, None], "multiplies two tensors"),
    "norm": (lambda z: z / z.sum(1, keepdim=True), "multiplies two tensors"),
    "reciprocal": (lambda z: 1 / z, "__rtruediv__ is not known"),
    "rounding": (lambda z: torch.div(z, 2, rounding_mode="floor"), "div rounds"),
    "comparison": (lambda z: z * (z > 0), "is not known"),
    "branch": (lambda z: z if z.sum(1)[0] > 0 else -z, "batch together|is not known"),
    "item": (lambda z: z * z[:, 0].max().item(), "batch together|is not known"),
    "truth": (lambda z: z if z[:, 0] else -z, "__bool__ is not known"),
    "sort": (lambda z: z.sort(1)[0], "sort is not known"),
    "mean over examples": (lambda z: z - z.mean(0), "mean treats the examples of a batch together"),
    "sum of all": (lambda z: z + z.sum(), "sum treats the examples"),
    "max of all": (lambda z: z + z.max(), "max treats the examples"),
    "max over examples": (lambda z: z + z.amax(0), "amax treats the examples"),
    "transposed": (lambda z: z.T, "T|__get__"),
    "examples permuted": (lambda z: z[[1, 0]], "__getitem__ treats the examples"),
    "examples flipped": (lambda z: z.flip(0), "flip treats the examples"),
    "examples left out": (lambda z: z[:1], "__getitem__ treats the examples"),
    "examples multiplied": (lambda z: torch.ones(len(z), len(z)).double() @ z, "matmul treats"),
    "examples in a row": (lambda z: z.view(-1), "view treats the examples"),
    "stacked examples": (lambda z: torch.cat([z, z]), "cat treats the examples"),
    "float32": (lambda z: z.to(torch.float32), "computes in float32, not in float64"),
    "weights from the input": (lambda z: F.linear(torch.ones(3, 4).double(), z), "a parameter"),
    "slope from the input": (lambda z: F.prelu(z, z[:, 0]), "a parameter that depends"),
    "bounds that are tensors": (lambda z: z.clamp(torch.zeros(4).double()), "tensors, not numbers"),
    "pooling indices": (
        lambda z: F.max_pool1d(z[:, None], 2, return_indices=True)[0], "returns indices"),
    "written into a constant": (
        lambda z: torch.zeros(3, 4).double().add_(z), "does not depend on the input"),
    "item assignment": (lambda z: torch.zeros(3).double().__setitem__(0, z[0, 0]), "__getitem__"),
    "out": (lambda z: torch.add(z, 1, out=torch.zeros(3, 4).double()), "with out="),
    "numpy": (lambda z: torch.from_numpy(z.numpy()), "numpy is not known"),
}  # fmt: skip


@pytest.mark.parametrize(("function", "message"), REFUSALS.values(), ids=REFUSALS.keys())
def test_what_is_not_piecewise_affine_is_refused_by_name(function, message):
    x, partner = torch.randn(2, 3, 4, generator=generator(0), dtype=torch.float64)
    with pytest.raises(InputError, match=message) as caught:
        segment_pieces(lambda x: function(x * 2.0), x, partner)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("kind", ["constant", "traced"])
@pytest.mark.filterwarnings("ignore:.torch.jit.trace:DeprecationWarning")
def test_outputs_that_did_not_come_through_the_rules_are_refused(kind):
    x, partner = torch.randn(2, 3, 4, generator=generator(0), dtype=torch.float64)
    constant = torch.zeros(3, 2).double()
    f = (lambda x: constant) if kind == "constant" else torch.jit.trace(nn.Linear(4, 2).double(), x)
    with pytest.raises(InputError, match=r"operations that can be followed|ScriptMethod"):
        segment_pieces(f, x, partner)


def test_a_fault_of_the_network_keeps_its_own_message():
    x, partner = torch.randn(2, 3, 4, generator=generator(0), dtype=torch.float64)
    with evaluating(nn.Linear(5, 2).double()) as f, pytest.raises(InputError, match="cannot take"):
        segment_pieces(f, x, partner)


BLOCKS = {
    "linear": lambda z, weight: z @ weight,
    "relu": lambda z, weight: z.relu(),
    "leaky": lambda z, weight: F.leaky_relu(z + weight[0], 0.2),
    "hardtanh": lambda z, weight: F.hardtanh(2 * z),
    "abs": lambda z, weight: (z - weight[1]).abs(),
    "residual": lambda z, weight: z + (z @ weight).relu(),
    "inplace": lambda z, weight: F.relu(z - weight[2], inplace=True),
    "dense": lambda z, weight: torch.cat([z[:, :2], z.relu()[:, 2:]], 1),
    "maxout": lambda z, weight: torch.maximum(z @ weight, z),
    "pool": lambda z, weight: F.max_pool1d(z[:, None], 3, 1, 1)[:, 0] @ weight,
    "average": lambda z, weight: F.avg_pool1d(z[:, None], 3, 1, 1)[:, 0] - weight[0],
    "dead": lambda z, weight: (z - 1e3).relu() + z,
    "twins": lambda z, weight: z.relu() + F.leaky_relu(z, 0.5),
}


@settings(max_examples=40)
@given(st.lists(st.sampled_from(sorted(BLOCKS)), min_size=1, max_size=7), st.integers(0, 2**16))
def test_random_graphs_are_followed(names, seed):
    weights = torch.randn(len(names) + 1, 5, 5, generator=generator(seed), dtype=torch.float64)

    def f(x):
        z = x @ weights[-1]
        for name, weight in zip(names, weights, strict=False):
            z = BLOCKS[name](z, weight)
        return z

    x = torch.randn(1, 5, generator=generator(seed), dtype=torch.float64)
    scale = max(1.0, float(f(x).abs().max()))
    assert_followed(f, 5, segments=2, seed=seed, atol=1e-11 * scale)


def test_constants_with_one_row_an_example_go_to_the_vertices_of_that_example():
    """Whatever the number of vertices, and along any axis but the first."""
    ticks = torch.tensor([0, 0, 0]), torch.tensor([TICKS] * 3)
    grid = Grid.between(*ticks, 100).inserted(torch.tensor([TICKS // 2, 4 * TICKS + TICKS // 4]))
    rows = torch.randn(len(grid.keys), 2, generator=generator(0), dtype=torch.float64)
    constant = torch.tensor([[10.0], [20.0], [30.0]]).double()
    by_vertex = constant[grid.segment]
    assert by_vertex.flatten().tolist() == [10, 10, 10, 20, 20, 30, 30, 30]
    z = Curves(rows, grid)
    assert z.shape == (3, 2)
    assert torch.equal((z + constant).rows, rows + by_vertex)
    assert torch.equal((constant * z).rows, rows * by_vertex)
    assert torch.equal(torch.cat([z, constant], 1).rows, torch.cat([rows, by_vertex], 1))
    assert torch.equal(torch.where(constant > 15, z, 0.0).rows, rows * (by_vertex > 15))
    assert torch.equal(
        torch.maximum(z * 0, constant - 20).rows, (by_vertex - 20).clamp(0).expand(-1, 2)
    )
