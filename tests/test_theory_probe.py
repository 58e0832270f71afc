"""The check inside training: the whole check's numbers, at no change to the network."""

import copy
import inspect
import json
import math

import numpy as np
import pandas as pd
import pytest
import torch
from cases import case_named, every_modular_case, make_problem
from torch import nn

from theory import check_approximation
from theory.errors import InputError
from theory.network import evaluating
from theory.probe import measure_probe
from theory.record import json_line

BATCH = case_named("gelu-conv-batch-norm")


def measured(problem, **options):
    return measure_probe(
        problem.model, problem.x, problem.targets, problem.mean,
        **({"head": problem.head, "batch_size": 3} | options),
    )  # fmt: skip


@pytest.mark.parametrize("mode", ["eval", "batch"])
def test_numbers_are_those_of_the_whole_check_on_the_same_samples(mode):
    """Values and bootstrap intervals exactly: the two share their code."""
    problem = make_problem(BATCH, n=7, soft=False)
    found = measured(problem, batch_norm=mode, seed=3)
    report = check_approximation(
        problem.model, [(problem.x, problem.labels)], head=problem.head, batch_norm=mode,
        batch_size=3, pair_samples=2, seed=3,
    )  # fmt: skip
    for name, row in report.agreement.to_dict("index").items():
        np.testing.assert_equal(found[name], row)
    for gap in ("normalization", "homogeneity"):
        claim = report.claims[gap]
        assert found[gap]["value"] == claim.value
        assert (found[gap]["low"], found[gap]["high"]) == (claim.low, claim.high)
    samples = report.samples
    assert found["samples"] == len(samples) == 7
    assert found["loss"] == samples["loss"].mean()
    assert found["mean_abs_q"] == samples["q"].abs().mean()
    assert found["mean_q_hat"] == samples["q_hat"].mean()
    assert found["norm_q"] == pytest.approx(math.sqrt((samples["q"] ** 2).sum()), rel=1e-14)
    pd.testing.assert_frame_equal(pd.DataFrame(found["attribution"]), report.attribution)
    assert found["alignment"] == report.alignment.drop(columns="layer").loc[0].to_dict()
    assert found["alignment_note"] == ""


@pytest.mark.parametrize("mode", ["eval", "batch"])
@every_modular_case
def test_shares_by_layer_sum_to_the_mean_gap(case, mode):
    """(g − y)ᵀ(f − J x) by a full Jacobian of the whole batch, coupled or not."""
    problem = make_problem(case, n=4)
    found = measured(problem, batch_norm=mode, batch_size=4, gradients=False)
    with evaluating(problem.model, mode) as f:
        logits = f(problem.x).detach()
        jacobian = torch.autograd.functional.jacobian(f, problem.x)  # (n, classes, n, *dims)
    along_x = (jacobian * problem.x).flatten(2).sum(2)
    probs = logits.softmax(1) if problem.head == "softmax" else logits.sigmoid()
    gap = ((probs - problem.targets) * (logits - along_x)).sum(1).mean()
    shares = {row["layer"]: row["mean"] for row in found["attribution"]}
    assert sum(shares.values()) == pytest.approx(float(gap), abs=1e-9)
    assert abs(shares.pop("(unattributed)")) < 1e-9


def test_batch_statistics_depend_on_the_batches_and_running_ones_do_not():
    problem = make_problem(BATCH, n=6)
    for mode, same in (("eval", True), ("batch", False)):
        values = [
            measured(problem, batch_norm=mode, batch_size=size, gradients=False)["mean_q"]
            for size in (3, 6)
        ]
        assert (values[0] == pytest.approx(values[1], rel=1e-9)) == same


@pytest.mark.parametrize("mode", ["eval", "batch"])
def test_the_network_is_left_as_it_was(mode):
    """Parameters, statistics, gradients, modes, hooks and PyTorch's random state."""
    problem = make_problem(BATCH, n=5)
    model = problem.model.train()
    model[1].eval()  # as one who freezes a layer
    model[0].weight.requires_grad_(False)
    for p in model.parameters():
        p.grad = torch.ones_like(p)
    before, state = copy.deepcopy(model), torch.get_rng_state()
    measured(problem, batch_norm=mode)
    assert torch.equal(torch.get_rng_state(), state)
    for (name, now), (_, then) in zip(
        model.state_dict().items(), before.state_dict().items(), strict=True
    ):
        assert torch.equal(now, then), name
    for now, then in zip(model.parameters(), before.parameters(), strict=True):
        assert torch.equal(now.grad, torch.ones_like(now))
        assert now.requires_grad == then.requires_grad
    for now, then in zip(model.modules(), before.modules(), strict=True):
        assert now.training == then.training
        assert not now._forward_hooks
        assert not now._forward_pre_hooks


def test_it_is_deterministic_whatever_the_random_state():
    problem = make_problem(BATCH, n=6)
    first = measured(problem)
    torch.rand(3)
    np.random.seed(5)  # noqa: NPY002
    assert json_line(measured(problem)) == json_line(first)
    other = measured(problem, seed=1)
    assert other["pearson"]["value"] == first["pearson"]["value"]
    assert other["pearson"]["low"] != first["pearson"]["low"]


def test_it_is_plain_json():
    found = measured(make_problem(BATCH, n=4))
    assert json.loads(json.dumps(found)) == found


def test_data_comes_to_the_networks_type():
    problem = make_problem(BATCH, n=5)
    in_double = measured(problem)
    problem.model.float()
    in_float = measured(problem)
    assert in_float["mean_q"] == pytest.approx(in_double["mean_q"], rel=1e-4)
    assert in_float["mean_q"] != in_double["mean_q"]


def test_without_gradients_there_is_no_alignment_and_a_reason():
    problem = make_problem(BATCH, n=4)
    found = measured(problem, gradients=False)
    assert (found["alignment"], found["alignment_note"]) == (None, "not asked for")
    problem.model.requires_grad_(False)
    found = measured(problem)
    assert found["alignment"] is None
    assert "no trainable parameters" in found["alignment_note"]


def test_a_network_that_gives_nan_is_refused():
    problem = make_problem(BATCH, n=4)
    with torch.no_grad():
        problem.model[-1].bias[0] = math.nan
    with pytest.raises(InputError, match="NaN or Inf on 4 of 4"):
        measured(problem)
    assert problem.model.training


@pytest.mark.parametrize(
    ("changed", "complaint"),
    [
        ({"x": torch.zeros(0, 5), "targets": torch.zeros(0, 4)}, "at least one input"),
        ({"targets": torch.ones(3, 4)}, "one row of targets each"),
        ({"mean": torch.zeros(1)}, "mean of one input's shape"),
        ({"x": torch.zeros(4, 6), "mean": torch.zeros(6)}, "cannot take a batch"),
        ({"targets": torch.full((4, 3), 1 / 3)}, "rows of 4 columns"),
        ({"targets": torch.ones(4, 4)}, "do not sum to one"),
        ({"targets": torch.full((4, 4), math.nan)}, r"outside \[0, 1\] or NaN"),
        ({"targets": torch.tensor([0, 1, 2, 4])}, "labels run from 0 to 4"),
    ],
)
def test_parts_that_do_not_belong_together_are_refused(changed, complaint):
    problem = make_problem(case_named("tanh-mlp"))
    parts = {"x": problem.x, "targets": problem.targets, "mean": problem.mean} | changed
    unchecked = inspect.unwrap(measure_probe)  # shapes are checked under test only
    with pytest.raises(InputError, match=complaint) as caught:
        unchecked(problem.model, **parts)
    assert "\n" not in str(caught.value)


def test_batches_of_no_example_are_refused():
    with pytest.raises(InputError, match="batch_size is 0"):
        measured(make_problem(BATCH), batch_size=0)


def test_a_rounding_operation_is_refused():
    problem = make_problem(case_named("tanh-mlp"))

    class Rounded(nn.Module):
        def __init__(self):
            super().__init__()
            self.inner = problem.model

        def forward(self, x):
            return self.inner(x).detach()

    with pytest.raises(InputError, match="do not depend on the input"):
        measure_probe(Rounded(), problem.x, problem.targets, problem.mean)
