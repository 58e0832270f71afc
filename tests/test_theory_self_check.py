"""The self-check must pass good networks and catch bad ones; here are both."""

import copy
import math
import threading

import pytest
import torch
from cases import case_named, every_case, every_smooth_case, make_problem
from torch import nn

from theory.errors import InputError
from theory.network import SafeNesting
from theory.self_check import derivative_self_check

LIMIT = 1e-6


def check(problem, model=None, **options):
    return derivative_self_check(
        model or problem.model,
        problem.x,
        problem.targets,
        problem.mean,
        head=problem.head,
        **options,
    )


@every_case
def test_good_networks_pass_at_first_order(case):
    got = check(make_problem(case))
    assert got.samples == 4
    assert len(got.errors) == len(got.steps) == len(got.kinks) == 1
    assert max(got.errors) < LIMIT
    assert got.kinks == (0,)
    assert got.q_dtype_error == 0


@every_smooth_case
def test_good_smooth_networks_pass_to_third_order(case):
    got = check(make_problem(case), order=3)
    assert len(got.errors) == 3
    assert max(got.errors) < LIMIT


@pytest.mark.parametrize("name", ["gelu-conv-batch-norm", "inplace-residual"])
def test_good_networks_pass_with_batch_statistics(name):
    assert max(check(make_problem(case_named(name), n=5), batch_norm="batch").errors) < LIMIT


class WrongBackward(torch.autograd.Function):
    """Sine, whose backward and jvp are those of a sine with 1 % more slope."""

    @staticmethod
    def forward(z):
        return z.sin()

    @staticmethod
    def setup_context(ctx, inputs, output):
        (z,) = inputs
        ctx.save_for_backward(z)
        ctx.save_for_forward(z)

    @staticmethod
    def backward(ctx, gradient):
        (z,) = ctx.saved_tensors
        return 1.01 * z.cos() * gradient

    @staticmethod
    def jvp(ctx, tangent):
        (z,) = ctx.saved_tensors
        return z.cos() * tangent


class WrongJvp(WrongBackward):
    @staticmethod
    def backward(ctx, gradient):
        (z,) = ctx.saved_tensors
        return z.cos() * gradient

    @staticmethod
    def jvp(ctx, tangent):
        (z,) = ctx.saved_tensors
        return 1.01 * z.cos() * tangent


class WithFunction(nn.Module):
    def __init__(self, function):
        super().__init__()
        self.first, self.function, self.second = nn.Linear(5, 6), function, nn.Linear(6, 4)

    def forward(self, x):
        return self.second(self.function(self.first(x)))


def with_function(function):
    torch.manual_seed(0)
    return WithFunction(function).double()


def test_the_right_function_passes_so_that_the_wrong_ones_count():
    assert max(check(make_problem(case_named("tanh-mlp")), with_function(torch.sin)).errors) < 1e-8


def test_a_wrong_backward_is_caught():
    """One per cent in one operation of the vjp route, that of first order."""
    got = check(make_problem(case_named("tanh-mlp")), with_function(WrongBackward.apply))
    assert got.kinks == (0,)
    assert 1e-3 < got.errors[0] < 0.1


def test_a_wrong_jvp_is_caught_where_the_jvp_is_used():
    problem = make_problem(case_named("tanh-mlp"))
    model = with_function(WrongJvp.apply)
    assert check(problem, model).errors[0] < LIMIT  # the vjp is right
    got = check(problem, model, batch_norm="batch")
    assert got.kinks == (0,)
    assert 1e-3 < got.errors[0] < 0.1


def test_a_detached_part_is_caught():
    """Autodiff sees nothing of it, the loss does."""
    got = check(make_problem(case_named("tanh-mlp")), with_function(lambda z: z * z.detach()))
    assert got.errors[0] > 0.1


def test_wrong_second_derivatives_of_pytorch_would_be_caught(monkeypatch):
    """Without `SafeNesting` layer norm's error shows, or PyTorch has mended it."""
    problem = make_problem(case_named("layer-norm"))
    assert max(check(problem, order=2).errors) < LIMIT
    monkeypatch.setattr(SafeNesting, "_replacements", {})
    error = check(problem, order=2).errors[1]
    assert error < LIMIT or error > 1e-3


class SinglePrecisionInside(nn.Module):
    def __init__(self, back):
        super().__init__()
        self.fc, self.back = nn.Linear(5, 4), back

    def forward(self, x):
        z = self.fc(x).float().tanh()
        return z.to(x.dtype) if self.back else z


def test_logits_in_single_precision_are_refused_in_one_line():
    problem = make_problem(case_named("tanh-mlp"))
    with pytest.raises(InputError, match="fixed precision below float64") as caught:
        check(problem, SinglePrecisionInside(back=False).double())
    assert "\n" not in str(caught.value)


def test_single_precision_hidden_inside_shows_as_an_error():
    problem = make_problem(case_named("tanh-mlp"))
    torch.manual_seed(0)
    assert check(problem, SinglePrecisionInside(back=True).double()).errors[0] > LIMIT


def test_the_error_of_single_precision_is_reported_apart():
    problem = make_problem(case_named("gelu-conv-batch-norm"))
    got = derivative_self_check(
        copy.deepcopy(problem.model).float(),
        problem.x.float(),
        problem.targets.float(),
        problem.mean.float(),
    )
    assert max(got.errors) < LIMIT
    assert 1e-9 < got.q_dtype_error < 1e-4


def test_an_example_on_a_kink_is_counted_and_left_out():
    """Zeros into a bias-free ReLU layer: both sides have a slope, and they differ."""
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(3, 8, bias=False), nn.ReLU(), nn.Linear(8, 3)).double()
    x = torch.randn(4, 3).double()
    x[1] = 0
    y = torch.eye(3).double()[[0, 1, 2, 0]]
    got = derivative_self_check(model, x, y, torch.ones(3).double())
    assert got.kinks == (1,)
    assert got.errors[0] < LIMIT
    alone = derivative_self_check(model, x[1:2], y[1:2], torch.ones(3).double())
    assert alone.kinks == (1,)
    assert math.isnan(alone.errors[0])


@pytest.mark.parametrize("distance", [1e-2, 1e-4, 1e-6])
def test_an_example_near_a_kink_is_compared_at_a_shorter_step(distance):
    model = nn.Sequential(nn.Linear(1, 2), nn.ReLU(), nn.Linear(2, 2)).double()
    with torch.no_grad():
        for p, value in zip(
            model.parameters(),
            ([[1.0], [-1.0]], [0.0, 0.5], [[1.0, 0.3], [-1.0, 2.0]], [0.1, -0.1]),
            strict=True,
        ):
            p.copy_(torch.tensor(value))
    x = torch.tensor([[distance], [-distance]]).double()  # the first unit turns at 0
    y = torch.eye(2).double()
    got = derivative_self_check(model, x, y, torch.ones(1).double())
    assert got.kinks == (0,)
    assert got.errors[0] < LIMIT


def test_the_model_is_left_untouched():
    problem = make_problem(case_named("gelu-conv-batch-norm"))
    before = copy.deepcopy(problem.model.state_dict())
    check(problem, order=2)
    assert problem.model.training
    for name, tensor in problem.model.state_dict().items():
        assert torch.equal(tensor, before[name])
        assert tensor.dtype == before[name].dtype


@pytest.mark.parametrize(
    "held", [torch.ones(1, requires_grad=True) * 2, threading.Lock()], ids=["graph", "lock"]
)
def test_a_model_that_cannot_be_copied_is_refused_in_one_line(held):
    model = nn.Linear(5, 4).double()
    model.held = held
    with pytest.raises(InputError, match="cannot be copied to float64") as caught:
        check(make_problem(case_named("tanh-mlp")), model)
    assert "\n" not in str(caught.value)


def test_orders_above_one_with_batch_statistics_are_refused():
    with pytest.raises(InputError, match="batch statistics are refused"):
        check(make_problem(case_named("gelu-conv-batch-norm"), n=5), batch_norm="batch", order=2)


def test_high_orders_are_not_mistaken_for_kinks():
    """Fourth and higher derivatives of a nearly linear network are too small to be differenced."""
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(20, 64), nn.ReLU(), nn.Linear(64, 64), nn.ReLU(),
                          nn.Linear(64, 3))  # fmt: skip
    x, y = torch.randn(4, 20), torch.eye(3)[torch.tensor([0, 1, 2, 0])]
    result = derivative_self_check(model, x, y, torch.zeros(20), order=6)
    assert len(result.errors) == 3
    assert result.kinks == (0, 0, 0)
    assert max(result.errors) < 1e-6


@pytest.mark.parametrize("activation", [nn.Tanh, nn.GELU])
@pytest.mark.parametrize("scale", [1, 60, 200])
def test_rounding_of_steep_smooth_networks_is_not_mistaken_for_a_kink(activation, scale):
    """Their higher derivatives are sums of large numbers, far less exact than their size says."""
    for seed in range(4):
        torch.manual_seed(seed)
        model = nn.Sequential(nn.Linear(20, 64), activation(), nn.Linear(64, 64), activation(),
                              nn.Linear(64, 3))  # fmt: skip
        model[0].weight.data.mul_(scale)
        x, y = torch.randn(4, 20), torch.eye(3)[torch.tensor([0, 1, 2, 0])]
        result = derivative_self_check(model, x, y, torch.zeros(20), order=3)
        assert result.kinks == (0, 0, 0)
        assert max(result.errors) < LIMIT


@pytest.mark.parametrize("slope", [1e-6, 1.0, 1e6])
def test_a_kink_is_found_beside_much_that_is_smooth(slope):
    """|x| of any size on top of a tanh network, at 0."""

    class Kinked(nn.Module):
        def __init__(self):
            super().__init__()
            self.smooth = nn.Sequential(nn.Linear(3, 16), nn.Tanh(), nn.Linear(16, 2))

        def forward(self, x):
            return self.smooth(x) + slope * x[:, :1].abs() * torch.tensor([1.0, -1.0]).to(x)

    torch.manual_seed(0)
    model = Kinked().double()
    x = torch.randn(4, 3).double()
    x[2, 0] = 0
    y = torch.eye(2).double()[[0, 1, 0, 1]]
    result = derivative_self_check(model, x, y, torch.ones(3).double())
    assert result.kinks == (1,)
    assert result.errors[0] < LIMIT
