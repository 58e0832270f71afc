"""Theorem 1's regulariser where all n² pairs are out of reach: estimates with standard errors.

    R = 1/n Σ_i E_{λ ~ D̃_λ, x'} [φ_i(a) − φ_i(0)],   φ_i(a) = ℓ(x_i + a(x' − x_i), y_i),  a = 1 − λ

(Zou, Verma et al., "MixupE", UAI 2023, Theorem 1) is the mean of a draw Δ(a) over i, x' and λ.
Where α is small nearly all of D̃_λ lies at a = 0, where Δ is zero: few of its draws meet the a that
carry R, and an interval from draws that met none is narrow and wrong. So a is drawn from the law
whose density is a/E[a] times D̃_λ's, which is spread out whatever α is, and R is the same integral

    R = E[a] · 1/n Σ_i E_{a, x'} [Δ(a)/a]   over that size-biased law of a.

Δ(a)/a, the mean slope of the loss from x_i to the mixed input, is bounded where the loss is
Lipschitz. Three more things make the same number of forward passes tell more (for all of them see
Owen, "Monte Carlo theory, methods and examples", 2013, chapters 8 to 10):

- Stratified examples. Sorted by their loss they are cut into strata; each has two units, drawn
  independently. The two differ by chance alone, which gives the standard error without bias.
- Stratified λ. The draws of one unit take λ from equal shares of its size-biased law, by inversion.
- A control variate. The slope at a = 0, (g − y)ᵀJ(x' − x_i), has a known mean for each example,
  q(x_i). One vjp an example gives it for all partners; θ times its deviation from that mean is
  subtracted from Δ(a)/a. θ is 1 or fitted. A fit on the draws that it corrects would be biased, so
  each half of the strata takes the θ that fits the other half: the estimate is unbiased, whatever
  θ is.

Rounding. Δ is known to about the machine's ε times the loss, so Δ(a)/a to ε/a times it, on average
E[a] · E[ε/a] = ε times the loss in R: as much as in draws of D̃_λ itself, and like there no part of
the interval. Where a < 10 ε, or rounds to zero, the slope at zero stands for Δ(a)/a: along a smooth
segment it is off by at most 5 ε times the second derivative, where rounding would be off by a tenth
of the loss or more.

A tolerance on the interval's width is looked at only after whole stages. Whoever stops when an
interval is narrow stops more often on draws that happen to scatter little: so each stage is as long
as the one before says is needed, which makes for two or three looks and not for hundreds.
"""

import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import Literal, get_args

import numpy as np
import torch
from jaxtyping import Float
from scipy import stats
from torch import Tensor

from theory.errors import InputError, check_positive
from theory.first_order import loss_gradient
from theory.losses import Head, loss
from theory.mixing import BetaMixture, relabelled_law
from theory.network import Function

Control = Literal["none", "first-order", "fitted"]
LEAST_STRATA = 8
# Below so many machine epsilons of a, Δ(a)/a is mostly rounding.
LEAST_SHARE = 10
# Forward passes that one example's vjp costs, by `python -m benchmarks first_order`.
VJP_WORK = 2.1


@dataclass(frozen=True)
class Sampling:
    """How R is estimated.

    Attributes:
        draws: Forward passes of one example to spend, about; with a tolerance, before the first
            look at it.
        tolerance: Half-width of the 95 % interval relative to the estimate at which to stop; None
            to spend `draws` and no more.
        most: Draws at which a tolerance is given up, about.
        control: "none", "first-order" (θ = 1) or "fitted".
        lam_strata: Shares of λ's size-biased law in each unit; 1 leaves λ unstratified.

    Raises:
        InputError: If a number is out of range or the control is unknown.
    """

    draws: int = 4096
    tolerance: float | None = None
    most: int = 2**17
    control: Control = "fitted"
    lam_strata: int = 4

    def __post_init__(self) -> None:
        for name in ("draws", "most", "lam_strata"):
            if getattr(self, name) < 1:
                raise InputError(f"{name} is {getattr(self, name)}: it must be at least 1")
        if self.tolerance is not None:
            check_positive("tolerance", self.tolerance)
        if self.control not in get_args(Control):
            known = ", ".join(get_args(Control))
            raise InputError(f"unknown control variate {self.control!r}: use one of {known}")


@dataclass(frozen=True)
class SampledRegularizer:
    """An estimate of R over all examples, in nats.

    Attributes:
        mean: The estimate.
        sem: Its standard error over draws; the examples are given.
        low: Lower end of the 95 % interval, by Student's t with the degrees of freedom that the
            spread of the strata's variances leaves (Satterthwaite).
        high: Upper end.
        first_order: R_1 = E[a]/n Σ q(x_i), exactly, with x̄' the mean of these examples.
        draws: Forward passes of one example that were drawn.
        coefficient: θ, the mean of the two halves' where it is fitted.
        variance_reduction: Variance of plain Monte Carlo (i, x' and λ ~ D̃_λ independent) over
            that of this estimate, at equal forward passes, the control variate's own included.
        met: Whether a tolerance was given and reached.
    """

    mean: float
    sem: float
    low: float
    high: float
    first_order: float
    draws: int
    coefficient: float
    variance_reduction: float
    met: bool


def sampled_regularizer(
    f: Function,
    x: Float[Tensor, "n *dims"],
    targets: Float[Tensor, "n classes"],
    sampling: Sampling,
    *,
    alpha: float,
    beta: float | None = None,
    head: Head = "softmax",
    generator: torch.Generator | None = None,
    rows: int = 256,
    on_progress: Callable[[float], None] = lambda work: None,
) -> SampledRegularizer:
    """Estimates R over all examples, any of them a partner of any.

    One forward and backward pass of all examples comes first; their gradients are kept, as much
    memory as the examples take.

    Args:
        f: The network as a function (evaluation mode).
        x: Inputs.
        targets: y, one row an example.
        sampling: How many draws, and of which kind.
        alpha: α of the law of λ.
        beta: β of the law of λ; α where it is not given.
        head: Which loss.
        generator: A CPU generator; fixes the draws whatever the device.
        rows: Inputs in one pass.
        on_progress: Called with the work done, in forward passes of one example.

    Raises:
        InputError: If α or β is not positive, there is no example, or f has no derivative.
    """
    if len(x) == 0:
        raise InputError("there are no examples: pass at least one")
    if x.ndim == 1:  # a number an example, here a column
        f, x = _of_column(f), x[:, None]
    problem = _Problem(f, x, targets, relabelled_law(alpha, beta), head, generator, rows)
    on_progress(VJP_WORK * len(x))
    collected = _Collected(sampling, problem)
    wanted, smallest = sampling.draws, 2 * sampling.lam_strata * LEAST_STRATA
    while True:
        while 2 * (wanted - collected.draws) >= smallest or collected.strata < LEAST_STRATA:
            collected.add(problem.stage(wanted - collected.draws, sampling))
            on_progress(collected.latest)
        result = collected.result()
        most = sampling.most - smallest
        if sampling.tolerance is None or result.met or result.draws >= most:
            return result
        # The mean may be far off at first, so no stage goes beyond four times what is known.
        half = (result.high - result.low) / 2
        factor = (half / (sampling.tolerance * abs(result.mean) or math.inf)) ** 2 or 4.0
        wanted = max(math.ceil(result.draws * min(4.0, factor)), result.draws + smallest)
        wanted = min(wanted, sampling.most)


def _of_column(f: Function) -> Function:
    return lambda column: f(column[:, 0])


class _Problem:
    """The network on its examples, with what the draws need of each.

    Attributes:
        share: E[a] under the law of λ.
        least: Below it Δ(a)/a is mostly rounding.
        first_order: q, the mean slope at a = 0 over all partners, one an example.
    """

    def __init__(
        self,
        f: Function,
        x: Tensor,
        targets: Tensor,
        law: BetaMixture,
        head: Head,
        generator: torch.Generator | None,
        rows: int,
    ) -> None:
        starts, gradients = [], []
        for a, b in zip(x.split(rows), targets.split(rows), strict=True):
            logits, c = loss_gradient(f, a, b, head)
            starts.append(loss(logits.detach(), b, head).double())
            gradients.append(c.flatten(1))
        self.start, self.gradient = torch.cat(starts), torch.cat(gradients)
        self.f, self.x, self.targets, self.head = f, x, targets, head
        self.share, self.law = law.moment(1), law.size_biased()
        self.least = LEAST_SHARE * torch.finfo(x.dtype).eps
        self.generator, self.rows = generator, rows
        self.order = self.start.argsort()
        mean = x.mean(0, dtype=torch.float64).to(x.dtype)
        self.first_order = torch.einsum("nd,nd->n", self.gradient, (mean - x).flatten(1)).double()

    def stage(self, draws: int, sampling: Sampling) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        """Draws with a from its size-biased law, each (strata, 2 units, λ strata).

        Returns:
            (slope, control, a): Δ(a)/a; (g − y)ᵀJv less its mean for the example; a.
        """
        n, k = len(self.x), sampling.lam_strata
        strata = min(n, max(LEAST_STRATA, draws // (2 * k)))
        # In float64 (s + U)·n/S never rounds up to another example where S = n.
        place = torch.arange(strata)[:, None] + self._uniform(strata, 2)
        at = (place * n / strata).long().clamp(max=n - 1).to(self.x.device)
        i = self.order[at][:, :, None].expand(strata, 2, k)
        j = torch.randint(n, (strata, 2, k), generator=self.generator).to(i)
        u = (torch.arange(k) + self._uniform(strata, 2, k)) / k
        a = (1 - torch.from_numpy(self.law.inverse(u.numpy()))).to(self.x)
        slope, control = [], []
        for ii, jj, aa in zip(*(t.flatten().split(self.rows) for t in (i, j, a)), strict=True):
            v = self.x[jj] - self.x[ii]
            with torch.no_grad():
                moved = self.f(self.x[ii] + aa.reshape(-1, *(1,) * (v.ndim - 1)) * v)
                change = loss(moved, self.targets[ii], self.head).double() - self.start[ii]
            tangent = torch.einsum("nd,nd->n", self.gradient[ii], v.flatten(1)).double()
            slope.append(torch.where(aa < self.least, tangent, change / aa.double()))
            control.append(tangent - self.first_order[ii])
        first, second, third = (
            t.reshape(strata, 2, k).cpu().numpy()
            for t in (torch.cat(slope), torch.cat(control), a.double())
        )
        return first, second, third

    def _uniform(self, *shape: int) -> Tensor:
        return torch.rand(shape, dtype=torch.float64, generator=self.generator)


class _Collected:
    """What the stages so far say."""

    def __init__(self, sampling: Sampling, problem: _Problem) -> None:
        self._sampling, self._problem = sampling, problem
        self.draws = self.latest = self.strata = 0
        self._sum, self._differences = 0.0, np.empty(0)
        # Sums over draws, s = Δ(a)/a: of a s², which gives E[Δ²] as R comes of s, and of the 1/a
        # by which rounding is multiplied.
        self._square = self._inverse = 0.0
        self._coefficients = 0.0
        # Of each half of the strata: Σ d c and Σ c², d and c the units' differences of s and of
        # the control variate.
        self._fit = np.zeros((2, 2))

    def add(self, stage: tuple[np.ndarray, np.ndarray, np.ndarray]) -> None:
        """Takes in one stage's slopes, control variate and a."""
        slope, control, a = stage
        self.latest = slope.size
        self.draws += slope.size
        self._square += float((a * slope**2).sum())
        self._inverse += float((1 / a[a >= self._problem.least]).sum())
        units, controls = slope.mean(2), control.mean(2)
        theta = self._coefficient(units, controls)
        units = units - theta * controls
        self.strata += len(units)
        self._coefficients += float(theta.sum())
        self._sum += units.mean(1).sum()
        self._differences = np.append(self._differences, units[:, 0] - units[:, 1])

    def _coefficient(self, units: np.ndarray, controls: np.ndarray) -> np.ndarray:
        """θ of each stratum, a column; never from its own draws where it is fitted."""
        if self._sampling.control != "fitted":
            return np.full((len(units), 1), float(self._sampling.control == "first-order"))
        theta = np.empty((len(units), 1))
        d, c = (t[:, 0] - t[:, 1] for t in (units, controls))
        for half in (0, 1):
            self._fit[half] += d[half::2] @ c[half::2], c[half::2] @ c[half::2]
        for half in (0, 1):
            product, size = self._fit[1 - half]
            theta[half::2] = product / size if size > 0 else 0.0
        return theta

    def result(self) -> SampledRegularizer:
        """The estimate from all stages."""
        # In units of E[a], which may be so small that its square is zero.
        share = self._problem.share
        mean = float(self._sum) / self.strata
        variances = self._differences**2 / (4 * self.strata**2)
        sem = math.sqrt(float(variances.sum()))
        passes = self.draws
        if self._sampling.control != "none":
            passes += round(VJP_WORK * len(self._problem.x))
        plain = (self._square / self.draws / share - mean**2) / passes
        rounding = 100 * torch.finfo(self._problem.x.dtype).eps
        rounding *= float(self._problem.start.mean().abs())
        flat = float(self._problem.first_order.abs().mean()) <= rounding
        if flat and abs(mean) + sem <= rounding * self._inverse / self.draws:
            mean = sem = 0.0  # alike examples, or one alone
        half = 0.0
        if sem > 0:
            # E of a squared variance with one degree of freedom is three times its square.
            freedom = max(1.0, float(3 * variances.sum() ** 2 / (variances**2).sum() - 2))
            half = sem * float(stats.t.ppf(0.975, freedom))
        tolerance = self._sampling.tolerance
        return SampledRegularizer(
            mean=share * mean,
            sem=share * sem,
            low=share * (mean - half),
            high=share * (mean + half),
            first_order=share * float(self._problem.first_order.mean()),
            draws=self.draws,
            coefficient=self._coefficients / self.strata,
            variance_reduction=plain / sem**2 if sem > 0 else math.nan,
            met=tolerance is not None and half <= tolerance * abs(mean),
        )
