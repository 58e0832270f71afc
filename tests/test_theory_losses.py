"""The losses against 50-digit arithmetic, PyTorch's own losses and automatic differentiation."""

import inspect

import mpmath as mp
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from oracles import exact_rows, mp_hessian, mp_loss, mp_partition, mp_probabilities, plain_loss
from torch.func import hessian, jacrev, jvp, vmap

from theory.errors import InputError
from theory.losses import HEADS, as_targets, log_partition, loss, loss_hessian, probabilities

HUGE_LOGITS = torch.tensor(
    [
        [1e4, -1e4, 0.0],
        [-1e4, -1e4, -1e4],
        [1e4, 1e4, 1e4],
        [1e4, 1e4 - 1, 1e4 - 30],
        [40.0, 0.0, -40.0],
        [25.0, 20.5, 21.0],  # where F.softplus has gone over to the identity
        [1e-9, -1e-9, 0.0],
        [0.5, -2.0, 700.0],
    ],
    dtype=torch.float64,
)
TARGETS = {
    "softmax": torch.tensor([[0.0, 1.0, 0.0], [0.25, 0.5, 0.25]], dtype=torch.float64),
    "sigmoid": torch.tensor([[0.0, 1.0, 0.0], [1.0, 0.125, 0.75]], dtype=torch.float64),
}


def close(got, truth, rel=1e-13, absolute=0.0):
    return abs(mp.mpf(float(got)) - truth) <= rel * abs(truth) + absolute


@st.composite
def problems(draw, scale=1e4):
    """A head with logits and soft targets of any size."""
    head = draw(st.sampled_from(HEADS))
    batch, classes = draw(st.integers(1, 4)), draw(st.integers(1, 6))
    numbers = st.floats(-scale, scale, allow_subnormal=False)
    logits = draw(st.lists(numbers, min_size=batch * classes, max_size=batch * classes))
    shares = draw(st.lists(st.integers(0, 8), min_size=batch * classes, max_size=batch * classes))
    y = torch.tensor(shares, dtype=torch.float64).reshape(batch, classes) / 8
    if head == "softmax":
        y[y.sum(1) == 0, 0] = 1.0
        y = y / y.sum(1, keepdim=True)
    return head, torch.tensor(logits, dtype=torch.float64).reshape(batch, classes), y


@pytest.mark.parametrize("head", HEADS)
def test_loss_and_partition_are_right_at_logits_of_ten_thousand(head):
    for y in TARGETS[head]:
        targets = y.expand(len(HUGE_LOGITS), -1)
        values = loss(HUGE_LOGITS, targets, head)
        partition = log_partition(HUGE_LOGITS, head)
        for row, value, h in zip(exact_rows(HUGE_LOGITS), values, partition, strict=True):
            truth = mp_loss(row, exact_rows(y[None])[0], head)
            # log(1 + tiny) of a softmax is good to float64's absolute rounding.
            assert close(value, truth, absolute=0 if head == "sigmoid" else 3e-16)
            assert close(h, mp_partition(row, head), absolute=3e-16)


@pytest.mark.parametrize("head", HEADS)
def test_g_and_every_entry_of_h_keep_their_relative_accuracy(head):
    """Also those entries that are 1e-40: none is the difference of two large numbers."""
    for row, g, h in zip(
        exact_rows(HUGE_LOGITS),
        probabilities(HUGE_LOGITS, head),
        loss_hessian(HUGE_LOGITS, head),
        strict=True,
    ):
        truth = mp_probabilities(row, head)
        assert all(close(a, b, absolute=1e-300) for a, b in zip(g, truth, strict=True))
        for got, wanted in zip(h, mp_hessian(row, head), strict=True):
            assert all(close(a, b, absolute=1e-300) for a, b in zip(got, wanted, strict=True))


@given(problem=problems())
@settings(max_examples=60)
def test_loss_equals_pytorchs_and_its_gradient_is_g_minus_y(problem):
    head, logits, y = problem
    logits = logits.clone().requires_grad_()
    value = loss(logits, y, head)
    torch.testing.assert_close(value, plain_loss(logits, y, head), rtol=1e-12, atol=1e-8)
    (gradient,) = torch.autograd.grad(value.sum(), logits)
    wanted = probabilities(logits.detach(), head) - y
    torch.testing.assert_close(gradient, wanted, rtol=0, atol=1e-14)


@given(problem=problems())
@settings(max_examples=40)
def test_loss_equals_partition_minus_label_times_logit(problem):
    head, logits, y = problem
    written_out = log_partition(logits, head) - (y * logits).sum(1)
    torch.testing.assert_close(loss(logits, y, head), written_out, rtol=1e-12, atol=1e-10)
    for row, label, value in zip(
        exact_rows(logits), exact_rows(y), loss(logits, y, head), strict=True
    ):
        assert close(value, mp_loss(row, label, head), absolute=3e-16)


@given(problem=problems(scale=30))
@settings(max_examples=30)
def test_g_and_h_are_the_first_two_derivatives_of_the_partition(problem):
    head, logits, y = problem

    def h_of(row):
        return log_partition(row[None], head)[0]

    def loss_of(row, label):
        return loss(row[None], label[None], head)[0]

    g, hessians = probabilities(logits, head), loss_hessian(logits, head)
    torch.testing.assert_close(vmap(jacrev(h_of))(logits), g, rtol=1e-12, atol=1e-14)
    torch.testing.assert_close(vmap(hessian(h_of))(logits), hessians, rtol=1e-10, atol=1e-13)
    # y drops out: the loss has the same Hessian.
    torch.testing.assert_close(vmap(hessian(loss_of))(logits, y), hessians, rtol=1e-10, atol=1e-13)


@pytest.mark.parametrize("head", HEADS)
def test_third_derivative_by_nested_jvp_is_right_near_zero_and_finite_far_away(head):
    y, v = TARGETS[head][:1], torch.tensor([[1.0, -0.5, 0.25]], dtype=torch.float64)

    def derivative(start, order):
        def curve(a):
            return loss(start[None] + a * v, y, head)

        for _ in range(order):
            curve = (lambda inner: lambda a: jvp(inner, (a,), (torch.ones_like(a),))[1])(curve)
        return float(curve(torch.zeros((), dtype=torch.float64)))

    start = torch.tensor([0.3, -1.2, 2.0], dtype=torch.float64)
    direction, label = exact_rows(v)[0], exact_rows(y)[0]
    truth = mp.diff(
        lambda a: mp_loss(
            [z + a * d for z, d in zip(exact_rows(start[None])[0], direction, strict=True)],
            label,
            head,
        ),
        0,
        3,
    )
    assert close(derivative(start, 3), truth, rel=1e-12)
    for row in HUGE_LOGITS[:4]:
        assert abs(derivative(row, 3)) < 1


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize("head", HEADS)
def test_nothing_overflows_in_either_precision(dtype, head):
    logits = HUGE_LOGITS.to(dtype).requires_grad_()
    targets = TARGETS[head][:1].expand(len(logits), -1).to(dtype)
    value = loss(logits, targets, head)
    (gradient,) = torch.autograd.grad(value.sum(), logits)
    for tensor in (value, gradient, log_partition(logits, head), loss_hessian(logits, head)):
        assert tensor.dtype == dtype
        assert torch.isfinite(tensor).all()


@pytest.mark.parametrize("function", [log_partition, probabilities])
def test_an_unknown_head_is_refused(function):
    # The annotation forbids it under test; the plain function, as users call it, explains.
    with pytest.raises(InputError, match="unknown head 'hinge'"):
        inspect.unwrap(function)(torch.zeros(1, 2), "hinge")


def test_class_indices_become_unit_rows():
    rows = as_targets(torch.tensor([2, 0], dtype=torch.int32), 3)
    assert rows.tolist() == [[0, 0, 1], [1, 0, 0]]
    assert rows.dtype == torch.float32
    assert as_targets(torch.tensor([1]), 2, dtype=torch.float64).dtype == torch.float64


def test_one_logit_takes_two_classes_or_a_vector_of_probabilities():
    assert as_targets(torch.tensor([0, 1]), 1, "sigmoid").tolist() == [[0], [1]]
    assert as_targets(torch.tensor([0.25, 1.0]), 1, "sigmoid").tolist() == [[0.25], [1]]
    assert as_targets(torch.tensor([[0.25], [1.0]]), 1, "sigmoid").tolist() == [[0.25], [1]]


def test_probability_rows_pass_unchanged():
    rows = torch.tensor([[0.2, 0.8], [1.0, 0.0]])
    assert torch.equal(as_targets(rows, 2), rows)
    several = torch.tensor([[1.0, 1.0], [0.0, 0.0]])
    assert torch.equal(as_targets(several, 2, "sigmoid"), several)


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_rows_in_half_precision_sum_to_one_within_its_rounding(dtype):
    generator = torch.Generator().manual_seed(0)
    exact = torch.randn(50, 3, generator=generator).softmax(1)
    rows = exact.to(dtype)
    assert ((rows.double().sum(1) - 1).abs() > 1.1e-4).any()
    targets = as_targets(rows, 3)
    torch.testing.assert_close(targets.sum(1), torch.ones(50))
    torch.testing.assert_close(targets, exact, rtol=2 * torch.finfo(dtype).eps, atol=0)
    with pytest.raises(InputError, match="do not sum to one"):
        as_targets((exact * 0.98).to(dtype), 3)


def test_no_labels_at_all_give_no_rows():
    assert as_targets(torch.zeros(0, dtype=torch.long), 3).shape == (0, 3)


NAN = float("nan")


@pytest.mark.parametrize(
    ("labels", "classes", "head", "message"),
    [
        (torch.tensor([0, 1]), 1, "softmax", "single logit needs the sigmoid head"),
        (torch.tensor([0, 3]), 3, "softmax", "labels run from 0 to 3, outside 0…2"),
        (torch.tensor([-1, 1]), 3, "softmax", "labels run from -1 to 1"),
        (torch.tensor([0, 2]), 1, "sigmoid", "outside 0…1: the model has 1 logits"),
        (torch.tensor([0.5, 0.5]), 2, "softmax", "pass integer class indices or probability rows"),
        (torch.tensor([[0.5, 0.5]]), 3, "softmax", "probability rows of 3 columns"),
        (torch.tensor([[0.5, 0.5]]), 1, "sigmoid", "probability rows of 1 columns"),
        (torch.tensor([[1.5, -0.5]]), 2, "softmax", r"outside \[0, 1\] or NaN"),
        (torch.tensor([[NAN, 0.5]]), 2, "sigmoid", r"outside \[0, 1\] or NaN"),
        (torch.tensor([[0.5, 0.4]]), 2, "softmax", "do not sum to one"),
    ],
)
def test_labels_that_cannot_be_targets_are_refused_in_one_line(labels, classes, head, message):
    with pytest.raises(InputError, match=message) as caught:
        as_targets(labels, classes, head)
    assert "\n" not in str(caught.value)


def test_integer_rows_and_an_unknown_head_are_refused():
    matrix = torch.tensor([[0, 1]])
    with pytest.raises(InputError, match=r"shape \(1, 2\): pass one index an example"):
        inspect.unwrap(as_targets)(matrix, 2)
    with pytest.raises(InputError, match="unknown head"):
        inspect.unwrap(as_targets)(torch.tensor([0]), 2, "hinge")
