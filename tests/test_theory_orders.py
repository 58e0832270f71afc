"""The measurement order by order against its parts, and the table that it prints."""

import numpy as np
import pytest
import torch
from cases import case_named, make_problem
from torch import nn

from theory import check_approximation, read_reports
from theory.expansion import expand_regularizer, measure_remainders
from theory.network import evaluating
from theory.orders import DISTANCES, draw_pairs, measure_orders
from theory.regularizer import regularizer
from theory.report import orders_table


@pytest.fixture(scope="module")
def measured():
    problem = make_problem(case_named("tanh-mlp"), n=5)
    with evaluating(problem.model) as f:
        r = regularizer(f, problem.x, problem.targets, alpha=1.0, nodes=40)
        found = measure_orders(
            f, problem.x, problem.targets, draw_pairs(5, 5, torch.Generator()), order=5, alpha=1.0,
            nodes=40, rows=7,
        )  # fmt: skip
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


def test_drawn_pairs_give_every_sample_its_own_partners():
    i, j = draw_pairs(6, 3, torch.Generator().manual_seed(0))
    assert i.tolist() == [k for k in range(6) for _ in range(3)]
    assert all(len(set(j[i == k].tolist())) == 3 for k in range(6))
    assert set(j.tolist()) <= set(range(6))
    i, j = draw_pairs(4, 9, torch.Generator())
    assert (i * 4 + j).tolist() == list(range(16))
    counts = sum(
        draw_pairs(5, 1, torch.Generator().manual_seed(k))[1].bincount(minlength=5)
        for k in range(400)
    )
    # 2,000 uniform draws over 5 places: χ² with 4 degrees of freedom exceeds 23.5 once in 10,000.
    assert float(((counts - 400) ** 2 / 400).sum()) < 23.5


def test_drawn_pairs_measure_themselves():
    problem = make_problem(case_named("single-logit"), n=4)
    pairs = (torch.tensor([0, 0, 1, 1, 2, 2, 3, 3]), torch.tensor([1, 2, 3, 0, 2, 0, 1, 0]))
    with evaluating(problem.model) as f:
        found = measure_orders(
            f, problem.x, problem.targets, pairs, order=2, alpha=2.0, head="sigmoid", nodes=24
        )
        alone = [
            measure_orders(
                f, problem.x[[i, j]], problem.targets[[i, j]],
                (torch.tensor([0, 1]), torch.tensor([1, 1])), order=2, alpha=2.0, head="sigmoid",
                nodes=24,
            )
            for i, j in zip(*(index.tolist() for index in pairs), strict=True)
        ]  # fmt: skip
    # The second "pair" of each is an example with itself and adds nothing.
    for name in ("composite", "nested"):
        by_pair = np.array([2 * np.array(one[name]) for one in alone])
        np.testing.assert_allclose(found[name], by_pair.mean(0), rtol=1e-9)
    assert found["r"] == pytest.approx(np.mean([2 * one["r"] for one in alone]), rel=1e-9)
    assert found["pairs"] == 8


def test_no_convergence_is_claimed_from_few_orders():
    problem = make_problem(case_named("tanh-mlp"), n=3)
    with evaluating(problem.model) as f:
        found = measure_orders(
            f, problem.x, problem.targets, draw_pairs(3, 2, torch.Generator()), order=3, alpha=1.0
        )
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
    assert f"R = {report.orders['r']:.4g} on 16 pairs of 8 samples" in table


def test_both_engines_measure_the_same():
    problem = make_problem(case_named("layer-norm"), n=3)
    pairs = draw_pairs(3, 3, torch.Generator())
    with evaluating(problem.model) as f:
        ours, reference = (
            measure_orders(
                f, problem.x, problem.targets, pairs, order=3, alpha=0.5, engine=engine
            )
            for engine in ("series", "nested")
        )  # fmt: skip
    np.testing.assert_allclose(ours["composite"], reference["composite"], rtol=1e-10)
    np.testing.assert_allclose(ours["nested"], reference["nested"], rtol=1e-10)
