"""The measurement order by order against its parts, and the table that it prints."""

import numpy as np
import pytest
import torch
from cases import case_named, make_problem
from torch import nn

from theory import check_approximation, read_reports
from theory.expansion import expand_regularizer, measure_remainders
from theory.network import evaluating
from theory.orders import DISTANCES, measure_orders
from theory.regularizer import regularizer
from theory.report import orders_table


@pytest.fixture(scope="module")
def measured():
    problem = make_problem(case_named("tanh-mlp"), n=5)
    with evaluating(problem.model) as f:
        r = regularizer(f, problem.x, problem.targets, alpha=1.0, nodes=40)
        found = measure_orders(f, problem.x, problem.targets, r.numpy(), order=5, alpha=1.0, rows=7)
        direct = expand_regularizer(f, problem.x, problem.targets, order=5, alpha=1.0)
        partner = problem.x.roll(2, 0)
        remainders = measure_remainders(
            f, problem.x, problem.targets, partner - problem.x, 5, DISTANCES
        )
    return found, r.numpy(), direct, remainders


def test_every_number_is_that_of_its_part(measured):
    found, r, direct, remainders = measured
    total = r.mean()
    for name in ("composite", "nested"):
        rows = getattr(direct, name).numpy()
        np.testing.assert_allclose(found[name], rows.mean(1), rtol=1e-11)
        rest = np.abs(total - rows.mean(1)) / abs(total)
        np.testing.assert_allclose(found[f"rest_{name}"], rest, rtol=1e-9)
    errors = np.abs(r - direct.composite.numpy())
    np.testing.assert_allclose(found["nearer_than_first"], (errors < errors[0]).mean(1))
    assert found["nearer_than_first"][0] == 0
    assert found["tangent"] + found["bending"] == pytest.approx(total)
    assert not found["affine_pieces"]
    np.testing.assert_allclose(found["remainders"]["of_loss"], remainders.of_loss, rtol=1e-9)
    inside = found["convergence"]["mass_inside_of_sample"]
    assert len(inside) == 5
    assert all(0 < share <= 1 for share in inside)


def test_no_convergence_is_claimed_from_few_orders():
    problem = make_problem(case_named("tanh-mlp"), n=3)
    with evaluating(problem.model) as f:
        r = regularizer(f, problem.x, problem.targets, alpha=1.0).numpy()
        found = measure_orders(f, problem.x, problem.targets, r, order=3, alpha=1.0)
    assert found["convergence"] == {}


@pytest.mark.parametrize("activation", [nn.ReLU(), nn.Tanh()])
def test_the_table_survives_its_record_and_names_the_cause(activation, tmp_path):
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(5, 8), activation, nn.Linear(8, 3)).double()
    data = [(torch.randn(8, 5).double(), torch.arange(8) % 3)]
    report = check_approximation(model, data, order=4, pair_samples=4, gradients=False)
    report.to_json(tmp_path / "report.json")
    (back,) = read_reports(tmp_path / "report.json")
    table = orders_table(report)
    assert orders_table(back) == table
    kinks = isinstance(activation, nn.ReLU)
    assert ("kinks alone" in table) == kinks
    assert ("bending of f" in table) == (not kinks)
    rows = table.splitlines()[2:6]
    for k, row in enumerate(rows):
        assert row.split()[:2] == [str(k + 1), f"{report.orders['composite'][k]:.4g}"]
    assert f"exact R = {report.orders['r']:.4g} on all pairs of 4 samples" in table


def test_both_engines_measure_the_same():
    problem = make_problem(case_named("layer-norm"), n=3)
    with evaluating(problem.model) as f:
        r = regularizer(f, problem.x, problem.targets, alpha=0.5).numpy()
        ours, reference = (
            measure_orders(
                f, problem.x, problem.targets, r, order=3, alpha=0.5, engine=engine
            )
            for engine in ("series", "nested")
        )  # fmt: skip
    np.testing.assert_allclose(ours["composite"], reference["composite"], rtol=1e-10)
    np.testing.assert_allclose(ours["nested"], reference["nested"], rtol=1e-10)
