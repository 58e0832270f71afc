"""Command: does Theorem 2's generalisation bound for MixupE hold, and how loose is it?

Trains a GLM on many samples of each size, drawn from a population that is known exactly, and holds
both sides of the bound against each other: `theory.bounds` has the theorem and its steps,
`theory.trials` the comparison. Writes `generalization.json` and `generalization.png`.
"""

import sys
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any, Literal

import numpy as np
import torch
from sklearn.datasets import load_digits
from tqdm import tqdm

from figures.drawing import write_figure
from figures.generalization import plot
from theory.bounds import CHOICES
from theory.command import run_command
from theory.errors import InputError
from theory.glm import FamilyName, Population, family_named, synthetic
from theory.record import command_line, environment, writable, write_json
from theory.report import align, tabulate_claims
from theory.trials import Settings, SizeResult, measure_size, train_reference

PROG = "python -m theory.generalization"
SCALES = {"logistic": 4.0, "linear": 1.0, "poisson": 1.5}
"""‖θ*‖ of the synthetic populations."""


@dataclass(frozen=True)
class Config(Settings):
    """Check Theorem 2: constants, terms, coverage and looseness of MixupE's bound for GLMs."""

    family: FamilyName = "logistic"
    """logistic, linear or poisson"""
    data: Literal["synthetic", "digits"] = "synthetic"
    """A known GLM, or 200 scikit-learn digits as the population: 0 against 1 (logistic), the digit
    itself, standardised (linear) or as a count (poisson)"""
    n: tuple[int, ...] = (100, 1_000, 10_000, 1_000_000, 10_000_000_000)
    """Sizes of the samples"""
    dimension: int = 5
    """Dimension of the synthetic points"""
    points: int = 128
    """Synthetic points, drawn once: the support of the population"""
    seed: int = 0
    """Of population, samples and signs"""
    out: Path = Path("runs/generalization")
    """Folder for the record and the figure"""
    debug: bool = False
    """Show the traceback of an error"""

    def check(self) -> None:
        """Accept flags in their ranges.

        Raises:
            InputError: For the first one that is not.
        """
        super().check()
        family_named(self.family)
        if self.data not in ("synthetic", "digits"):
            raise InputError(f"unknown data {self.data!r}: use synthetic or digits")
        if not self.n or min(self.n) < 2:
            raise InputError("--n needs sample sizes of at least 2: Mixup works on pairs")
        if self.seed < 0:
            raise InputError(f"--seed is {self.seed}: it must be 0 or positive")


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


def digits_population(family: FamilyName) -> Population:
    """200 of scikit-learn's digits, all as likely: 4 × 4 block means in [0, 1] and a constant 1.

    Blocks, because pixels that are lit in few images leave θ all but undetermined.
    """
    digits = load_digits(n_class=2 if family == "logistic" else 10)
    blocks = digits.images[:200].reshape(-1, 4, 2, 4, 2).mean((2, 4)).reshape(-1, 16) / 16
    y = digits.target[:200].astype(float)
    if family == "linear":
        y = (y - y.mean()) / y.std()
    table = np.column_stack([blocks, np.ones(len(y))])
    p = torch.full((len(y), 1), 1 / len(y), dtype=torch.float64)
    return Population(
        family_named(family), torch.from_numpy(table), torch.from_numpy(y)[:, None], p
    )  # fmt: skip


def measure(
    config: Config,
    population: Population | None = None,
    progress: Callable[[str], object] = lambda text: None,
) -> Study:
    """Runs the study that a configuration asks for.

    Args:
        config: The flags.
        population: Of your own, with its own family; by default as `config` names them.
        progress: Told what is being done.

    Raises:
        InputError: If a flag is out of its range, or labels do not suit the family.
    """
    config.check()
    rng = np.random.default_rng(config.seed)
    settings = {k: v for k, v in asdict(config).items() if k not in ("out", "debug")}
    if population is not None:
        settings |= {"family": population.family.name, "data": "given"}
    elif config.data == "digits":
        population = digits_population(config.family)
    else:
        family, scale = family_named(config.family), SCALES[config.family]
        population = synthetic(family, config.dimension, config.points, scale, rng)
    progress("population")
    reference = train_reference(population, config)
    sizes = []
    for n in config.n:
        progress(f"n = {n:,}")
        sizes.append(measure_size(population, reference, config, n, rng))
    return Study(settings, sizes)


def _rows(study: Study, names: Mapping[str, str], part: str) -> str:
    """Numbers of a part of each size as a table: name, a column a size, what it is."""
    rows = [["name", *(f"n = {size.n:.3g}" for size in study.sizes), "what"]]
    for name, what in names.items():
        values = []
        for size in study.sizes:
            holder = getattr(size, part)
            values.append(holder[name] if isinstance(holder, dict) else getattr(holder, name))
        rows.append([name, *(f"{value:.4g}" for value in values), what])
    return "\n".join(align(rows))


TERMS = {
    "risk": "η̂ L_mix",
    "complexity": "2η̂ηL_Aγ𝒳/(√n(1+L_A))",
    "confidence": "B√(log(1/δ)/2n)",
    "bound": "their sum",
    "left_objective": "L̃ = E_S L, each S its own η̂",
    "left_risk": "true risk E ℓ",
    "gap": "E_S L_mix − L_mix",
    "dropped": "η̂ηR, which the bound leaves out",
    "bound_over_risk": "bound / true risk",
    "slack_over_gap": "(bound − L_mix) / gap",
    "repaired_bound": "on E_S L_mix, each step of the proof done",
}


def summary(study: Study) -> str:
    """Constants with their choices, terms, and claims with verdicts."""
    shown = study.sizes if len(study.sizes) < 3 else [study.sizes[0], study.sizes[-1]]
    titles = [f"n = {size.n:.3g}" for size in shown]
    interval = "95 % interval: Clopper–Pearson of a coverage, 1.96 standard errors of a mean"
    parts = [
        "Constants, of the class of all trained θ on the whole population",
        _rows(study, CHOICES, "constants"),
        "",
        "The same estimated from one sample alone",
        _rows(study, dict.fromkeys(CHOICES, ""), "plug_in"),
        "",
        "Terms, means over samples",
        _rows(study, TERMS, "terms"),
        "",
        tabulate_claims(titles, [size.claims for size in shown], interval),
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
    write_figure(paths[1], plot(record))
    return paths


def run(config: Config) -> int:
    """Measures, saves and prints; the exit code."""
    torch.set_num_threads(1)  # the tables are too small to share
    config.check()
    with writable(config.out), tqdm(bar_format="{desc} ({elapsed})", disable=None) as bar:
        study = measure(config, progress=bar.set_description_str)
    print(summary(study))
    print(f"\nWritten to {', '.join(map(str, save(config.out, study)))}")
    return 0


def main(argv: Sequence[str] | None = None) -> int:
    """The command; returns its exit code."""
    return run_command(Config, run, prog=PROG, argv=argv)


if __name__ == "__main__":
    sys.exit(main())
