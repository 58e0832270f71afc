"""A module as a function: what is handed out, what is given back, and what is refused."""

import copy
import inspect

import pytest
import torch
import torch.nn.functional as F
from cases import case_named, every_case, make_problem
from oracles import central_second
from torch import nn

from theory.errors import InputError
from theory.first_order import directional_q, first_order, loss_gradient
from theory.network import SafeNesting, evaluating, logits_function

X = torch.randn(3, 2, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
Y = torch.eye(3, dtype=torch.float64)[:, :2] * 0.5 + 0.25


class Returns(nn.Module):
    """A model with the output that a function makes of its input."""

    def __init__(self, function):
        super().__init__()
        self.function = function

    def forward(self, x):
        return self.function(x)


@every_case
def test_every_network_gives_a_matrix_of_logits(case):
    problem = make_problem(case)
    with evaluating(problem.model) as f:
        assert f(problem.x).shape == (len(problem.x), case.classes)


@pytest.mark.parametrize(
    ("function", "message"),
    [
        (lambda x: (x, x), "returns tuple, not a tensor"),
        (lambda x: {"logits": x}, "returns dict, not a tensor"),
        (lambda x: x.sum(), r"returns shape \(\) for a batch of 3"),
        (lambda x: x[:, :, None], r"returns shape \(3, 2, 1\)"),
        (lambda x: x.T, r"returns shape \(2, 3\)"),
        (lambda x: x[0], r"returns shape \(2,\)"),
        (lambda x: x @ torch.zeros(5, 1, dtype=x.dtype), r"cannot take a batch of shape \(3, 2\)"),
        (lambda x: x @ torch.zeros(2, 1), "cannot take a batch"),
        (lambda x: torch.cat(x, x), "cannot take a batch"),
        (lambda x: x[:, 2], "cannot take a batch"),
        (lambda x: F.interpolate(x, scale_factor=2.0), "cannot take a batch"),
        (lambda x: nn.MultiheadAttention(2, 1)(x, x[None], x), "cannot take a batch"),
    ],
)
def test_a_model_without_logits_is_refused_in_one_line(function, message):
    with pytest.raises(InputError, match=message) as caught:
        logits_function(Returns(function))(X)
    assert "\n" not in str(caught.value)


def state(model):
    """All that `evaluating` could have changed."""
    return (
        {name: module.training for name, module in model.named_modules()},
        {
            name: (id(tensor), tensor.clone())
            for name, tensor in (*model.named_parameters(), *model.named_buffers())
        },
        [len(module._forward_hooks) for module in model.modules()],
        torch.backends.mha.get_fastpath_enabled(),
        torch.backends.cuda.math_sdp_enabled(),
        torch.backends.cuda.flash_sdp_enabled(),
    )


def assert_same_state(before, after):
    assert before[0] == after[0]
    assert before[2:] == after[2:]
    assert before[1].keys() == after[1].keys()
    for name, (identity, tensor) in before[1].items():
        assert after[1][name][0] == identity
        assert torch.equal(after[1][name][1], tensor)


def fail_inside(problem, mode):
    with evaluating(problem.model, mode) as f:
        f(problem.x)
        raise KeyError


@every_case
@pytest.mark.parametrize("mode", ["eval", "batch"])
def test_the_model_is_left_as_it_was_also_after_an_exception(case, mode):
    problem = make_problem(case)
    next(problem.model.children()).eval()  # a part that the user froze
    before = state(problem.model)
    with evaluating(problem.model, mode) as f:
        f(problem.x)
        assert not any(module.training for module in problem.model.modules())
    assert_same_state(before, state(problem.model))
    with pytest.raises(KeyError):
        fail_inside(problem, mode)
    assert_same_state(before, state(problem.model))


def test_batch_mode_equals_training_mode_without_dropout_and_updates_nothing():
    problem = make_problem(case_named("gelu-conv-batch-norm"))
    trained = copy.deepcopy(problem.model).train()
    for module in trained.modules():
        if isinstance(module, nn.Dropout):
            module.p = 0.0
    with evaluating(problem.model, "batch") as f:
        torch.testing.assert_close(f(problem.x), trained(problem.x), rtol=1e-12, atol=1e-14)
    with evaluating(problem.model) as f:
        torch.testing.assert_close(
            f(problem.x), problem.model.eval()(problem.x), rtol=1e-12, atol=0
        )
        assert not torch.allclose(f(problem.x), trained(problem.x), rtol=1e-3)


def test_a_compiled_model_is_read_as_it_stands():
    """Compiled graphs have no second derivatives and do not notice hooks."""
    net = nn.Sequential(nn.Linear(2, 4), nn.Tanh(), nn.Linear(4, 2)).double()
    compiled, mean, seen = Returns(net), X.mean(0), []
    torch._dynamo.reset()
    compiled.compile(backend="aot_eager")
    compiled(X)  # into a graph without hooks
    results = []
    for model in (Returns(net), compiled):
        handle = net[1].register_forward_hook(lambda *_: seen.append(1))
        with evaluating(model) as f:
            q = first_order(f, X, Y, mean, create_graph=True).q
        handle.remove()
        results.append(torch.autograd.grad(q.sum(), net[0].weight)[0])
    assert torch.equal(*results)
    assert len(seen) == 2


def test_an_unknown_batch_norm_mode_is_refused():
    # The annotation forbids it under test; the plain function, as users call it, explains.
    with pytest.raises(InputError, match="unknown batch-norm mode 'train'"):
        next(inspect.unwrap(evaluating)(nn.Linear(2, 2), "train"))


class NoForwardRule(torch.autograd.Function):
    """Squares; has a backward and no jvp."""

    @staticmethod
    def forward(ctx, z):
        ctx.save_for_backward(z)
        return z * z

    @staticmethod
    def backward(ctx, gradient):
        (z,) = ctx.saved_tensors
        return 2 * z * gradient


class NoRules(torch.autograd.Function):
    """Squares; has neither backward nor jvp."""

    @staticmethod
    def forward(ctx, z):
        return z * z


def with_function(function):
    torch.manual_seed(0)
    return nn.Sequential(nn.Linear(2, 4), Returns(function), nn.Linear(4, 2)).double()


def test_an_operation_without_a_forward_rule_is_named_by_the_jvp_route_only():
    plain = with_function(lambda z: z * z)
    custom = with_function(NoForwardRule.apply)
    mean = X.mean(0)
    with evaluating(plain) as f, evaluating(custom) as g:
        torch.testing.assert_close(first_order(g, X, Y, mean).q, first_order(f, X, Y, mean).q)
        with pytest.raises(InputError, match="no derivative rule") as caught:
            directional_q(g, X, Y, mean - X)
    assert "\n" not in str(caught.value)


def test_an_operation_without_any_rule_is_refused():
    with evaluating(with_function(NoRules.apply)) as f:
        for refused in (
            lambda: loss_gradient(f, X, Y),
            lambda: directional_q(f, X, Y, -X),
        ):
            with pytest.raises(InputError, match="no derivative rule") as caught:
                refused()
            assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    "function",
    [
        lambda x: x.detach(),
        lambda x: (x > 0).to(x.dtype),
        lambda x: torch.from_numpy(x.detach().numpy().copy()),
    ],
    ids=["detach", "step", "numpy"],
)
@pytest.mark.parametrize("trainable", [True, False])
def test_logits_that_do_not_depend_on_the_input_differentiably_are_refused(function, trainable):
    model = nn.Sequential(Returns(function), nn.Linear(2, 2).double()).requires_grad_(trainable)
    with (
        evaluating(model) as f,
        pytest.raises(InputError, match="do not depend on the input") as caught,
    ):
        first_order(f, X, Y, X.mean(0))
    assert "\n" not in str(caught.value)


def nested_second(curve):
    start = torch.zeros((), dtype=torch.float64)
    one = torch.ones_like(start)

    def slope(a):
        return torch.func.jvp(curve, (a,), (one,))[1]

    return torch.func.jvp(slope, (start,), (one,))[1]


IMAGES = torch.randn(3, 4, 5, 6, generator=torch.Generator().manual_seed(1), dtype=torch.float64)
DIRECTIONS = torch.randn(
    3, 4, 5, 6, generator=torch.Generator().manual_seed(2), dtype=torch.float64
)
SCALE, SHIFT = torch.linspace(0.5, 1.5, 4).double(), torch.linspace(-1, 1, 4).double()
WIDE_SCALE = torch.linspace(0.5, 1.5, 30).double().reshape(5, 6)
MOVING = (SHIFT.clone(), SCALE.clone())
NORMS = {
    "layer_norm": lambda z: F.layer_norm(z, (5, 6), WIDE_SCALE, WIDE_SCALE - 1),
    "layer_norm plain": lambda z: F.layer_norm(z, (6,), eps=0.1),
    "layer_norm module": nn.LayerNorm((5, 6), bias=False).double(),
    "torch.layer_norm": lambda z: torch.layer_norm(z, [5, 6], WIDE_SCALE, None, 1e-3),
    "instance_norm": lambda z: F.instance_norm(z, weight=SCALE, bias=SHIFT),
    "instance_norm plain": lambda z: F.instance_norm(z, eps=0.1),
    "instance_norm moving": lambda z: F.instance_norm(z, *MOVING, SCALE, SHIFT, False),
    "torch.instance_norm": lambda z: torch.instance_norm(
        z, SCALE, SHIFT, None, None, True, 0.1, 1e-5, False
    ),
    "torch.instance_norm moving": lambda z: torch.instance_norm(
        z, SCALE, SHIFT, *MOVING, False, 0.1, 1e-5, False
    ),
    "batch_norm eval": lambda z: F.batch_norm(z, *MOVING, SCALE, SHIFT),
    "torch.batch_norm eval": lambda z: torch.batch_norm(
        z, SCALE, SHIFT, *MOVING, False, 0.1, 1e-5, False
    ),
    "group_norm": lambda z: F.group_norm(z, 2, SCALE, SHIFT),
    "rms_norm": lambda z: F.rms_norm(z, (6,)),
}
every_norm = pytest.mark.parametrize("norm", NORMS.values(), ids=NORMS.keys())


@every_norm
def test_safe_nesting_changes_no_value(norm):
    with SafeNesting():
        replaced = norm(IMAGES)
    torch.testing.assert_close(replaced, norm(IMAGES), rtol=1e-12, atol=1e-13)


@every_norm
def test_safe_nesting_makes_second_derivatives_right(norm):
    def curve(a):
        return norm(IMAGES + a * DIRECTIONS).sin()

    with SafeNesting():
        nested = nested_second(curve)
    torch.testing.assert_close(nested, central_second(curve), rtol=1e-6, atol=1e-7)


@pytest.mark.parametrize(
    "norm",
    [
        lambda z: F.batch_norm(z, None, None, training=True),
        lambda z: F.batch_norm(z, *MOVING, SCALE, SHIFT, training=True, momentum=0.0),
        lambda z: torch.batch_norm(z, SCALE, SHIFT, None, None, True, 0.1, 1e-5, False),
        lambda z: nn.BatchNorm2d(4).double()(z),
    ],
)
def test_safe_nesting_refuses_batch_statistics_and_says_why(norm):
    with SafeNesting(), pytest.raises(InputError, match="wrong values there without a warning"):
        norm(IMAGES)


def test_why_safe_nesting_exists():
    """PyTorch's own nested jvp, held to the truth; passes where PyTorch has mended it.

    A mended PyTorch shows here as three true entries: `SafeNesting` can then go.
    """
    truth_and_nested = {
        name: (central_second(curve), nested_second(curve))
        for name, curve in {
            "layer_norm": lambda a: F.layer_norm(IMAGES + a * DIRECTIONS, (6,)).sin(),
            "instance_norm": lambda a: F.instance_norm(IMAGES + a * DIRECTIONS).sin(),
            "batch_norm": lambda a: F.batch_norm(
                IMAGES + a * DIRECTIONS, None, None, training=True
            ).sin(),
        }.items()
    }
    right = {
        name: torch.allclose(truth, nested, rtol=1e-5, atol=1e-6)
        for name, (truth, nested) in truth_and_nested.items()
    }
    wrong_by = {
        name: float((truth - nested).norm() / truth.norm())
        for name, (truth, nested) in truth_and_nested.items()
        if not right[name]
    }
    # Either right, or so wrong that no caller could take it for rounding.
    assert all(error > 0.01 for error in wrong_by.values()), wrong_by
