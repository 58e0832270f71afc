"""`check_approximation` as a library: whole reports against closed forms, and its bad input."""

import functools
import math

import jaxtyping
import numpy as np
import pytest
import torch
import torch.nn.functional as F
from torch import nn

from theory import InputError, Thresholds, check_approximation
from theory.expectation import Sampling
from theory.network import evaluating
from theory.regularizer import regularizer, taylor_regularizer


def data(n=12, shape=(4,), classes=3, seed=0, dtype=torch.float32):
    generator = torch.Generator().manual_seed(seed)
    x = torch.randn(n, *shape, generator=generator, dtype=dtype)
    return x, torch.arange(n) % classes


def small(seed=0, inputs=4, outputs=3):
    torch.manual_seed(seed)
    return nn.Sequential(nn.Linear(inputs, 6), nn.Tanh(), nn.Linear(6, outputs))


def test_linear_model_gives_the_closed_form_of_every_column():
    torch.manual_seed(1)
    model = nn.Linear(4, 3).double()
    x, y = data(dtype=torch.float64)
    report = check_approximation(model, [(x, y)], pair_samples=4)
    W, b = model.weight.detach().numpy(), model.bias.detach().numpy()
    X, Y = x.numpy(), np.eye(3)[y]
    f = X @ W.T + b
    g = np.exp(f) / np.exp(f).sum(1, keepdims=True)
    mean = X.mean(0)
    expected = {
        "loss": -np.log((g * Y).sum(1)),
        "q": ((g - Y) * ((mean - X) @ W.T)).sum(1),
        "q_hat": ((Y - g) * f).sum(1),
        "normalization_gap": ((g - Y) * (mean @ W.T)).sum(1),
        "homogeneity_gap": ((g - Y) * b).sum(1),
    }
    assert list(report.samples.columns) == list(expected)
    for name, column in expected.items():
        np.testing.assert_allclose(report.samples[name], column, atol=1e-12)
    layers = report.attribution.set_index("layer")
    assert layers.loc["(model)", "mean"] == pytest.approx(((g - Y) @ b).mean())
    assert layers.loc["(unattributed)", "mean_abs"] < 1e-14


def test_corrections_of_a_linear_model_have_closed_forms():
    """The last layer's bias is the whole homogeneity gap there, and the quotient is the loss's."""
    torch.manual_seed(1)
    model = nn.Linear(4, 3).double()
    x, y = data(dtype=torch.float64)
    report = check_approximation(model, [(x, y)], pair_samples=2, gradients=False)
    table = report.corrections.set_index("approximation")
    s = report.samples
    g = model(x).softmax(1).detach()
    bias = ((g - F.one_hot(y, 3)) @ model.bias.detach()).numpy()
    start = F.cross_entropy(model(x), y, reduction="none")
    moved = F.cross_entropy(model(x + 0.01 * (x.mean(0) - x)), y, reduction="none")
    truth = {
        "q̂": s["q_hat"],
        "q̂ + last layer's bias": s["q_hat"] + bias,
        "difference quotient": ((moved - start) / 0.01).detach().numpy(),
        "q̂ + normalisation gap": s["q"] - bias,
        "q̂ + shares of all layers": s["q_hat"] + bias,
        "exact q": s["q"],
    }
    assert list(table.index) == list(truth)
    for name, values in truth.items():
        error = np.linalg.norm(s["q"] - values) / np.linalg.norm(s["q"])
        assert table["relative_error"][name] == pytest.approx(error, rel=1e-9, abs=1e-12)
        assert table["pearson"][name] == pytest.approx(np.corrcoef(s["q"], values)[0, 1])
        slope = np.polyfit(values, s["q"], 1)[0]
        assert table["slope"][name] == pytest.approx(slope, rel=1e-8)
    assert (table["forwards"] < table["penalty_forwards"]).all()


def test_on_centred_data_the_shares_of_all_layers_mend_q_hat_and_the_last_one_does_not():
    torch.manual_seed(3)
    model = nn.Sequential(nn.Linear(4, 8), nn.BatchNorm1d(8), nn.GELU(), nn.Linear(8, 3)).double()
    x, y = data(dtype=torch.float64)
    report = check_approximation(
        model, [(x - x.mean(0), y)], pair_samples=2, batch_size=5, gradients=False
    )
    error = report.corrections.set_index("approximation")["relative_error"]
    assert error["q̂ + shares of all layers"] < 1e-12
    assert error["q̂ + last layer's bias"] > 0.01
    assert error["q̂ + normalisation gap"] == pytest.approx(error["q̂"], rel=1e-9)


def test_a_correction_that_cannot_be_had_has_no_row():
    """No last bias; no shares by example in batch mode, where the last layer still has its own."""
    torch.manual_seed(0)
    bare = nn.Sequential(nn.Linear(4, 6), nn.Tanh(), nn.Linear(6, 3, bias=False))
    options = {"pair_samples": 2, "gradients": False}
    names = check_approximation(bare, [data()], **options).corrections["approximation"]
    assert "q̂ + last layer's bias" not in set(names)
    assert "q̂ + shares of all layers" in set(names)
    normed = nn.Sequential(nn.Linear(4, 6), nn.BatchNorm1d(6), nn.ReLU(), nn.Linear(6, 3))
    report = check_approximation(normed, [data()], batch_norm="batch", **options)
    names = report.corrections["approximation"]
    assert "q̂ + shares of all layers" not in set(names)
    assert "q̂ + last layer's bias" in set(names)


def test_theorem_1_holds_to_rounding_on_a_smooth_net():
    report = check_approximation(
        small().double(), [data(dtype=torch.float64)], pair_samples=6, nodes=24, alpha=0.2, beta=1.5
    )
    assert report.regularizer["identity_error"] < 1e-10
    assert report.claims["identity"].verdict == "HOLDS"
    assert report.claims["identity"].threshold < 1e-9


def test_q_hat_is_exact_where_both_assumptions_are_true():
    """A bias-free ReLU net on data of mean zero: q̂ = q, both gaps vanish, every verdict HOLDS."""
    torch.manual_seed(2)
    model = nn.Sequential(nn.Linear(4, 16, bias=False), nn.ReLU(), nn.Linear(16, 3, bias=False))
    half, y = data(n=10, dtype=torch.float64)
    x = torch.cat([half, -half])
    report = check_approximation(model.double(), [(x, torch.cat([y, y]))], pair_samples=5)
    assert report.claims["q_hat"].value < 1e-12
    for name in ("normalization", "homogeneity", "q_hat", "gradient", "self_check", "identity"):
        assert report.claims[name].verdict == "HOLDS"
    assert report.agreement["value"]["slope"] == pytest.approx(1)


def test_batches_iterables_and_label_forms_do_not_matter():
    x, y = data()
    model = small()
    whole = check_approximation(model, [(x, y)], pair_samples=3)
    rows = F.one_hot(y, 3).float()
    loader = torch.utils.data.DataLoader(torch.utils.data.TensorDataset(x, rows), batch_size=5)
    for other in (loader, (pair for pair in [(x[:1], rows[:1]), (x[1:], rows[1:])])):
        report = check_approximation(model, other, pair_samples=3, batch_size=7)
        np.testing.assert_allclose(report.samples, whole.samples, atol=1e-6)


def test_given_mean_replaces_that_of_the_data():
    x, y = data()
    report = check_approximation(small(), [(x, y)], mean=torch.zeros(4), pair_samples=2)
    assert (report.samples["normalization_gap"] == 0).all()
    assert report.settings["mean"] == "given"


def test_default_mean_is_that_of_all_batches():
    x, y = data()
    model = small()
    one = check_approximation(model, [(x[:3], y[:3]), (x[3:], y[3:])], pair_samples=2)
    two = check_approximation(model, [(x, y)], mean=x.mean(0), pair_samples=2)
    np.testing.assert_allclose(one.samples, two.samples, atol=1e-6)


class SingleLogit(nn.Module):
    def __init__(self):
        super().__init__()
        self.linear = nn.Linear(4, 1)

    def forward(self, x):
        return torch.sigmoid(self.linear(x)).squeeze(1) * 3 - self.linear(x).squeeze(1)


def test_single_logit_of_shape_batch_with_functional_operations():
    x, y = data(classes=2)
    model = SingleLogit()
    report = check_approximation(model, [(x, y)], head="sigmoid", pair_samples=3)
    logits = model(x).detach()
    expected = F.binary_cross_entropy_with_logits(logits, y.float(), reduction="none")
    np.testing.assert_allclose(report.samples["loss"], expected, rtol=1e-5)
    gap = report.samples["homogeneity_gap"].mean()
    assert report.attribution["mean"].sum() == pytest.approx(gap, abs=1e-6)
    rest = report.attribution.set_index("layer").loc["(unattributed)"]
    assert rest["mean_abs"] > 1e-3  # the functional sigmoid is seen by no hook


def test_images_and_sequences_work():
    torch.manual_seed(0)
    conv = nn.Sequential(
        nn.Conv2d(1, 2, 3), nn.BatchNorm2d(2), nn.GELU(), nn.AdaptiveAvgPool2d(1), nn.Flatten(),
        nn.Linear(2, 3),
    )  # fmt: skip
    x, y = data(shape=(1, 6, 6))
    assert check_approximation(conv, [(x, y)], pair_samples=2).claims["self_check"].value < 1e-6

    class Attention(nn.Module):
        def __init__(self):
            super().__init__()
            self.encoder = nn.TransformerEncoderLayer(4, 2, 8, batch_first=True)
            self.head = nn.Linear(4, 3)

        def forward(self, x):
            return self.head(self.encoder(x).mean(1))

    x, y = data(shape=(5, 4))
    report = check_approximation(Attention(), [(x, y)], order=2, pair_samples=2)
    assert report.claims["self_check"].verdict == "HOLDS"
    assert report.claims["gradient"].verdict != "NOT MEASURED"
    assert len(report.orders["composite"]) == 2


@pytest.mark.parametrize("kind", [nn.LSTM, nn.GRU])
def test_recurrent_networks_work_to_second_order_and_close(kind):
    class Recurrent(nn.Module):
        def __init__(self):
            super().__init__()
            self.recurrent = kind(4, 5, batch_first=True)
            self.head = nn.Linear(5, 3)

        def forward(self, x):
            return self.head(self.recurrent(x)[0][:, -1])

    torch.manual_seed(0)
    x, y = data(shape=(6, 4), dtype=torch.float64)
    report = check_approximation(Recurrent().double(), [(x, y)], order=2, pair_samples=2)
    assert report.claims["self_check"].verdict == "HOLDS"
    assert report.claims["gradient"].verdict != "NOT MEASURED"
    assert report.attribution.set_index("layer").loc["(unattributed)", "mean_abs"] < 1e-14


def test_first_order_claim_is_about_all_samples_and_its_interval_holds_the_exact_value():
    """R over all 12 samples by quadrature, where the identity is checked on 3 of them."""
    model = small().double()
    with torch.no_grad():
        model[2].weight *= 5
    x, _ = data(dtype=torch.float64)
    y = model(x).argmax(1)  # so that the loss rises along segments and R is no small difference
    report = check_approximation(model, [(x, y)], pair_samples=3, gradients=False, tolerance=0.05)
    with evaluating(model) as f:
        targets = F.one_hot(y, 3).double()
        r = float(regularizer(f, x, targets, alpha=1.0, nodes=40).mean())
        r_1 = float(taylor_regularizer(f, x, targets, order=1, alpha=1.0).mean())
    claim, sampled = report.claims["first_order"], report.regularizer["sampled"]
    assert sampled["first_order"] == pytest.approx(r_1, rel=1e-10)
    assert sampled["met"]
    assert (sampled["high"] - sampled["low"]) / 2 <= 0.05 * abs(sampled["mean"])
    assert claim.low <= abs(r - r_1) / abs(r) <= claim.high  # 19 times of 20; the seed is fixed
    assert claim.value == pytest.approx(abs(1 - r_1 / sampled["mean"]))
    assert "over 12 samples" in claim.note
    assert report.regularizer["samples"] == 3


def test_a_tolerance_out_of_reach_is_said(monkeypatch):
    monkeypatch.setattr("theory.approximation.Sampling", functools.partial(Sampling, most=200))
    report = check_approximation(small(), [data()], pair_samples=2, tolerance=1e-6)
    assert "the tolerance of 1e-06 was not reached" in report.claims["first_order"].note


def test_second_order_tells_more_of_r_than_the_first_on_a_nearly_linear_net():
    torch.manual_seed(0)
    model = nn.Linear(4, 3).double()
    nn.init.normal_(model.weight, std=0.05)
    report = check_approximation(model, [data(dtype=torch.float64)], order=3, pair_samples=8)
    first, second, third = report.orders["rest_composite"]
    assert second < first
    assert third < first
    claim = report.claims["orders"]
    assert claim.value == pytest.approx(third / first)
    assert claim.verdict == "HOLDS"
    assert "of R, 100 % is the network's tangent and 0 % the kinks alone" in claim.note
    assert "orders" not in check_approximation(model, [data(dtype=torch.float64)]).claims


def test_report_leaves_the_model_as_it_was():
    model = nn.Sequential(nn.Linear(4, 8), nn.BatchNorm1d(8), nn.Dropout(), nn.Linear(8, 3))
    model.train()
    model[1].eval()
    before = {k: v.clone() for k, v in model.state_dict().items()}
    for mode in ("eval", "batch"):
        check_approximation(model, [data()], batch_norm=mode, pair_samples=2, dtype=torch.float64)
    assert all(torch.equal(before[k], v) for k, v in model.state_dict().items())
    assert [m.training for m in model] == [True, False, True, True]
    assert all(p.grad is None and p.dtype == torch.float32 for p in model.parameters())


def test_batch_mode_leaves_out_what_is_undefined_there_and_closes_the_attribution():
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(4, 8), nn.BatchNorm1d(8), nn.ReLU(), nn.Linear(8, 3)).double()
    x, y = data(dtype=torch.float64)
    report = check_approximation(model, [(x, y)], batch_norm="batch", batch_size=6)
    assert report.claims["identity"].verdict == "NOT MEASURED"
    assert report.regularizer == {}
    assert report.claims["self_check"].verdict == "HOLDS"
    rest = report.attribution.set_index("layer").loc["(unattributed)", "mean"]
    assert abs(rest) < 1e-12
    s = report.samples
    np.testing.assert_allclose(
        s["q"] - s["q_hat"], s["normalization_gap"] + s["homogeneity_gap"], atol=1e-12
    )


def test_progress_reports_work_and_pairs_obey_the_time():
    done = []
    report = check_approximation(
        small(), [data()], pair_seconds=1e-9, on_progress=done.append, gradients=False
    )
    assert sum(done) > 0
    assert report.regularizer["samples"] == 3
    assert report.claims["gradient"].note == "not asked for"
    many = check_approximation(small(), [data()], pair_seconds=5, gradients=False)
    assert many.regularizer["samples"] == 12


def test_thresholds_are_the_callers():
    x, y = data()
    strict = check_approximation(small(), [(x, y)], thresholds=Thresholds(q_hat=0), pair_samples=2)
    loose = check_approximation(small(), [(x, y)], thresholds=Thresholds(q_hat=1e9), pair_samples=2)
    assert strict.claims["q_hat"].verdict == "FAILS"
    assert loose.claims["q_hat"].verdict == "HOLDS"


@pytest.mark.parametrize("value", [math.nan, math.inf, -math.inf, "0.5", None])
@pytest.mark.usefixtures("without_run_time_types")
def test_thresholds_are_finite_numbers(value):
    with pytest.raises(InputError, match=r"threshold q_hat is .*: it must be a finite number"):
        Thresholds(q_hat=value)


def test_a_single_example_is_measured_without_intervals():
    """Its own mean: the direction and the regulariser are zero, and nothing divides by it."""
    x, y = data(n=1)
    report = check_approximation(small(), [(x, y)], pair_samples=1)
    assert report.samples["q"].iloc[0] == pytest.approx(0, abs=1e-6)
    assert report.regularizer["r"] == 0
    assert report.claims["first_order"].verdict == "NOT MEASURED"
    assert report.claims["first_order"].note == "R is zero on these samples"
    assert math.isnan(report.claims["q_hat"].low)


def test_frozen_parameters_leave_the_gradient_claim_unmeasured():
    model = small().requires_grad_(False)
    claim = check_approximation(model, [data()], pair_samples=2).claims["gradient"]
    assert claim.verdict == "NOT MEASURED"
    assert "no trainable parameters" in claim.note


def test_examples_on_a_kink_are_told_from_wrong_derivatives():
    """Max-pooling over a flat background ties: there is no derivative to be right or wrong."""
    model = nn.Sequential(
        nn.Conv2d(1, 3, 3), nn.MaxPool2d(2), nn.Flatten(), nn.Linear(12, 3)
    ).double()  # fmt: skip
    x, y = data(shape=(1, 6, 6), dtype=torch.float64)
    generic = check_approximation(model, [(x, y)], pair_samples=2)
    assert generic.claims["self_check"].verdict == "HOLDS"
    assert generic.claims["self_check"].note == ""
    flat = check_approximation(model, [(x * (x > 1), y)], pair_samples=2)
    assert "lie on a kink" in flat.claims["self_check"].note


class BentLine(nn.Module):
    def forward(self, x):
        return x + x.relu() ** 2


def test_an_order_that_no_example_has_is_told():
    """At zero x + relu(x)² has a first derivative and no second."""
    model = nn.Sequential(nn.Linear(3, 3, bias=False), BentLine()).double()
    x, y = torch.zeros(6, 3).double(), torch.arange(6) % 3
    report = check_approximation(
        model, [(x, y)], order=2, mean=torch.ones(3).double(), pair_samples=2, gradients=False
    )
    claim = report.claims["self_check"]
    assert claim.verdict == "HOLDS"
    assert "4 of the 4 samples tested lie on a kink" in claim.note
    assert "order 2 could be compared on none of them" in claim.note


class Detached(nn.Module):
    def forward(self, x):
        return x.detach()[:, :3]


class WithoutRule(nn.Module):
    class Op(torch.autograd.Function):
        @staticmethod
        def forward(ctx, x):
            return x * 2

    def forward(self, x):
        return self.Op.apply(x)[:, :3]


class Pair(nn.Module):
    def forward(self, x):
        return x, x


class Column(nn.Module):
    def forward(self, x):
        return x.sum()


def test_a_model_in_half_precision_is_measured_in_single():
    model = small().bfloat16()
    report = check_approximation(model, [data()], dtype=torch.float32, pair_samples=2)
    assert report.claims["identity"].verdict == "HOLDS"
    assert report.settings["dtype"] == "float32"
    assert model[0].weight.dtype == torch.bfloat16


def test_inputs_of_one_number_are_measured_as_columns_of_one():
    torch.manual_seed(0)
    column = nn.Sequential(nn.Linear(1, 6), nn.ReLU(), nn.Linear(6, 3)).double()
    number = nn.Sequential(nn.Unflatten(0, (-1, 1)), column)
    x, y = data(shape=(1,), dtype=torch.float64)
    options = {"pair_samples": 4, "order": 2, "max_pieces": 20}
    whole = check_approximation(column, [(x, y)], **options)
    report = check_approximation(number, [(x[:, 0], y)], **options)
    np.testing.assert_allclose(report.samples, whole.samples, rtol=1e-12)
    for name, claim in whole.claims.items():
        if name != "self_check":  # an error of rounding's size
            assert report.claims[name].value == pytest.approx(claim.value, rel=1e-9), name
    assert report.claims["self_check"].verdict == "HOLDS"
    coupled = {"batch_norm": "batch", "pair_samples": 2}
    np.testing.assert_allclose(
        check_approximation(number, [(x[:, 0], y)], **coupled).samples, whole.samples, rtol=1e-9
    )


@pytest.mark.parametrize("mode", [torch.no_grad, torch.inference_mode])
def test_what_the_caller_turned_off_does_not_matter(mode):
    x, y = data(dtype=torch.float64)
    rows, mean = F.one_hot(y, 3).double(), torch.ones(4).double()
    model = small().double()
    whole = check_approximation(model, [(x, rows)], mean=mean, pair_samples=2)
    with mode():
        inside = check_approximation(model, [(x, rows)], mean=mean, pair_samples=2)
        made = x.clone(), rows.clone(), mean.clone()
        assert not torch.is_grad_enabled()
    outside = check_approximation(model, [made[:2]], mean=made[2], pair_samples=2)
    for report in (inside, outside):
        np.testing.assert_array_equal(report.samples, whole.samples)
        assert report.claims["gradient"].value == whole.claims["gradient"].value


def test_inputs_that_require_gradients_are_taken_as_numbers():
    x, y = data(dtype=torch.float64)
    rows, mean = F.one_hot(y, 3).double(), torch.ones(4).double()
    given = [part.clone().requires_grad_() for part in (x, rows, mean)]
    whole = check_approximation(small().double(), [(x, rows)], mean=mean, pair_samples=2)
    report = check_approximation(
        small().double(), [tuple(given[:2])], mean=given[2], pair_samples=2
    )
    np.testing.assert_array_equal(report.samples, whole.samples)
    assert all(part.grad is None for part in given)


class Masked(nn.Module):
    """Attention of each position to those before it, by a mask of zeros and -inf or by slices."""

    def __init__(self):
        super().__init__()
        self.attention = nn.MultiheadAttention(4, 1, batch_first=True)
        self.head = nn.Linear(4, 3)
        self.register_buffer("mask", nn.Transformer.generate_square_subsequent_mask(5))
        self.sliced = False

    def forward(self, x):
        if self.sliced:
            rows = [
                self.attention(x[:, t : t + 1], x[:, : t + 1], x[:, : t + 1])[0] for t in range(5)
            ]
            return self.head(torch.cat(rows, 1).mean(1))
        return self.head(self.attention(x, x, x, attn_mask=self.mask)[0].mean(1))


def test_a_mask_of_minus_infinities_is_no_fault_of_the_model():
    torch.manual_seed(0)
    model = Masked().double()
    x, y = data(shape=(5, 4), dtype=torch.float64)
    masked = check_approximation(model, [(x, y)], pair_samples=2)
    model.sliced = True
    sliced = check_approximation(model, [(x, y)], pair_samples=2)
    np.testing.assert_allclose(masked.samples, sliced.samples, rtol=1e-9, atol=1e-12)
    assert masked.claims["self_check"].verdict == "HOLDS"
    assert masked.claims["gradient"].value == pytest.approx(sliced.claims["gradient"].value)


def with_buffer(value):
    """A network with one buffer of this value, which its logits take in."""

    class Shifted(nn.Module):
        def __init__(self):
            super().__init__()
            self.fc = nn.Linear(4, 3)
            self.register_buffer("constant", torch.full((3,), value))

        def forward(self, x):
            return self.fc(x) + self.constant

    return Shifted()


def in_inference_mode():
    with torch.inference_mode():
        return small()


def with_statistics(value):
    model = nn.Sequential(nn.BatchNorm1d(4), nn.Linear(4, 3))
    model[0].running_var[1] = value
    return model


def with_weight(value):
    model = nn.Linear(4, 3)
    with torch.no_grad():
        model.weight[0, 0] = value
    return model


X, Y = data()
BAD = {
    "alpha zero": (small, [(X, Y)], {"alpha": 0.0}, "alpha is 0"),
    "beta negative": (small, [(X, Y)], {"beta": -1.0}, "beta is -1"),
    "alpha nan": (small, [(X, Y)], {"alpha": math.nan}, "alpha is nan"),
    "order zero": (small, [(X, Y)], {"order": 0}, "order is 0"),
    "unknown head": (small, [(X, Y)], {"head": "tanh"}, "unknown head"),
    "unknown mode": (small, [(X, Y)], {"batch_norm": "train"}, "unknown batch-norm mode"),
    "no running statistics": (
        lambda: nn.Sequential(nn.BatchNorm1d(4, track_running_stats=False), nn.Linear(4, 3)),
        [(X, Y)],
        {},
        "BatchNorm1d '0' keeps no running statistics",
    ),
    "infinite order": (small, [(X, Y)], {"order": math.inf}, "order is inf: it must be a whole"),
    "half an order": (small, [(X, Y)], {"order": 1.5}, "order is 1.5: it must be a whole number"),
    "order 2 in batch mode": (small, [(X, Y)], {"batch_norm": "batch", "order": 2}, "refused"),
    "unknown engine": (small, [(X, Y)], {"engine": "foo"}, "unknown engine 'foo': use one of"),
    "negative seed": (small, [(X, Y)], {"seed": -1}, "seed is -1"),
    "large seed": (small, [(X, Y)], {"seed": 2**32}, "below 2"),
    "half a seed": (small, [(X, Y)], {"seed": 0.5}, "seed is 0.5"),
    "no samples": (small, [], {}, "no samples"),
    "empty batch": (small, [(X[:0], Y[:0])], {}, "no samples"),
    "a batch, not batches": (small, (X, Y), {}, r"\[\(x, y\)\]"),
    "lengths differ": (small, [(X, Y[:-1])], {}, "12 inputs and 11 labels"),
    "shapes differ": (small, [(X, Y), (X[:, :3], Y)], {}, "batches differ"),
    "label too large": (small, [(X, Y + 1)], {}, "outside 0…2"),
    "label negative": (small, [(X, Y - 1)], {}, "outside 0…2"),
    "rows off the simplex": (small, [(X, torch.ones(12, 3))], {}, "do not sum to one"),
    "rows of wrong width": (small, [(X, torch.ones(12, 2) / 2)], {}, "3 columns"),
    "nan in data": (small, [(X.where(X[0, 0] != X, math.nan), Y)], {}, "NaN or Inf"),
    "integer data": (small, [(X.long(), Y)], {}, "floating-point inputs"),
    "wrong input shape": (small, [(torch.randn(12, 5), Y)], {}, r"shape \(12, 5\)"),
    "wrong mean": (small, [(X, Y)], {"mean": torch.zeros(5)}, "mean has shape"),
    "nan in weights": (lambda: with_weight(math.nan), [(X, Y)], {}, "weight holds NaN"),
    "inf in weights": (lambda: with_weight(math.inf), [(X, Y)], {}, "weight holds NaN or Inf"),
    "nan in a buffer": (lambda: with_buffer(math.nan), [(X, Y)], {}, "constant holds NaN"),
    "inf in logits": (lambda: with_buffer(math.inf), [(X, Y)], {}, "gives NaN or Inf"),
    "inf in statistics": (lambda: with_statistics(math.inf), [(X, Y)], {}, "running_var holds NaN"),
    "lazy": (lambda: nn.LazyLinear(3), [(X, Y)], {}, "weight has no values yet: run one batch"),
    "meta": (lambda: nn.Linear(4, 3, device="meta"), [(X, Y)], {}, "other than meta"),
    "model of inference mode": (in_inference_mode, [(X, Y)], {}, "build or load the model outside"),
    "overflow": (lambda: with_weight(1e38), [(X * 1e4, Y)], {}, "gives NaN or Inf"),
    "detached": (Detached, [(X, Y)], {}, "differentiable operations"),
    "no derivative rule": (WithoutRule, [(X, Y)], {}, "no derivative rule"),
    "two outputs": (Pair, [(X, Y)], {}, "returns tuple"),
    "a scalar": (Column, [(X, Y)], {}, "one row of logits"),
    "one softmax logit": (lambda: nn.Linear(4, 1), [(X, Y)], {}, "sigmoid head"),
    "pair samples": (small, [(X, Y)], {"pair_samples": 0}, "pair_samples is 0"),
    "tolerance": (small, [(X, Y)], {"tolerance": -0.1}, "tolerance is -0.1"),
    "pair seconds": (small, [(X, Y)], {"pair_seconds": -1.0}, "pair_seconds is -1"),
    "text dtype": (small, [(X, Y)], {"dtype": "float64"}, "pass torch.float32"),
    "a function": (lambda: lambda x: x[:, :3], [(X, Y)], {}, "pass a torch.nn.Module"),
    "thresholds": (small, [(X, Y)], {"thresholds": {"q_hat": 1}}, "theory.Thresholds"),
    "single examples": (small, torch.utils.data.TensorDataset(X, Y), {}, "DataLoader"),
    "dictionaries": (small, [{"x": X, "y": Y}], {}, r"\[\(x, y\)\]"),
    "text labels": (small, [(X, ["a"] * 12)], {}, "does not hold numbers"),
    "half precision": (lambda: small().bfloat16(), [(X, Y)], {}, "bfloat16, whose rounding hides"),
    "half dtype": (small, [(X, Y)], {"dtype": torch.float16}, "pass dtype=torch.float32"),
    "half data of no parameters": (nn.Identity, [(X[:, :3].half(), Y)], {}, r"data \.float\(\)"),
    "integer dtype": (small, [(X, Y)], {"dtype": torch.int32}, "floating-point type"),
}


@pytest.fixture
def without_run_time_types():
    """As users run it: the suite's type checker would refuse some bad input before we do."""
    jaxtyping.config.update("jaxtyping_disable", True)
    yield
    jaxtyping.config.update("jaxtyping_disable", False)


@pytest.mark.parametrize("case", BAD)
@pytest.mark.usefixtures("without_run_time_types")
def test_bad_input_is_refused_in_one_line(case):
    build, batches, options, message = BAD[case]
    with pytest.raises(InputError, match=message) as caught:
        check_approximation(build(), batches, **{"pair_samples": 2, **options})
    assert "\n" not in str(caught.value)


def test_a_model_that_draws_random_numbers_is_refused_at_first_order():
    class Random(nn.Module):
        def __init__(self):
            super().__init__()
            self.fc = nn.Linear(4, 3)

        def forward(self, x):
            return F.dropout(self.fc(x), 0.5)

    with pytest.raises(InputError, match="other logits for the same inputs"):
        check_approximation(Random(), [data()], pair_samples=2)


def test_orders_beyond_what_a_check_takes_are_refused_at_once():
    with pytest.raises(InputError, match="order is 200: a check takes at most 24"):
        check_approximation(small(), [data()], order=200)


def test_a_report_prints_all_that_was_asked_for():
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(4, 6), nn.ReLU(), nn.Linear(6, 3))
    asked = {"pair_samples": 3, "gradients": False}
    text = str(check_approximation(model, [data()], order=2, max_pieces=50, **asked))
    assert "order K" in text
    assert "kink by kink: R =" in text
    assert "order K" not in str(check_approximation(model, [data()], **asked))
