"""The law of the mixing coefficient λ: Beta(α, β), and its relabelled form D̃_λ.

Mixup draws λ ~ Beta(α, β) and mixes inputs and labels alike. Because the loss is affine in the
label, a mixed label is in expectation a coin that keeps y_i with probability λ and y_j otherwise.
Renaming the two examples in the second case gives Theorem 1's form, in which every mixed input
keeps the label of its first example and λ follows

    D̃_λ = α/(α+β) · Beta(α+1, β)  +  β/(α+β) · Beta(β+1, α)

(Zou, Verma et al., "MixupE", UAI 2023, Theorem 1, where it is called 𝒟_λ; Zhang et al., "How does
mixup help with robustness and generalization?", ICLR 2021, Lemma 3.1). It is not Beta(α, β).

Throughout a = 1 − λ is the share of the second example.
"""

from dataclasses import dataclass

import numpy as np
import torch
from scipy.special import betainc, betaincinv, roots_jacobi

from theory.errors import InputError

# A rule is made from p − 1, which keeps six digits of a p of this size.
LEAST_PARAMETER = 1e-10


@dataclass(frozen=True)
class BetaMixture:
    """A law of λ on [0, 1]: a finite mixture of Beta distributions.

    Attributes:
        components: Triples (weight, p, q) standing for weight · Beta(p, q); the weights sum to one.
    """

    components: tuple[tuple[float, float, float], ...]

    def moment(self, k: int) -> float:
        """E[a^k] with a = 1 − λ, by Π_{r<k} (q + r)/(p + q + r) for each Beta(p, q)."""
        return sum(
            weight * float(np.prod([(q + r) / (p + q + r) for r in range(k)]))
            for weight, p, q in self.components
        )

    def size_biased(self) -> "BetaMixture":
        """The law whose density is a/E[a] times this one's, so that E[h(a)] = E[a] · E'[h(a)/a].

        E' is over the law returned. From weight · Beta(p, q) comes Beta(p, q + 1) with the weight
        weight · q/(p + q) / E[a]. Where most of this law's mass is at a = 0 its mass is not.

        Raises:
            InputError: If E[a] is zero in floating point.
        """
        shares = [weight * (q / (p + q)) for weight, p, q in self.components]
        if not (total := sum(shares)) > 0:
            raise InputError("Beta's parameters are too far from one: E[1 − λ] is zero in float64")
        return BetaMixture(
            tuple(
                (share / total, p, q + 1)
                for share, (_, p, q) in zip(shares, self.components, strict=True)
            )
        )

    def quadrature(self, nodes: int) -> tuple[np.ndarray, np.ndarray]:
        """Gauss–Jacobi rule for expectations over this law.

        Each component has its own rule of `nodes` points, exact for polynomials in a up to degree
        2·nodes − 1, and spectrally convergent where the integrand is smooth in a. Across the kinks
        of a ReLU network convergence is only algebraic.

        Args:
            nodes: Points for each component, at least 1.

        Returns:
            (a, weights), float64 arrays of length nodes × components; the weights sum to one.

        Raises:
            InputError: If there is no node, or a parameter is so small or so large that no rule
                can be made.
        """
        if nodes < 1:
            raise InputError(f"a quadrature rule needs at least one node, not {nodes}")
        points, weights = [], []
        for share, p, q in self.components:
            # On t = 2a − 1 the density of λ ~ Beta(p, q) is (1 − t)^(p−1) (1 + t)^(q−1).
            if min(p, q) < LEAST_PARAMETER:
                raise InputError(
                    f"Beta({p:g}, {q:g}) has too small a parameter for a quadrature rule: raise "
                    f"alpha, or beta, to {LEAST_PARAMETER:g} at least"
                )
            try:
                with np.errstate(all="ignore"):  # judged by its result
                    t, w = roots_jacobi(nodes, p - 1, q - 1)
                sound = bool(np.isfinite(t).all() and np.isfinite(w).all())
            except ValueError:  # scipy's, of its own infinities
                sound = False
            if not sound:
                raise InputError(
                    f"Beta({p:g}, {q:g}) is too concentrated for a quadrature rule: lower alpha"
                )
            points.append((1 + t) / 2)
            weights.append(share * w / w.sum())
        return np.concatenate(points), np.concatenate(weights)

    def mass_below(self, a: np.ndarray) -> np.ndarray:
        """P(share ≤ a), the distribution function of a = 1 − λ, for a in [0, 1]."""
        return sum((weight * betainc(q, p, a) for weight, p, q in self.components), np.zeros(()))

    def sample(self, size: int, generator: torch.Generator | None = None) -> torch.Tensor:
        """Independent draws of λ as a float64 CPU tensor of shape (size,).

        Drawn by inverting the distribution function on uniforms of `generator` (a CPU generator),
        so a seed fixes the draws whatever the device that later uses them.
        """
        u = torch.rand(2, size, dtype=torch.float64, generator=generator).numpy()
        shares = np.cumsum([share for share, _, _ in self.components])[:-1]
        which = np.searchsorted(shares, u[0], side="right")
        p, q = (np.array([c[k] for c in self.components])[which] for k in (1, 2))
        return torch.from_numpy(betaincinv(p, q, u[1]))

    def inverse(self, u: np.ndarray) -> np.ndarray:
        """λ from one uniform number each: u falls to a component, its place there gives λ.

        Equal strata of u are strata of the component and of λ within it; for a single component
        this is its quantile function.
        """
        edges = np.concatenate([[0.0], np.cumsum([share for share, _, _ in self.components])])
        edges[-1] = 1.0
        which = np.searchsorted(edges[1:-1], u, side="right")
        shares, p, q = (np.array([c[k] for c in self.components])[which] for k in range(3))
        return betaincinv(p, q, np.clip((u - edges[which]) / shares, 0.0, 1.0))


def beta_law(alpha: float, beta: float | None = None) -> BetaMixture:
    """λ ~ Beta(α, β), the law that Mixup draws from; β = α where it is not given.

    Raises:
        InputError: If α or β is not a positive finite number.
    """
    beta = alpha if beta is None else beta
    for name, value in (("alpha", alpha), ("beta", beta)):
        if not (np.isfinite(value) and value > 0):
            raise InputError(f"{name} is {value}: Beta's parameters must be positive and finite")
    return BetaMixture(((1.0, float(alpha), float(beta)),))


def relabelled_law(alpha: float, beta: float | None = None) -> BetaMixture:
    """D̃_λ of Theorem 1, the law of λ once every mixed input keeps its first example's label.

    For α = β it is the single component Beta(α+1, α), with E[a] = α/(2α+1).

    Raises:
        InputError: If α or β is not a positive finite number.
    """
    ((_, p, q),) = beta_law(alpha, beta).components
    if p == q:
        return BetaMixture(((1.0, p + 1, p),))
    return BetaMixture(((p / (p + q), p + 1, q), (q / (p + q), q + 1, p)))
