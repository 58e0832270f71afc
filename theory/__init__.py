"""The mathematics of Mixup and MixupE, computed exactly.

| Zou, Verma et al., "MixupE", UAI 2023            | here                                          |
| ------------------------------------------------ | --------------------------------------------- |
| loss ℓ = h(f) − yᵀf, g = ∇h, H = ∇²h             | `losses`                                      |
| λ ~ Beta(α, β) and 𝒟_λ (Theorem 1), E[a_λ^k]     | `mixing.beta_law`, `mixing.relabelled_law`    |
| Theorem 1, L_mix = L_std + R                     | `regularizer`                                 |
| Theorem 1, both expansions cut off at order K    | `expansion.expand_regularizer`                |
| its remainders ψ and ψ̂ against a                 | `expansion.measure_remainders`                |
| whether the series converges before a = 1        | `convergence`                                 |
| its second-order term over all x' at once        | `second_order`                                |
| R where n² pairs are too many, with its error    | `expectation.sampled_regularizer`             |
| Taylor terms of f and of the loss along x' − x   | `taylor`, by the power series of `series`     |
| ReLU networks on x → x': the pieces of f         | `segments.segment_pieces`                     |
| R exactly, and its smooth and kink parts         | `kinks.exact_regularizer`                     |
| first order: q = (g − y)ᵀ J (E[x'] − x)          | `first_order.first_order`                     |
| equation (1), q̂ = (y − g)ᵀ f, and its two errors | `first_order.q_hat`, `first_order.FirstOrder` |
| J x ≈ f (ReLU): which layer breaks it            | `attribution.LayerShares`                     |
| what would mend q̂, and at which price            | `corrections`                                 |
| ∇θ of the penalty on q̂ and of that on q          | `alignment.gradient_alignment`                |
| the proofs: every step as an identity in symbols | `symbolic`                                    |
| all of it, for one network                       | `check_approximation`, of `approximation`     |
| Theorem 2, its constants and its repaired form   | `bounds`, `rademacher`, `glm`                 |
| Theorem 2 held against samples                   | `trials`, `generalization.measure`            |

Importing this package loads nothing heavy; the names below load their modules on first use.
"""

from importlib import import_module
from typing import Any

_EXPORTS = {
    "check_approximation": "theory.approximation",
    "Thresholds": "theory.verdicts",
    "Report": "theory.report",
    "read_reports": "theory.report",
    "InputError": "theory.errors",
}
__all__ = sorted(_EXPORTS)


def __getattr__(name: str) -> Any:
    if name not in _EXPORTS:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(import_module(_EXPORTS[name]), name)
