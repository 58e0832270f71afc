"""Power series through the code that users write: what is right, what is refused, what is left."""

import pytest
import torch
import torch.nn.functional as F
from cases import case_named, make_problem
from torch import nn
from torch.utils._python_dispatch import _get_current_dispatch_mode

from theory.errors import InputError
from theory.network import evaluating
from theory.series import Series
from theory.taylor import loss_taylor_terms, taylor_terms

torch.manual_seed(0)
X, V = torch.randn(2, 3, 4).double()


def series_of(model, order=3, x=X, v=V):
    with evaluating(model) as f:
        return taylor_terms(f, x, v, order)


class Written(nn.Module):
    """A module whose forward is the given function of itself and x."""

    def __init__(self, forward, **parts):
        super().__init__()
        self.written = forward
        for name, part in parts.items():
            setattr(self, name, part)

    def forward(self, x):
        return self.written(self, x)


def written(forward, **parts):
    return Written(forward, **parts).double()


def equals_nested(model, order=3, x=X, v=V):
    got = series_of(model, order, x, v)
    with evaluating(model) as f:
        truth = taylor_terms(f, x, v, order, "nested")
    torch.testing.assert_close(got, truth, rtol=1e-10, atol=1e-12)


# What is not stored.


class Watch(nn.Module):
    """Records how many coefficients pass through it."""

    def __init__(self, inner, seen):
        super().__init__()
        self.inner, self.seen = inner, seen

    def forward(self, x):
        out = self.inner(x)
        self.seen += [len(t.stack) for t in (x, out) if isinstance(t, Series)]
        return out


def watched(model, seen):
    for name, child in list(model.named_children()):
        watched(child, seen)
        setattr(model, name, Watch(child, seen))
    return model


@pytest.mark.parametrize("name", ["relu-mlp", "relu-conv-no-bias"])
def test_a_piecewise_linear_network_stores_two_coefficients_at_order_sixteen(name):
    seen = []
    problem = make_problem(case_named(name))
    model = watched(problem.model, seen)
    terms = series_of(model, 16, problem.x, problem.mean - problem.x)
    assert len(seen) >= 8
    assert set(seen) == {2}
    assert terms.shape[0] == 17
    assert (terms[2:] == 0).all()
    assert terms[1].any()


def test_a_polynomial_stores_as_many_coefficients_as_its_degree_has():
    seen = []
    square = written(lambda self, x: x * x)
    cube = written(lambda self, x: x**3)
    model = nn.Sequential(Watch(square, seen), Watch(cube, seen))
    terms = series_of(model, 16)
    assert seen == [2, 3, 3, 7]
    assert (terms[7:] == 0).all()
    assert terms[6].any()


# Code that is right.


def zeros_filled(self, x):
    out = torch.zeros(len(x), 4, dtype=x.dtype)
    out[:, :2] = x[:, :2].sin()
    out[:, 2] = x[:, 3].exp()
    return out * x


def view_written(self, x):
    h = x.sin()
    left = h[:, :2]
    left *= 2
    left.add_(0.3)
    return h * h.T[:4].sum()


def view_read_after_base_is_written(self, x):
    h = self.fc(x)
    part = h.view(-1)[:3]
    h += 1.0
    return h + part.square().sum()


def written_after_use(self, x):
    h = x.sin()
    before = h * 2
    h.relu_()
    return before + h


def made_weights(self, x):
    kernel = torch.ones(1, 1, 2, dtype=x.dtype) / 2
    return F.conv1d(x.tanh()[:, None], kernel)[:, 0]


def causal(self, x):
    h = self.fc(x)[:, :, None] * self.other(x)[:, None]
    mask = torch.full((4, 4), float("-inf"), dtype=x.dtype).triu(1)
    return ((h + mask).softmax(-1) @ h).sum(1)


def branching(self, x):
    return self.fc(x).exp() if bool((x.sum() > -1e9).all()) else x


def scalar_comparison(self, x):
    return torch.where(x > x.mean(), x.sin(), x.cos())


def pair(self, x):
    first, second = self.both(x)
    return first * second


def shared(self, x):
    return self.fc(torch.tanh(self.fc(torch.tanh(self.fc(x)))))


def listed(self, x):
    parts = []
    for row in x.unbind(1):
        parts.append(row.sin() * len(parts))
    return torch.stack(parts, 1)


RIGHT = {
    "zeros filled by slices": written(zeros_filled),
    "views written to": written(view_written),
    "views read after writing": written(view_read_after_base_is_written, fc=nn.Linear(4, 4)),
    "written after use": written(written_after_use),
    "weights made in forward": written(made_weights),
    "masks of minus infinity": written(causal, fc=nn.Linear(4, 4), other=nn.Linear(4, 4)),
    "a branch on values": written(branching, fc=nn.Linear(4, 3)),
    "a choice by the mean": written(scalar_comparison),
    "several outputs inside": written(
        pair, both=written(lambda self, x: (x.sin(), {"b": x.exp()}["b"]))
    ),
    "a module called three times": written(shared, fc=nn.Linear(4, 4)),
    "a list of parts": written(listed),
    "in-place modules": nn.Sequential(
        nn.Linear(4, 5), nn.SiLU(inplace=True), nn.Linear(5, 5), nn.ELU(inplace=True),
        nn.Dropout(0.5, inplace=True), nn.Linear(5, 2),
    ).double(),
    "a constant": written(lambda self, x: torch.ones(len(x), 2, dtype=x.dtype)),
}  # fmt: skip


@pytest.mark.parametrize("name", [name for name in RIGHT if name != "a constant"])
def test_ordinary_code_is_right(name):
    equals_nested(RIGHT[name])


def test_a_network_without_its_input_has_a_series_of_one_term():
    terms = series_of(RIGHT["a constant"], 2)
    assert (terms[0] == 1).all()
    assert (terms[1:] == 0).all()
    assert len(terms) == 3


def test_order_zero_is_the_network():
    model = RIGHT["zeros filled by slices"]
    torch.testing.assert_close(series_of(model, 0)[0], model(X), rtol=0, atol=0)


def test_order_two_hundred_of_tanh_does_not_overflow():
    """The coefficients of tanh fall like (2/π)^k; their factorials would not fit in a float."""
    one = torch.ones(1, 1).double()
    terms = series_of(nn.Tanh(), 200, 0 * one, one)[:, 0, 0]
    ratios = (terms[3::2] / terms[1:-2:2]).abs()
    assert torch.isfinite(terms).all()
    assert (terms[::2] == 0).all()
    torch.testing.assert_close(ratios[-1], (2 / torch.pi) ** 2 * torch.ones(()).double())


def test_huge_logits_have_a_finite_loss_series():
    model = nn.Linear(4, 3).double()
    with torch.no_grad():
        model.weight *= 1e6
    y = torch.eye(3).double()
    for head in ("softmax", "sigmoid"):
        with evaluating(model) as f:
            assert loss_taylor_terms(f, X, y, V, 8, head).isfinite().all()


# What is refused.


def keeping(self, x):
    if not hasattr(self, "kept"):
        self.kept = x.sin()
    return x + self.kept


def filled_constant(self, x):
    h = self.bias + 0
    h += x.sum()
    return x * h


BIAS = nn.Parameter(torch.zeros(4))
REFUSED = {
    "dropout": (lambda self, x: F.dropout(x), "draws random numbers"),
    "feature dropout": (lambda self, x: F.alpha_dropout(x, 0.5, True), "draws random numbers"),
    "noise": (lambda self, x: x + torch.randn(3, 4).double(), "draws random numbers"),
    "gumbel": (lambda self, x: F.gumbel_softmax(x), "draws random numbers"),
    "item": (lambda self, x: x * x.sum().item(), "reads a number out of a tensor"),
    "float": (lambda self, x: x * float(x[0, 0]), "reads a number out of a tensor"),
    "condition on a value": (lambda self, x: x if x[0, 0] else -x, "reads a number|is_nonzero"),
    "no rule": (lambda self, x: x.sinh(), "operation sinh "),
    "no rule in place": (lambda self, x: (x * 1).sinh_(), "operation sinh "),
    "constant filled": (filled_constant, r"into a constant tensor \(add_\)"),
    "out": (lambda self, x: torch.mul(x, x, out=torch.ones(3, 4).double()), "out="),
    "indexed writing": (lambda self, x: (x * 1).index_put_((X > 0,), X[0, 0]), "index_put"),
    "hypernetwork": (
        lambda self, x: F.conv1d(x[:, None], x[:1, None, :2])[:, 0],
        "convolution whose weights depend",
    ),
    "rounding division": (lambda self, x: x.div(2, rounding_mode="floor"), "rounding division"),
    "other norms": (lambda self, x: x.norm(p=3, dim=1)[:, None], "vector norm of order 3"),
    "a root at zero": (lambda self, x: (x - x).sqrt(), "not finite.*root"),
    "a view that is too short": (
        lambda self, x: (lambda h: (h[:, :2].sin_(), h)[1])(x * 1),
        "torch.cat or torch.stack",
    ),
    "two outputs": (lambda self, x: (x, x), "returns tuple, not a tensor"),
    "numpy": (
        lambda self, x: x + torch.from_numpy(x.numpy()),
        "reads a number out of a tensor \\(numpy\\)",
    ),
}


@pytest.mark.parametrize("name", REFUSED)
def test_what_has_no_series_is_refused_in_one_line_and_the_next_call_is_right(name):
    forward, reason = REFUSED[name]
    with pytest.raises(InputError, match=reason) as error:
        series_of(written(forward, bias=BIAS))
    assert "\n" not in str(error.value)
    assert _get_current_dispatch_mode() is None
    equals_nested(nn.Sequential(nn.Linear(4, 3), nn.GELU()).double())


def test_a_kept_tensor_is_refused_at_its_next_use():
    model = written(keeping)
    first = series_of(model)
    torch.testing.assert_close(first[0], X + X.sin())
    with pytest.raises(InputError, match="keeps a tensor from an earlier call"):
        model(X)
    del model.kept
    torch.testing.assert_close(series_of(model), first, rtol=0, atol=0)


def test_overflow_of_terms_is_refused_in_one_line():
    x = torch.full((1, 1), 3.0)
    with pytest.raises(InputError, match=r"order .* and above are not finite in float32") as error:
        series_of(nn.Sequential(nn.Linear(1, 1), nn.Tanh()), 40, 0 * x, 1e6 * x)
    assert "\n" not in str(error.value)
    steep = series_of(nn.Tanh(), 40, (0 * x).double(), (1e6 * x).double())
    assert steep.isfinite().all()


def test_batch_statistics_of_one_example_are_instance_norm():
    torch.manual_seed(0)
    model = nn.Sequential(nn.Conv2d(2, 3, 2), nn.BatchNorm2d(3), nn.Flatten()).double()
    x, v = torch.randn(2, 1, 2, 4, 4).double()
    own = nn.Sequential(model[0], nn.InstanceNorm2d(3), nn.Flatten())
    with evaluating(model, "batch") as f:
        got = taylor_terms(f, x, v, 4)
        with pytest.raises(InputError, match="couple the examples"):
            taylor_terms(f, x.expand(2, -1, -1, -1), v.expand(2, -1, -1, -1), 2)
    with evaluating(own) as f:
        torch.testing.assert_close(got, taylor_terms(f, x, v, 4), rtol=1e-11, atol=1e-12)


# What is left behind.


@pytest.mark.parametrize("around", [torch.no_grad, torch.enable_grad, torch.inference_mode])
def test_gradient_modes_do_not_matter_and_no_graph_is_kept(around):
    problem = make_problem(case_named("transformer"))  # with dropout, in training mode
    v = problem.mean - problem.x
    expected = series_of(problem.model, 4, problem.x, v)
    with around():
        x = problem.x.clone()
        got = series_of(problem.model, 4, x, v.clone())
    torch.testing.assert_close(got, expected, rtol=1e-12, atol=1e-13)
    assert not got.requires_grad
    with around():
        writing = series_of(RIGHT["views written to"], 3, X.clone(), V.clone())
    torch.testing.assert_close(writing, series_of(RIGHT["views written to"]), rtol=0, atol=0)
    asked = series_of(problem.model, 4, problem.x.clone().requires_grad_(), v)
    assert not asked.requires_grad
    assert type(asked) is torch.Tensor


@pytest.mark.parametrize("mode", ["eval", "batch"])
def test_parameters_buffers_and_inputs_stay_as_they_were(mode):
    problem = make_problem(case_named("gelu-conv-batch-norm"), n=3)
    problem.model.train()
    before = {name: t.clone() for name, t in problem.model.state_dict().items()}
    x, v = problem.x.clone(), problem.mean - problem.x
    with evaluating(problem.model, mode) as f:
        first = taylor_terms(f, problem.x, v, 1)
        again = taylor_terms(f, problem.x, v, 1)
    assert torch.equal(first, again)
    assert torch.equal(problem.x, x)
    after = problem.model.state_dict()
    assert all(torch.equal(after[name], t) for name, t in before.items())
    assert all(p.grad is None for p in problem.model.parameters())


@pytest.mark.parametrize(
    "forward",
    [
        lambda self, x: x.mul_(2).sin(),
        lambda self, x: (x.relu_(), x.sin())[1],
        lambda self, x: (x[:, :2].mul_(3.0), x.exp())[1],
    ],
)
def test_inputs_written_to_in_place_stay_as_they_were_outside(forward):
    x, v = X.clone(), V.clone()
    for order in (0, 3):
        got = series_of(written(forward), order, x, v)
        expected = forward(None, X.clone())
        torch.testing.assert_close(got[0], expected)
        assert torch.equal(x, X)
        assert torch.equal(v, V)
