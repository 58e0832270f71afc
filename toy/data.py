"""Toy data: points `x` with labels `y = ±1`; `signed = y x` is what a linear model sees.

Every set is made in float64 from an explicit `numpy.random.Generator`. Two of the sets carry the
max-margin direction they were built around, so that solvers can be held against it.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import numpy as np
from jaxtyping import Float64

from theory.errors import InputError, unknown
from theory.record import read_text

NAMES = ("skewed", "soudry", "clouds", "moons", "rings", "digits", "cancer")


@dataclass(frozen=True)
class ToyData:
    """A binary classification set.

    Attributes:
        name: What tables and figures call it.
        x: Points, one a row.
        y: Labels, −1 or +1.
        direction: The unit max-margin direction where the construction knows it, else None.

    Raises:
        InputError: If a number is not finite or all are 0 or out of range, a label is not ±1, or a
            point stands twice (with one label: it counts double in every mean; with both: no
            classifier separates it).
    """

    name: str
    x: Float64[np.ndarray, "n d"]
    y: Float64[np.ndarray, " n"]
    direction: Float64[np.ndarray, " d"] | None = None

    def __post_init__(self) -> None:
        if not (np.isfinite(self.x).all() and np.isfinite(self.y).all()):
            raise InputError(f"{self.name}: a value is NaN or infinite; remove or impute that row")
        if not np.isin(self.y, (-1.0, 1.0)).all():
            raise InputError(f"{self.name}: labels must be -1 or +1")
        if not 1e-100 < np.abs(self.x).max(initial=1e-300) < 1e100:
            raise InputError(
                f"{self.name}: the largest value is {np.abs(self.x).max(initial=0.0):.3g}, its "
                "square leaves the range of float64; rescale the features to about 1"
            )
        _, first, inverse = np.unique(self.x, axis=0, return_index=True, return_inverse=True)
        twin = first[inverse.ravel()]
        repeated = np.flatnonzero(twin != np.arange(len(self.y)))
        if repeated.size:
            i, j = int(twin[repeated[0]]), int(repeated[0])
            if self.y[i] != self.y[j]:
                raise InputError(
                    f"{self.name}: rows {i} and {j} are the same point with both labels; "
                    "no classifier separates them, remove one"
                )
            raise InputError(f"{self.name}: rows {i} and {j} are duplicates; remove one")

    @property
    def signed(self) -> Float64[np.ndarray, "n d"]:
        """Label-absorbed points z = y x: w separates the set iff z·w > 0 for every row."""
        return self.y[:, None] * self.x

    def with_bias(self) -> ToyData:
        """The set with a constant feature 1, which gives a linear model its intercept.

        The set itself if a feature is constant, and not 0, already.
        """
        if ((np.ptp(self.x, axis=0) == 0.0) & (self.x[0] != 0.0)).any():
            return self
        return ToyData(self.name, np.column_stack([self.x, np.ones(len(self.x))]), self.y)

    def moved_to(self, margin: float, direction: Float64[np.ndarray, " d"], now: float) -> ToyData:
        """The classes shifted apart along the max-margin direction until the margin is `margin`.

        Adding the same multiple of u to every z leaves u optimal (the same duals, rescaled).

        Args:
            margin: The new margin, > 0.
            direction: The unit max-margin direction u.
            now: The present margin.

        Raises:
            InputError: If the new margin is not positive.
        """
        if not 0.0 < margin < np.inf:
            raise InputError(f"a margin of {margin} is not separable; choose a positive number")
        shift = (margin - now) * self.y[:, None] * direction
        return ToyData(self.name, self.x + shift, self.y, direction)

    def need_two_classes(self) -> ToyData:
        """Return the set itself.

        Raises:
            InputError: If all labels agree.
        """
        if np.unique(self.y).size < 2:
            raise InputError(f"{self.name}: only one class is present; add points of the other")
        return self


def planted(
    n: int, d: int, margin: float, supports: int, rng: np.random.Generator, name: str = "clouds"
) -> ToyData:
    """Gaussian clouds whose max-margin direction, margin and support vectors are known.

    Draw a unit vector u. `supports` points z get z·u = margin and offsets v_k ⟂ u of which a
    positive combination is zero, so Σ c_k z_k ∝ u with c > 0: the optimality conditions of the
    hard-margin problem hold at u/margin. All other points get z·u at least 1.3 times the margin.

    Args:
        n: Number of points, labels drawn at random (each class at least once).
        d: Dimension, at least 2.
        margin: The hard margin, > 0.
        supports: Number of support vectors, 1 to min(n, d); they come first.
        rng: Source of all randomness.
        name: Name of the set.

    Raises:
        InputError: If an argument is out of its range.
    """
    if d < 2 or not 1 <= supports <= min(n, d) or n < 2 or not 0 < margin < np.inf:
        raise InputError(
            f"clouds: need d >= 2, n >= 2, 1 <= supports <= min(n, d) and a finite margin > 0; "
            f"got n={n}, d={d}, supports={supports}, margin={margin}"
        )
    u = rng.standard_normal(d)
    u /= np.linalg.norm(u)
    across = rng.standard_normal((n, d))
    across -= np.outer(across @ u, u)
    duals = rng.uniform(0.5, 1.5, supports)
    across[supports - 1] = -(duals[:-1] @ across[: supports - 1]) / duals[-1]
    along = margin * (1.3 + rng.exponential(1.0, n))
    along[:supports] = margin
    z = across + along[:, None] * u
    y = np.where(rng.permutation(n) % 2 == 0, 1.0, -1.0)
    return ToyData(name, y[:, None] * z, y, u)


def soudry(rng: np.random.Generator, skewed: bool = False, others: int = 12) -> ToyData:
    """The two-dimensional set of Soudry et al. (JMLR 2018, figure 1), or a skewed relative.

    Four support vectors ±(0.5, 1.5) and ±(1.5, 0.5) give the direction (1, 1)/√2 and the margin √2;
    `others` random points, half of each class, lie off the margin. By the symmetry of the support
    vectors the limit of w(t) − ŵ log t is parallel to ŵ, so the angle gap falls like a power of t,
    not of log t. With `skewed` the second pair is ±(1.25, 0.75) and the other points lie to
    one side: same direction, same margin, but duals in the ratio 1 : 2, the generic 1/log² t, and
    gradients that start well away from ŵ.
    """
    second = (1.25, 0.75) if skewed else (1.5, 0.5)
    z = np.array([(0.5, 1.5), second])
    u = np.array([1.0, 1.0]) / np.sqrt(2.0)
    v = np.array([1.0, -1.0]) / np.sqrt(2.0)
    along = np.sqrt(2.0) * (1.6 + rng.exponential(0.6, others))
    across = rng.uniform(-1.5, 1.5, others) - (1.0 if skewed else 0.0)
    rest = along[:, None] * u + across[:, None] * v
    y = np.concatenate([[1.0, 1.0, -1.0, -1.0], np.where(np.arange(others) % 2 == 0, 1.0, -1.0)])
    x = y[:, None] * np.concatenate([z, z, rest])
    return ToyData("skewed" if skewed else "soudry", x, y, u)


def _read_csv(path: Path) -> ToyData:
    """A comma-separated file without header: features, then the label (0/1 or −1/+1)."""
    text = read_text(path, "", "name a .csv file, comma-separated text in UTF-8")
    lines = [row for line in text.splitlines() if (row := line.partition("#")[0].strip())]
    if not lines:
        raise InputError(f"{path}: the file is empty; write one point a line, its label last")
    try:
        table = np.loadtxt(lines, delimiter=",", ndmin=2)
    except ValueError as fault:
        reason = str(fault).splitlines()[0].split(";")[0]
        raise InputError(
            f"{path}: cannot be read as comma-separated numbers ({reason}); write features, then "
            "the label, and no header line"
        ) from None
    if table.shape[1] < 2:
        raise InputError(f"{path}: need at least one feature column and the label column")
    labels = np.where(table[:, -1] == 0.0, -1.0, table[:, -1])
    if not np.isin(labels, (-1.0, 1.0)).all():
        found = ", ".join(f"{label:g}" for label in np.unique(table[:, -1])[:4])
        raise InputError(
            f"{path}: the last column holds the labels {found}; write 0 and 1, or -1 and 1"
        )
    return ToyData(path.name, np.ascontiguousarray(table[:, :-1]), labels)


def load(name: str, seed: int = 0, n: int = 40, d: int = 2, margin: float = 1.0) -> ToyData:
    """A named set, or a comma-separated file (features, then the label) by its path.

    Args:
        name: One of `NAMES`, or a path that ends in .csv. `digits` is scikit-learn's 8 × 8 digits,
            0 against 1, pixels in [0, 1]; `cancer` its breast cancer set, standardised. These two
            get a constant feature.
        seed: Seed of the drawn sets.
        n: Number of points of `clouds`, `moons`, `rings`.
        d: Dimension of `clouds`, which gets min(d, n) support vectors.
        margin: Margin of `clouds`.

    Raises:
        InputError: If the name is unknown, the file cannot be used, or one class is missing.
    """
    rng = np.random.default_rng(seed)
    if name.endswith(".csv"):
        return _read_csv(Path(name)).need_two_classes()
    if name in ("skewed", "soudry"):
        return soudry(rng, skewed=name == "skewed")
    if name == "clouds":
        return planted(n, d, margin, min(n, d), rng)
    from sklearn import datasets  # takes longer than a study's --help, which needs none

    if name in ("moons", "rings"):
        if n < 4:
            raise InputError(f"{name}: need at least 4 points, got {n}")
        x, label = (
            datasets.make_moons(n, noise=0.1, random_state=seed)
            if name == "moons"
            else datasets.make_circles(n, noise=0.06, factor=0.5, random_state=seed)
        )
        return ToyData(name, x, 2.0 * label - 1.0)
    if name == "digits":
        x, label = datasets.load_digits(n_class=2, return_X_y=True)
        return ToyData(name, x / 16.0, 2.0 * label - 1.0).with_bias()
    if name == "cancer":
        x, label = datasets.load_breast_cancer(return_X_y=True)
        x = (x - x.mean(axis=0)) / x.std(axis=0)
        return ToyData(name, x, 2.0 * label - 1.0).with_bias()
    raise unknown("data", name, NAMES, "a .csv file")
