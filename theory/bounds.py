"""Theorem 2's bound with its constants, and the bound that its proof gives once every step holds.

The theorem (Zou, Verma et al., "MixupE", UAI 2023, as in the talk): for a GLM with A L_A-Lipschitz,
bounded inputs, labels and Θ = {θ : sup |q̂| ≤ γ}, and the expected risk L̃(θ) = E_S L(θ, S) of

    L(θ, S) = η̂ (L_mix + ηR),    η̂ = |L_mix| / |L_mix + ηR|,    R = E[a]/n Σ |q̂(x_i)|,

there is a B > 0 such that with probability at least 1 − δ, for all θ in Θ,

    L̃(θ) ≤ η̂ L_mix + 2 η̂ η L_A γ 𝒳 / (√n (1 + L_A)) + B √(log(1/δ) / (2n)).

What a proof by McDiarmid's inequality, symmetrisation and contraction needs, and whether it follows
(the talk shows no proof; these are the steps that terms of this form come from):

* *η̂ L_mix as the risk of the sample.* McDiarmid compares L̃ with L itself. Its value is
  η̂ (L_mix + ηR) = ±|L_mix|, and the bound drops η̂ηR. FAILS: as n → ∞ the two other terms vanish,
  the bound tends to η̂ L_mix and L̃ to L_mix (for a positive L_mix + ηR), so L̃ exceeds the bound by
  (1 − η̂) L_mix = η̂ηR > 0 for every θ with R > 0 and all large n, whatever the constant B. For a
  negative L_mix, η̂ > 1 and η̂ L_mix < L_mix, with the same end. With η̂ held constant L̃ is
  η̂ (E L_mix + ηE R), and the missing part is again η̂ηR.
* *B.* McDiarmid gives B = n times the most that one example changes L. An example is in 2n − 1 of
  the n² pairs, so this is (2 − 1/n) times the range of ℓ, plus ηE[a]γ. Bounded labels are an
  assumption: for Gaussian and Poisson labels no B exists.
* *Contraction.* ℓ = A(u) − yu has the Lipschitz constant sup |A'(u) − y| in u, not ηL_A. FAILS for
  small η: the term would vanish with η although the complexity of L_mix does not depend on it.
* *|θᵀx| ≤ γ/(1 + L_A).* FAILS: |q̂| = |y − g||u| ≤ γ and |y − g| ≤ 1 + L_A (labels in [−1, 1]) give
  |u| ≥ |q̂|/(1 + L_A); the step needs the opposite. A point with two possible logistic labels allows
  |u| up to the root of σ(v)v = γ, which is at least γ. Separable points allow any multiple of a
  separating θ: its |q̂| tends to 0, so only the assumed bound on Θ limits the class.
* *𝒳.* The talk has ‖x‖² ≤ 𝒳 in √(ξ𝒳/n), but γ𝒳 in the bound. FAILS as an identity: with x in other
  units, x → sx and θ → θ/s, all risks and q̂ stay and the term changes by s².
* *The ball.* ℛ{‖θ‖² ≤ ξ} ≤ √(ξ𝒳/n): HOLDS (`theory.rademacher.ball_bound`; the supremum is over θ).

`repaired_terms` is what follows when each step is done as it must be.
"""

import math
from dataclasses import dataclass

import numpy as np
import torch
from jaxtyping import Bool, Float
from torch import Tensor

from theory.errors import InputError
from theory.glm import Mixing, Population

Numbers = float | np.ndarray

CHOICES = {
    "lipschitz": "L_A: largest |A'(u)| for |u| ≤ max_logit (over all u: 1 logistic, else infinite)",
    "gamma": "γ: largest |q̂| of the trained θ",
    "squared_norm": "𝒳: largest ‖x‖², as in the talk's √(ξ𝒳/n)",
    "max_logit": "U: largest |θᵀx| of the trained θ; bounds Θ",
    "xi": "ξ: largest ‖θ‖² of the trained θ; the theorem ties no ξ to γ",
    "slope": "largest |A'(u) − y| for |u| ≤ U: the Lipschitz constant of ℓ in u",
    "loss_range": "largest minus smallest ℓ for |u| ≤ U, labels between the extremes",
    "mcdiarmid": "B: n × the most one example changes L_mix + ηR",
}


@dataclass(frozen=True)
class Constants:
    """The constants of the bounds, for a class that holds the given θ; see `CHOICES`.

    Attributes:
        lipschitz: L_A.
        gamma: γ.
        squared_norm: 𝒳.
        max_logit: U.
        xi: ξ.
        slope: Lipschitz constant of ℓ in u.
        loss_range: Largest difference of two losses.
        mcdiarmid: B.
    """

    lipschitz: float
    gamma: float
    squared_norm: float
    max_logit: float
    xi: float
    slope: float
    loss_range: float
    mcdiarmid: float


def estimate_constants(
    population: Population,
    thetas: Float[Tensor, "runs d"],
    seen: Bool[Tensor, "points labels"],
    mixing: Mixing,
    eta: float,
    n: int,
) -> Constants:
    """The constants of the smallest class that holds every θ, on those cells that are seen.

    With all possible cells the class is fixed before the sample is drawn, as the theorem asks; with
    the cells and the θ of one sample this is what a user with that sample alone can estimate.

    Args:
        population: Family, points and labels.
        thetas: Trained parameters.
        seen: Cells to look at.
        mixing: The law of λ.
        eta: Strength of the penalty.
        n: Size of the sample, which B depends on a little.
    """
    family, points = population.family, seen.any(1)
    logit = population.logits(thetas)[:, points].abs().max()
    gamma = max(float(population.q_hat(theta)[seen].abs().max()) for theta in thetas)
    labels = population.y[seen]
    y = torch.stack([labels.min(), labels.max()])[:, None]
    # ℓ is affine in y and convex in u: extremes lie at the ends and where A'(u) = y.
    ends = torch.stack([-logit, logit]).expand(2, 2)
    u = torch.cat([ends, family.target(y).clamp(-logit, logit)], 1)
    loss = family.log_partition(u) - y * u
    loss_range = float(loss.max() - loss.min())
    return Constants(
        lipschitz=float(family.mean(ends).abs().max()),
        gamma=gamma,
        squared_norm=float((population.x[points] ** 2).sum(1).max()),
        max_logit=float(logit),
        xi=float((thetas**2).sum(1).max()),
        slope=float((family.mean(ends) - y).abs().max()),
        loss_range=loss_range,
        mcdiarmid=(2 - 1 / n) * loss_range + eta * mixing.mean_a * gamma,
    )


@dataclass(frozen=True)
class Terms:
    """A bound's three terms.

    Attributes:
        risk: What was measured on the sample.
        complexity: For choosing θ after seeing the sample.
        confidence: For the luck of the sample.
    """

    risk: Numbers
    complexity: Numbers
    confidence: Numbers

    @property
    def total(self) -> Numbers:
        """The bound."""
        return self.risk + self.complexity + self.confidence


def _deviation(delta: float, n: int) -> float:
    if not 0 < delta < 1:
        raise InputError(f"delta is {delta:g}: it must be between 0 and 1")
    if n < 2:
        raise InputError(f"a sample of {n} has no pairs: n must be at least 2")
    return math.sqrt(-math.log(delta) / (2 * n))


def theorem_terms(
    constants: Constants, l_mix: Numbers, eta_hat: Numbers, eta: float, n: int, delta: float
) -> Terms:
    """Theorem 2's right side: η̂ L_mix, 2η̂ηL_Aγ𝒳/(√n (1 + L_A)), B√(log(1/δ)/(2n)).

    Raises:
        InputError: If δ is not between 0 and 1, or n is below 2.
    """
    deviation = _deviation(delta, n)
    radius = constants.gamma * constants.squared_norm / (1 + constants.lipschitz)
    complexity = 2 * eta_hat * eta * constants.lipschitz * radius / math.sqrt(n)
    return Terms(eta_hat * l_mix, complexity, constants.mcdiarmid * deviation)


def repaired_terms(constants: Constants, l_mix: Numbers, n: int, delta: float) -> Terms:
    """A bound on E_S L_mix(θ) for all θ with ‖θ‖² ≤ ξ and |θᵀx| ≤ U, with probability 1 − δ.

    McDiarmid with B = (2 − 1/n) · range of ℓ. L_mix is 1/n of the plain risk (pairs i = j) and
    1 − 1/n of an average over pairs, which is a mean over orders of ⌊n/2⌋ independent pairs
    (Hoeffding 1963). Symmetrisation and contraction with the slope of ℓ, mixed points having
    ‖x‖² ≤ 𝒳 too and keeping one label each by Theorem 1's relabelling, give the complexity
    2 · slope · √(ξ𝒳) · ((1/n)/√n + (1 − 1/n)/√⌊n/2⌋).

    Raises:
        InputError: If δ is not between 0 and 1, or n is below 2.
    """
    deviation = _deviation(delta, n)
    rate = 1 / n**1.5 + (1 - 1 / n) / math.sqrt(n // 2)
    radius = math.sqrt(constants.xi * constants.squared_norm)
    complexity = 2 * constants.slope * radius * rate
    return Terms(l_mix, complexity, (2 - 1 / n) * constants.loss_range * deviation)
