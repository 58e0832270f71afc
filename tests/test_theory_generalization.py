"""Theorem 2: the command, the counterexample to the bound, coverage, bad input."""

import io
import json
import math
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from matplotlib.figure import Figure
from scipy import stats

from figures.generalization import plot
from theory.bounds import repaired_terms, theorem_terms
from theory.generalization import Config, digits_population, main, measure, summary
from theory.glm import FAMILIES, Population, synthetic
from theory.trials import Runs, resample, train_reference

ROOT = Path(__file__).resolve().parent.parent
SMALL = Config(n=(30, 300), resamples=12, signs=12, points=24, dimension=2, eta=0.1)
FLAGS = ["--n", "20", "50", "--resamples", "4", "--signs", "4", "--points", "12"]


def one_point(p: float = 0.3) -> Population:
    """x = 1 with label 1 of probability p: L_mix is log(1 + e^θ) − ȳθ, for any law of λ."""
    tensor = lambda *row: torch.tensor([row], dtype=torch.float64)  # noqa: E731
    return Population(FAMILIES["logistic"], tensor(1.0), tensor(0.0, 1.0), tensor(1 - p, p))


def drawn(population: Population, config: Config, n: int, rng: np.random.Generator) -> Runs:
    return resample(population, train_reference(population, config), config, n, rng)


@pytest.fixture(scope="module")
def study():
    return measure(SMALL)


def test_theorem_2_fails_on_one_point_by_arithmetic_and_in_the_study():
    """With x = 1 all is closed form: E L exceeds the bound once n is large, whatever B is."""
    p, eta, n = 0.3, 1.0, 10**8
    config = replace(SMALL, n=(100, n), eta=eta, resamples=20)
    study = measure(config, one_point(p))
    claims = [size.claims for size in study.sizes]
    assert claims[0]["objective"].value == 1
    assert claims[1]["objective"].value == claims[1]["constant"].value == 0
    assert claims[1]["limit"].verdict == "FAILS"
    # The same by hand at the θ that minimises the population's L_mix + ηR.
    theta = float(train_reference(one_point(p), config))
    g = 1 / (1 + math.exp(-theta))
    l_mix = math.log1p(math.exp(theta)) - p * theta
    r = (1 / 3) * (p * (1 - g) + (1 - p) * g) * abs(theta)
    generous = 1000.0  # far more than any B or complexity
    assert l_mix**2 / (l_mix + eta * r) + generous / math.sqrt(1e16) < l_mix
    shown = claims[1]["limit"].value
    assert shown == pytest.approx(l_mix / (l_mix + eta * r) - 1, rel=1e-2)


def test_repaired_bound_covers_as_often_as_it_promises():
    """The count is held against Binomial(R, 1 − δ) at a level of 0.001, for every family."""
    for name, family in FAMILIES.items():
        population = synthetic(family, 2, 20, 1.0, np.random.default_rng(1))
        config = replace(SMALL, n=(20,), resamples=60, delta=0.2, eta=0.01)
        (size,) = measure(config, population).sizes
        covered = round(size.claims["repaired"].value * 60)
        worst = stats.binomtest(covered, 60, 0.8, alternative="less")
        assert worst.pvalue > 1e-3, name


def test_coverage_is_lost_when_a_constant_is_too_small():
    """So a coverage of one says something: with a thousandth of the constants both bounds fail."""
    population = synthetic(FAMILIES["logistic"], 2, 20, 3.0, np.random.default_rng(1))
    config = replace(SMALL, resamples=60, delta=0.2)
    runs = drawn(population, config, 40, np.random.default_rng(2))
    (size,) = measure(replace(config, n=(40,)), population).sizes
    small = {
        name: getattr(size.constants, name) / 1000
        for name in ("mcdiarmid", "loss_range", "slope", "gamma")
    }
    constants = replace(size.constants, **small)
    terms = (
        theorem_terms(constants, runs.l_mix, runs.eta_hat, config.eta, 40, 0.2),
        repaired_terms(constants, runs.l_mix, 40, 0.2),
    )
    for bound in terms:
        covered = int((runs.expected_l_mix <= bound.total).sum())
        assert stats.binomtest(covered, 60, 0.8, alternative="less").pvalue < 1e-3


def test_gap_estimate_loses_noise_and_keeps_its_mean():
    """Subtracting the reference's gap, whose mean is zero, leaves the mean and a smaller error."""
    population = synthetic(FAMILIES["logistic"], 2, 20, 3.0, np.random.default_rng(1))
    runs = drawn(population, replace(SMALL, resamples=80), 100, np.random.default_rng(0))
    root = math.sqrt(80)
    assert abs(runs.reference_gap.mean()) < 4 * runs.reference_gap.std() / root
    plain, reduced = runs.gap, runs.gap - runs.reference_gap
    assert reduced.std() < plain.std() / 2
    assert abs(plain.mean() - reduced.mean()) < 4 * plain.std() / root


def test_left_sides_are_their_definitions():
    """The expected objective, η̂ drawn anew or held fixed, against averages over fresh samples."""
    population = synthetic(FAMILIES["logistic"], 2, 8, 3.0, np.random.default_rng(1))
    config = replace(SMALL, resamples=3, eta=0.5)
    runs = drawn(population, config, 12, np.random.default_rng(0))
    rng, theta, mixing = np.random.default_rng(5), runs.thetas[0], config.mixing
    values = []
    for _ in range(1000):
        w = population.draw(12, rng)
        l_mix = float(population.mixup_risk(theta, w, mixing))
        penalty = float(population.penalty(theta, w, mixing))
        eta_hat = abs(l_mix) / abs(l_mix + 0.5 * penalty)
        values.append((eta_hat * (l_mix + 0.5 * penalty), l_mix + 0.5 * penalty))
    mean, sem = np.mean(values, 0), np.std(values, 0) / math.sqrt(1000)
    left = {name: side[0] for name, side in runs.left_sides.items()}
    assert abs(left["objective"] - mean[0]) < 4 * sem[0]
    assert abs(left["constant"] / runs.eta_hat[0] - mean[1]) < 4 * sem[1]


def test_a_run_is_fixed_by_its_seed(study):
    again, other = measure(SMALL).record(), measure(replace(SMALL, seed=1)).record()
    assert json.dumps(again["sizes"]) == json.dumps(study.record()["sizes"])
    assert json.dumps(other["sizes"]) != json.dumps(again["sizes"])


def test_figure_shows_the_records_numbers(study):
    record = json.loads(json.dumps(study.record()))
    figure = plot(record)
    assert isinstance(figure, Figure)
    left, right = figure.axes
    terms = [size["terms"] for size in record["sizes"]]
    np.testing.assert_allclose(left.lines[0].get_ydata(), [t["confidence"] for t in terms])
    spare = [t["bound"] - t["left_objective"] for t in terms]
    np.testing.assert_allclose(right.lines[0].get_ydata(), spare)


def test_summary_names_choices_terms_and_verdicts(study):
    text = summary(study)
    for part in (*study.choices.values(), "B√(log(1/δ)/2n)", "Clopper–Pearson", "FAILS", "HOLDS"):
        assert part in text
    assert study.sizes[0].terms["bound"] == pytest.approx(
        sum(study.sizes[0].terms[name] for name in ("risk", "complexity", "confidence"))
    )


@pytest.mark.parametrize("family", FAMILIES)
def test_command_writes_record_and_figure(family, tmp_path, capsys):
    data = ["--data", "digits"] if family == "linear" else []
    assert main(["--family", family, *data, *FLAGS, "--out", str(tmp_path)]) == 0
    assert {path.name for path in tmp_path.iterdir()} == {
        "generalization.json",
        "generalization.png",
    }
    record = json.loads((tmp_path / "generalization.json").read_text())
    assert record["settings"]["family"] == family
    assert record["environment"]["versions"]["scipy"]
    claims = record["sizes"][0]["claims"]
    assert {claim["verdict"] for claim in claims.values()} <= {"HOLDS", "FAILS", "NOT MEASURED"}
    assert "generalization.json" in capsys.readouterr().out


@pytest.mark.parametrize("family", FAMILIES)
def test_digits_are_a_population_of_200(family):
    population = digits_population(family)
    assert population.x.shape == (200, 17)
    assert float(population.x.min()) >= 0
    assert float(population.x.max()) == 1


def test_without_a_penalty_nothing_is_dropped():
    """η = 0: η̂ = 1, the theorem's complexity term is zero, its limit holds, the figure draws."""
    study = measure(replace(SMALL, n=(50,), eta=0.0))
    plot(study.record()).savefig(io.BytesIO())
    (size,) = study.sizes
    assert size.terms["eta_hat"] == 1
    assert size.claims["limit"].verdict == "HOLDS"
    assert size.claims["contraction"].value == size.claims["complexity"].value == math.inf


def test_labels_that_ask_for_no_model_are_survived():
    """All counts 1: θ = 0, q̂ = 0, and what divides by γ is not measured."""
    one = torch.ones(3, 1, dtype=torch.float64)
    (size,) = measure(
        replace(SMALL, n=(10,)), Population(FAMILIES["poisson"], one, one, one / 3)
    ).sizes
    assert size.claims["class"].verdict == "NOT MEASURED"
    assert size.claims["objective"].verdict == "HOLDS"


@pytest.mark.parametrize(
    ("flags", "complaint"),
    [
        (["--delta", "0"], "delta"),
        (["--delta", "1"], "delta"),
        (["--delta", "nan"], "delta"),
        (["--n", "1"], "at least 2"),
        (["--n", "10000000000000000"], "1e15"),
        (["--family", "gamma"], "family"),
        (["--data", "cifar"], "data"),
        (["--eta", "-1"], "eta"),
        (["--eta", "inf"], "eta"),
        (["--alpha", "0"], "alpha"),
        (["--nodes", "3"], "nodes"),
        (["--resamples", "1"], "resamples"),
        (["--box", "0"], "box"),
        (["--points", "1"], "points"),
        (["--dimension", "0"], "d >= 1"),
        (["--seed", "-1"], "seed"),
    ],
)
def test_bad_input_is_one_line_and_exit_2(flags, complaint, tmp_path, capsys):
    assert main([*FLAGS, *flags, "--out", str(tmp_path)]) == 2
    error = capsys.readouterr().err
    assert error.count("\n") == 1
    assert complaint in error
    assert not list(tmp_path.rglob("*.json"))


def test_library_refuses_what_the_command_line_cannot_say():
    """In a process of its own: here the type checker would speak first."""
    code = """if True:
        from theory.generalization import Config, InputError, measure
        for flag in ({"family": "gamma"}, {"data": "mnist"}):
            try:
                measure(Config(**flag))
            except InputError as error:
                print(error)
    """
    done = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, cwd=ROOT, timeout=300
    )
    first, second = done.stdout.splitlines()
    assert first.startswith("unknown family 'gamma'")
    assert second.startswith("unknown data 'mnist'")
