"""Command: does Theorem 2's generalisation bound for MixupE hold, and how loose is it?

It trains a GLM on many samples of each size, drawn from a population that is known exactly, and
holds both sides of the bound against each other; `theory.bounds` has the theorem and its steps.
Writes `generalization.json` and the figure.

The talk leaves open what E_S is taken of. Four readings of the left side are judged, each at the
trained θ, where a bound for all θ must hold too:

    objective   E_S L(θ, S) as written, every sample with its own η̂; that is ±|E L_mix|
    constant    η̂ (E L_mix + ηE R), η̂ of the sample at hand held fixed
    mixup       η̂ E L_mix: the penalty only shapes the class
    risk        E ℓ, the true risk

"objective" takes E|L_mix| as |E L_mix|, which is exact if L_mix has one sign on all samples.
"""

import math
import sys
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any, Literal

import numpy as np
import torch
from scipy import stats
from sklearn.datasets import load_digits
from torch import Tensor
from tqdm import tqdm

from figures.generalization import plot
from theory.bounds import (
    CHOICES,
    Constants,
    Terms,
    estimate_constants,
    repaired_terms,
    theorem_terms,
)
from theory.command import run_command
from theory.errors import InputError
from theory.glm import FamilyName, Mixing, Population, family_named, synthetic, train
from theory.rademacher import (
    QHatClass,
    ball_bound,
    ball_support,
    largest_bump,
    mean_and_sem,
    sampled_signed_sums,
)
from theory.record import check_writable, command_line, environment, write_atomically, write_json
from theory.report import Claim, align, tabulate_claims

PROG = "python -m theory.generalization"
READINGS = {
    "objective": "E_S L ≤ bound, each S its own η̂",
    "constant": "E_S L ≤ bound, η̂ held constant",
    "mixup": "η̂ E_S L_mix ≤ bound",
    "risk": "true risk ≤ bound",
}
SCALES = {"logistic": 4.0, "linear": 1.0, "poisson": 1.5}


@dataclass(frozen=True)
class Config:
    """Check Theorem 2: constants, terms, coverage and looseness of MixupE's bound for GLMs."""

    family: FamilyName = "logistic"
    """logistic, linear or poisson"""
    data: Literal["synthetic", "digits"] = "synthetic"
    """A known GLM, or 360 scikit-learn digits as the population: 0 against 1 (logistic), the digit
    itself, standardised (linear) or as a count (poisson)"""
    n: tuple[int, ...] = (100, 10_000, 1_000_000, 100_000_000)
    """Sizes of the samples"""
    delta: float = 0.05
    """δ: the bound may fail with this probability"""
    eta: float = 0.001
    """η: strength of MixupE's penalty"""
    alpha: float = 1.0
    """α of Beta(α, α)"""
    resamples: int = 100
    """Samples drawn of each size"""
    signs: int = 100
    """Draws of signs for the Rademacher complexities"""
    dimension: int = 5
    """Dimension of the synthetic points"""
    points: int = 128
    """Synthetic points, drawn once: the support of the population"""
    box: float = 10.0
    """Bound of each coordinate of θ, which makes Θ bounded"""
    nodes: int = 8
    """Quadrature nodes for the expectation over λ"""
    seed: int = 0
    """Of population, samples and signs"""
    out: Path = Path("runs/generalization")
    """Folder for the record and the figure"""
    debug: bool = False
    """Show the traceback of an error"""


@dataclass(frozen=True)
class SizeResult:
    """What was found at one sample size.

    Attributes:
        n: Size of the samples.
        constants: Of the class that holds all trained θ, on the whole population.
        plug_in: As one sample alone gives them, the first one.
        terms: Means over samples of both bounds' terms, of both sides and of the looseness.
        claims: By name, with the verdicts.
    """

    n: int
    constants: Constants
    plug_in: Constants
    terms: dict[str, float]
    claims: dict[str, Claim]


@dataclass(frozen=True)
class Study:
    """The result of a run.

    Attributes:
        settings: What was asked for.
        sizes: One result a sample size, in order.
        choices: How each constant was chosen where the talk leaves it open.
        environment: Versions, platform, commit.
    """

    settings: dict[str, Any]
    sizes: list[SizeResult]
    choices: dict[str, str] = field(default_factory=lambda: dict(CHOICES))
    environment: dict[str, Any] = field(default_factory=environment)

    def record(self) -> dict[str, Any]:
        """All of it as JSON can hold it."""
        content = asdict(self)
        for size, kept in zip(self.sizes, content["sizes"], strict=True):
            for name, claim in size.claims.items():
                kept["claims"][name]["verdict"] = claim.verdict
        return content


@dataclass(frozen=True)
class Runs:
    """Samples of one size with what was trained on them; arrays have one entry a sample."""

    weights: list[Tensor]
    thetas: Tensor
    l_mix: np.ndarray
    penalty: np.ndarray
    expected_l_mix: np.ndarray
    limit_l_mix: np.ndarray
    expected_penalty: np.ndarray
    true_risk: np.ndarray

    def eta_hat(self, eta: float) -> np.ndarray:
        """η̂ of each sample."""
        return np.abs(self.l_mix) / np.abs(self.l_mix + eta * self.penalty)


def digits_population(family: FamilyName) -> Population:
    """The first 360 suitable digits, pixels in [0, 1] and a constant feature, all as likely."""
    classes = 2 if family == "logistic" else 10
    x, digit = load_digits(n_class=classes, return_X_y=True)
    x, y = x[:360] / 16, digit[:360].astype(float)
    if family == "linear":
        y = (y - y.mean()) / y.std()
    table = torch.from_numpy(np.column_stack([x, np.ones(len(x))]))
    return Population(
        family_named(family), table, torch.from_numpy(y)[:, None],
        torch.full((len(y), 1), 1 / len(y), dtype=torch.float64),
    )  # fmt: skip


def resample(
    population: Population, config: Config, n: int, rng: np.random.Generator
) -> Runs:  # fmt: skip
    """Draws samples, trains on each and evaluates both sides' ingredients."""
    mixing = Mixing(config.alpha, config.nodes)
    weights = [population.draw(n, rng) for _ in range(config.resamples)]
    thetas = [train(population, w, mixing, config.eta, config.box) for w in weights]
    both = list(zip(thetas, weights, strict=True))
    risk = np.array([float(population.risk(t, population.p)) for t in thetas])
    limit = np.array([float(population.mixup_risk(t, population.p, mixing)) for t in thetas])
    return Runs(
        weights=weights,
        thetas=torch.stack(thetas),
        l_mix=np.array([float(population.mixup_risk(t, w, mixing)) for t, w in both]),
        penalty=np.array([float(population.penalty(t, w, mixing)) for t, w in both]),
        expected_l_mix=risk / n + (1 - 1 / n) * limit,
        limit_l_mix=limit,
        expected_penalty=np.array(
            [float(population.penalty(t, population.p, mixing)) for t in thetas]
        ),
        true_risk=risk,
    )


def left_sides(runs: Runs, eta: float) -> dict[str, np.ndarray]:
    """Each reading's left side, for every sample."""
    eta_hat = runs.eta_hat(eta)
    total = runs.expected_l_mix + eta * runs.expected_penalty
    return {
        "objective": np.sign(total) * np.abs(runs.expected_l_mix),
        "constant": eta_hat * total,
        "mixup": eta_hat * runs.expected_l_mix,
        "risk": runs.true_risk,
    }


def coverage(name: str, statement: str, covered: np.ndarray, delta: float) -> Claim:
    """The share of samples on which a bound held, with its Clopper–Pearson interval."""
    count = int(covered.sum())
    interval = stats.binomtest(count, len(covered)).proportion_ci(0.95, method="exact")
    return Claim(
        name, statement, "coverage", count / len(covered), ">=", 1 - delta,
        interval.low, interval.high,
    )  # fmt: skip


def _mean_with_interval(values: np.ndarray) -> tuple[float, float, float]:
    mean = float(values.mean())
    sem = float(values.std(ddof=1)) / math.sqrt(len(values))
    return mean, mean - 1.96 * sem, mean + 1.96 * sem


def _step_claims(constants: Constants, runs: Runs, config: Config) -> list[Claim]:
    """Steps of the proof that the constants decide."""
    reach = constants.max_logit * (1 + constants.lipschitz) / constants.gamma
    lipschitz = config.eta * constants.lipschitz
    inside = (runs.l_mix >= 0) & (runs.l_mix + config.eta * runs.penalty > 0)
    return [
        Claim(
            "eta_hat", "0 ≤ η̂ ≤ 1", "share of samples", float(inside.mean()), ">=", 1.0,
        ),
        Claim(
            "reach", "|q̂| ≤ γ gives |θᵀx| ≤ γ/(1+L_A)", "largest |θᵀx| (1+L_A) / γ",
            reach, "<=", 1.0,
        ),
        Claim(
            "contraction", "ℓ is ηL_A-Lipschitz in θᵀx", "sup|A' − y| / (ηL_A)",
            constants.slope / lipschitz if lipschitz else math.inf, "<=", 1.0,
        ),
    ]  # fmt: skip


def _complexity_claims(
    population: Population, runs: Runs, constants: Constants, config: Config, n: int,
    rng: np.random.Generator,
) -> list[Claim]:  # fmt: skip
    """Rademacher complexities on the first sample, against their bounds."""
    counts = (runs.weights[0].sum(1) * n).round().long()
    sums = sampled_signed_sums(population.x, counts, config.signs, rng)
    xi = constants.xi
    ball = np.array(mean_and_sem(ball_support(sums, xi), n)) / ball_bound(
        n, xi, constants.squared_norm
    )
    labels = population.y[population.p > 0]
    bump = largest_bump(population.family, float(labels.min()), float(labels.max()))
    gamma = max(constants.gamma, bump)
    q_hat_class = QHatClass.of(population, gamma, config.box)
    stated = gamma * constants.squared_norm / ((1 + constants.lipschitz) * math.sqrt(n))
    ours = np.array(mean_and_sem(q_hat_class.support(sums), n)) / stated
    return [
        Claim(
            "ball", "ℛ{‖θ‖² ≤ ξ} ≤ √(ξ𝒳/n)", "ℛ / bound", float(ball[0]), "<=", 1.0,
            float(ball[0] - 1.96 * ball[1]), float(ball[0] + 1.96 * ball[1]),
        ),
        Claim(
            "class", "ℛ{sup|q̂| ≤ γ} ≤ γ𝒳/((1+L_A)√n)", "ℛ / bound", float(ours[0]), "<=", 1.0,
            float(ours[0] - 1.96 * ours[1]), float(ours[0] + 1.96 * ours[1]),
            note=f"γ = {gamma:.3g}, Θ in the box |θ_j| ≤ {config.box:g}; inputs in units s times "
            "smaller divide the ratio by s², so the verdict is one on the unit of x",
        ),
    ]  # fmt: skip


def _bound_claims(
    population: Population, runs: Runs, constants: Constants, theorem: Terms, repaired: Terms,
    config: Config, n: int,
) -> list[Claim]:  # fmt: skip
    """The dropped complexity, the limit of large n, and the coverages."""
    eta, eta_hat = config.eta, runs.eta_hat(config.eta)
    left = left_sides(runs, eta)
    gap = left["mixup"] - eta_hat * runs.l_mix
    term = float(np.mean(theorem.complexity))
    value, low, high = _mean_with_interval(gap / term if term else np.full(len(gap), math.nan))
    claims = [
        Claim(
            "complexity", "Complexity term covers the mean gap", "η̂(E L_mix − L_mix) / term",
            value, "<=", 1.0, low, high, note="" if term else "the term is zero",
        ),
        _limit_claim(runs, theorem, eta, n),
    ]  # fmt: skip
    claims += [
        coverage(name, READINGS[name], values <= theorem.total, config.delta)
        for name, values in left.items()
    ]
    claims += [
        coverage(
            "plug_in", "E_S L ≤ bound, constants from one sample",
            _plug_in_covers(population, runs, left["objective"], config, n), config.delta,
        ),
        coverage(
            "repaired", "E_S L_mix ≤ the repaired bound",
            runs.expected_l_mix <= repaired.total, config.delta,
        ),
    ]  # fmt: skip
    return claims


def _limit_claim(runs: Runs, theorem: Terms, eta: float, n: int) -> Claim:
    """Does the bound stay above L̃ for the trained θ as n grows?"""
    total = runs.limit_l_mix + eta * runs.expected_penalty
    side = np.sign(total) * np.abs(runs.limit_l_mix)
    shortfall = side - np.abs(runs.limit_l_mix / total) * runs.limit_l_mix
    mean = float(shortfall.mean())
    rest = float(np.mean(theorem.complexity + theorem.confidence)) * math.sqrt(n)
    note = f"so the bound fails from n ≈ {(rest / mean) ** 2:.1g} on" if mean > 0 else ""
    relative = -mean / float(np.abs(side).mean())
    return Claim(
        "limit", "E_S L ≤ bound as n → ∞", "(bound − L̃) / |L̃|", relative, ">=", 0.0, note=note
    )


def _plug_in_covers(
    population: Population, runs: Runs, left: np.ndarray, config: Config, n: int
) -> np.ndarray:
    """Whether the bound with constants from each sample alone covers the left side."""
    totals = []
    for k, (theta, w) in enumerate(zip(runs.thetas, runs.weights, strict=True)):
        constants = _plug_in(population, theta, w, config, n)
        eta_hat = runs.eta_hat(config.eta)[k]
        terms = theorem_terms(constants, runs.l_mix[k], eta_hat, config.eta, n, config.delta)
        totals.append(terms.total)
    return left <= np.array(totals)


def _plug_in(population: Population, theta: Tensor, w: Tensor, config: Config, n: int) -> Constants:
    mixing = Mixing(config.alpha, config.nodes)
    return estimate_constants(population, theta[None], w > 0, mixing, config.eta, n)


def _means(
    runs: Runs, theorem: Terms, repaired: Terms, eta: float
) -> dict[str, float]:  # fmt: skip
    """Means over samples of the terms, of both sides and of the looseness."""
    left = left_sides(runs, eta)
    objective = np.sign(runs.l_mix + eta * runs.penalty) * np.abs(runs.l_mix)
    bound, gap = theorem.total, left["objective"] - objective
    values = {
        "l_mix": runs.l_mix,
        "eta_hat": runs.eta_hat(eta),
        "risk": theorem.risk,
        "complexity": theorem.complexity,
        "confidence": theorem.confidence,
        "bound": bound,
        **{f"left_{name}": side for name, side in left.items()},
        "gap": gap,
        "dropped": objective - theorem.risk,
        "repaired_complexity": repaired.complexity,
        "repaired_confidence": repaired.confidence,
        "repaired_bound": repaired.total,
    }
    means = {name: float(np.mean(value)) for name, value in values.items()}
    means["gap_sem"] = float(gap.std(ddof=1)) / math.sqrt(len(gap))
    means["bound_over_risk"] = means["bound"] / means["left_risk"]
    means["bound_over_gap"] = (means["bound"] - float(objective.mean())) / means["gap"]
    return means


def measure_size(
    population: Population, config: Config, n: int, rng: np.random.Generator
) -> SizeResult:
    """Both sides of the bound at one sample size."""
    mixing, eta = Mixing(config.alpha, config.nodes), config.eta
    runs = resample(population, config, n, rng)
    constants = estimate_constants(population, runs.thetas, population.p > 0, mixing, eta, n)
    theorem = theorem_terms(constants, runs.l_mix, runs.eta_hat(eta), eta, n, config.delta)
    repaired = repaired_terms(constants, runs.l_mix, n, config.delta)
    claims = [
        *_step_claims(constants, runs, config),
        *_complexity_claims(population, runs, constants, config, n, rng),
        *_bound_claims(population, runs, constants, theorem, repaired, config, n),
    ]
    return SizeResult(
        n,
        constants,
        _plug_in(population, runs.thetas[0], runs.weights[0], config, n),
        _means(runs, theorem, repaired, eta),
        {claim.name: claim for claim in claims},
    )


def measure(
    config: Config,
    population: Population | None = None,
    progress: Callable[[str], object] = lambda text: None,
) -> Study:
    """Runs the study that a configuration asks for.

    Args:
        config: The flags.
        population: Of your own; by default the one that `config.data` names.
        progress: Told what is being done.

    Raises:
        InputError: If a flag is out of its range, or labels do not suit the family.
    """
    _check(config)
    rng = np.random.default_rng(config.seed)
    if population is None:
        family = family_named(config.family)
        population = (
            digits_population(config.family)
            if config.data == "digits"
            else synthetic(family, config.dimension, config.points, SCALES[family.name], rng)
        )
    sizes = []
    for n in config.n:
        progress(f"n = {n:,}")
        sizes.append(measure_size(population, config, n, rng))
    settings = {k: v for k, v in asdict(config).items() if k not in ("out", "debug")}
    return Study(settings, sizes)


def _check(config: Config) -> None:
    family_named(config.family)
    Mixing(config.alpha, config.nodes)
    if not config.n or min(config.n) < 2:
        raise InputError(f"--n is {config.n}: name sample sizes of at least 2")
    if not 0 < config.delta < 1:
        raise InputError(f"--delta is {config.delta:g}: it must be between 0 and 1")
    if config.resamples < 2 or config.signs < 2:
        raise InputError("--resamples and --signs must be at least 2: an error needs two draws")
    if not 0 <= config.eta < math.inf:
        raise InputError(f"--eta is {config.eta:g}: it must be 0 or positive, and finite")
    if not 0 < config.box <= 100:
        raise InputError(f"--box is {config.box:g}: it must be positive and at most 100")


def _rows(study: Study, names: Mapping[str, str], part: str) -> str:
    """Numbers of a part of each size as a table: name, a column a size, what it is."""
    rows = [["name", *(f"n = {size.n:.3g}" for size in study.sizes), "what"]]
    for name, what in names.items():
        values = []
        for size in study.sizes:
            holder = getattr(size, part)
            values.append(holder[name] if isinstance(holder, dict) else getattr(holder, name))
        rows.append([name, *(f"{value:.4g}" for value in values), what])
    return align(rows)


TERMS = {
    "risk": "η̂ L_mix",
    "complexity": "2η̂ηL_Aγ𝒳/(√n(1+L_A))",
    "confidence": "B√(log(1/δ)/2n)",
    "bound": "their sum",
    "left_objective": "L̃ = E_S L, each S its own η̂",
    "left_risk": "true risk E ℓ",
    "gap": "L̃ − L(θ, S)",
    "dropped": "L(θ, S) − η̂ L_mix, which the bound leaves out",
    "bound_over_risk": "bound / true risk",
    "bound_over_gap": "(bound − L(θ, S)) / gap",
    "repaired_bound": "of E_S L_mix, every step of the proof done",
}


def summary(study: Study) -> str:
    """Constants with their choices, terms, and claims with verdicts."""
    titles = [f"n = {size.n:.3g}" for size in study.sizes]
    interval = "95 % interval: Clopper–Pearson of a coverage, 1.96 standard errors of a mean"
    parts = [
        "Constants, of the class of all trained θ on the whole population",
        _rows(study, CHOICES, "constants"),
        "",
        "The same from one sample alone",
        _rows(study, CHOICES, "plug_in"),
        "",
        "Terms, means over samples",
        _rows(study, TERMS, "terms"),
        "",
        tabulate_claims(titles, [size.claims for size in study.sizes], interval),
    ]
    return "\n".join(parts)


def save(folder: Path, study: Study) -> list[Path]:
    """Writes the record and its figure, each as a whole.

    Raises:
        InputError: If the folder cannot be written to.
    """
    record = {"command": command_line("theory.generalization"), **study.record()}
    paths = [folder / "generalization.json", folder / "generalization.png"]
    write_json(paths[0], record)
    write_atomically(paths[1], plot(record).savefig)
    return paths


def run(config: Config) -> int:
    """Measures, saves and prints; the exit code."""
    torch.set_num_threads(1)  # the tables are too small to share
    _check(config)
    check_writable(config.out)
    with tqdm(bar_format="{desc} ({elapsed})", disable=None) as bar:
        study = measure(config, progress=bar.set_description_str)
    print(summary(study))
    print(f"\nWritten to {', '.join(map(str, save(config.out, study)))}")
    return 0


def main(argv: Sequence[str] | None = None) -> int:
    """The command; returns its exit code."""
    return run_command(Config, run, prog=PROG, argv=argv)


if __name__ == "__main__":
    sys.exit(main())
