"""How far a Taylor series along x → x' converges: estimates from its coefficients.

Theorem 1 expands φ(a) around a = 0 and takes expectations over a up to 1 (Zou, Verma et al.,
"MixupE", UAI 2023). A network's series has a finite radius of convergence r in general, set by its
nearest complex singularity (for tanh at ± iπ/2, say); where D̃_λ puts mass beyond r, more orders
make the expansion worse, however many one takes. No finite number of coefficients fixes r; the
three classical estimates are given side by side, and where they differ nothing is certain.
"""

from dataclasses import dataclass

import numpy as np

from theory.errors import InputError
from theory.mixing import BetaMixture

FEWEST_ORDERS = 4


@dataclass(frozen=True)
class Radius:
    """Estimates of the radius of convergence, one for each series.

    Attributes:
        ratio: √(e_{k−2}/e_k), the geometric mean over the last third of the orders, where
            e_k = max(|c_k|, |c_{k−1}|): every other coefficient of an odd or an even function is
            zero, or rounding.
        root: From the slope of log e_k in k, fitted over the last two thirds of the orders: the
            root test |c_k|^(−1/k) without its slowly vanishing constant factor.
        domb_sykes: The ratios c_k/c_{k−1} extrapolated to 1/k → 0 along a line (Domb and Sykes,
            1957); NaN where they change sign, as for complex singularities, for which it is not
            meant.
    """

    ratio: np.ndarray
    root: np.ndarray
    domb_sykes: np.ndarray


def convergence_radius(terms: np.ndarray) -> Radius:
    """Estimates the radius of convergence of each series from its coefficients.

    Args:
        terms: Coefficients c_0 … c_K of shape (K + 1, series), K at least 4.

    Returns:
        The estimates, each of shape (series,); infinite for a polynomial whose last coefficients
        are all zero.

    Raises:
        InputError: If there are too few coefficients.
    """
    order = len(terms) - 1
    if order < FEWEST_ORDERS:
        raise InputError(
            f"a radius of convergence cannot be estimated from order {order}: take at least "
            f"{FEWEST_ORDERS}"
        )
    size = np.abs(terms)
    size[1:] = np.maximum(size[1:], size[:-1])
    last = np.arange(max(2, 2 * order // 3), order + 1)
    with np.errstate(divide="ignore", invalid="ignore"):
        ratio = np.exp(_mean_of_finite(0.5 * (np.log(size[last - 2]) - np.log(size[last]))))
        root = np.exp(-_slope_of_logs(size, np.arange(max(1, order // 3), order + 1)))
        steps = terms[last] / terms[last - 1]
        fit = np.polynomial.polynomial.polyfit(1 / last, np.nan_to_num(steps, posinf=0.0), 1)[0]
        domb_sykes = np.where((np.sign(steps) == np.sign(steps[0])).all(0), 1 / np.abs(fit), np.nan)
    ended = (terms[last] == 0).all(0)
    return Radius(*(np.where(ended, np.inf, r) for r in (ratio, root, domb_sykes)))


def mass_inside(law: BetaMixture, radius: np.ndarray) -> np.ndarray:
    """P(a < r): the share of the expectation over a whose series converges."""
    return law.mass_below(np.clip(radius, 0.0, 1.0))


def _mean_of_finite(values: np.ndarray) -> np.ndarray:
    kept = np.isfinite(values)
    total = np.where(kept, values, 0.0).sum(0)
    return np.where(kept.any(0), total / np.maximum(kept.sum(0), 1), np.nan)


def _slope_of_logs(size: np.ndarray, orders: np.ndarray) -> np.ndarray:
    """Least-squares slope of log size[k] in k, coefficients that are zero left out."""
    kept = size[orders] > 0
    count = np.maximum(kept.sum(0), 1)
    k = np.where(kept, orders[:, None], 0.0)
    k_centred = np.where(kept, orders[:, None] - k.sum(0) / count, 0.0)
    logs = np.where(kept, np.log(np.where(kept, size[orders], 1.0)), 0.0)
    return np.where(kept.sum(0) > 1, (k_centred * logs).sum(0) / (k_centred**2).sum(0), np.nan)
