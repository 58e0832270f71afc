"""Slow, obvious truths to hold `theory` against. Nothing here imports it."""

from collections.abc import Callable

import mpmath as mp
import numpy as np
import torch
from scipy import integrate, special, stats
from torch import Tensor

mp.mp.dps = 50


# Losses, by 50-digit arithmetic.


def mp_partition(logits: list, head: str) -> mp.mpf:
    """h(f) for one row."""
    if head == "softmax":
        return mp.log(mp.fsum(mp.exp(z) for z in logits))
    return mp.fsum(mp.log1p(mp.exp(z)) for z in logits)


def mp_loss(logits: list, targets: list, head: str) -> mp.mpf:
    """h(f) − yᵀf for one row, written out; softmax rows sum to one only up to rounding."""
    if head == "softmax":
        h = mp_partition(logits, head)
        return mp.fsum(y * (h - z) for y, z in zip(targets, logits, strict=True))
    return mp_partition(logits, head) - mp.fsum(y * z for y, z in zip(targets, logits, strict=True))


def mp_probabilities(logits: list, head: str) -> list:
    if head == "softmax":
        total = mp.fsum(mp.exp(z) for z in logits)
        return [mp.exp(z) / total for z in logits]
    return [1 / (1 + mp.exp(-z)) for z in logits]


def mp_hessian(logits: list, head: str) -> list:
    g = mp_probabilities(logits, head)
    return [
        [
            (g[i] * (1 - g[i]) if i == j else (-g[i] * g[j] if head == "softmax" else mp.mpf(0)))
            for j in range(len(g))
        ]
        for i in range(len(g))
    ]


def exact_rows(tensor: Tensor) -> list:
    """A float matrix as mpmath numbers, without rounding."""
    return [[mp.mpf(float(v)) for v in row] for row in tensor]


# The mixing coefficient.


def relabelled_components(alpha: float, beta: float) -> list:
    """D̃_λ of Theorem 1 as (weight, p, q), in 50 digits."""
    alpha, beta = mp.mpf(alpha), mp.mpf(beta)
    total = alpha + beta
    return [(alpha / total, alpha + 1, beta), (beta / total, beta + 1, alpha)]


def beta_density(lam: mp.mpf, p: mp.mpf, q: mp.mpf) -> mp.mpf:
    return lam ** (p - 1) * (1 - lam) ** (q - 1) / mp.beta(p, q)


def mixture_moment(components: list, k: int) -> mp.mpf:
    """E[(1 − λ)^k] = Σ weight · B(p, q + k)/B(p, q)."""
    return mp.fsum(w * mp.beta(p, q + k) / mp.beta(p, q) for w, p, q in components)


# Derivatives, by whole Jacobians and by differences of values.


def example_jacobians(f: Callable[[Tensor], Tensor], x: Tensor) -> Tensor:
    """∂f/∂x of every example on its own, shape (batch, classes, features)."""
    return torch.stack(
        [
            torch.autograd.functional.jacobian(lambda z: f(z[None])[0], example).flatten(1)
            for example in x
        ]
    )


def batch_jacobian(f: Callable[[Tensor], Tensor], x: Tensor) -> Tensor:
    """∂f(batch)/∂batch as a whole, shape (batch, classes, batch × features)."""
    return torch.autograd.functional.jacobian(f, x).flatten(2)


def central(curve: Callable[[float], Tensor], h: float = 1e-3) -> Tensor:
    """First derivative at 0 by a central difference, error of order h⁶."""
    with torch.no_grad():
        one, two, three = ((curve(k * h) - curve(-k * h)) / (2 * k * h) for k in (1, 2, 3))
    return (15 * one - 6 * two + three) / 10


def central_second(curve: Callable[[float], Tensor], h: float = 4e-3) -> Tensor:
    """Second derivative at 0 by central differences, error of order h⁶."""
    with torch.no_grad():
        at = curve(0.0)
        one, two, three = (
            (curve(k * h) - 2 * at + curve(-k * h)) / (k * h) ** 2 for k in (1, 2, 3)
        )
    return (15 * one - 6 * two + three) / 10


def softmax(logits: np.ndarray) -> np.ndarray:
    shifted = np.exp(logits - logits.max(-1, keepdims=True))
    return shifted / shifted.sum(-1, keepdims=True)


def plain_loss(logits: Tensor, targets: Tensor, head: str) -> Tensor:
    """ℓ of each row by PyTorch's own losses."""
    if head == "softmax":
        return torch.nn.functional.cross_entropy(logits, targets, reduction="none")
    return torch.nn.functional.binary_cross_entropy_with_logits(
        logits, targets, reduction="none"
    ).sum(1)


# Theorem 1, by three loops and adaptive integration.


def expectation(curve: Callable[[float], float], p: float, q: float) -> float:
    """E[curve(λ)] for λ ~ Beta(p, q) by QUADPACK, singular ends taken as its weights."""
    if min(p, q) >= 2:
        density = stats.beta(p, q).pdf
        return integrate.quad(lambda lam: curve(lam) * density(lam), 0, 1, epsrel=1e-11)[0]
    ends = {"weight": "alg", "wvar": (p - 1, q - 1)}
    return integrate.quad(curve, 0, 1, epsrel=1e-11, **ends)[0] / special.beta(p, q)


def brute_mixup_risk(
    f: Callable[[Tensor], Tensor], x: Tensor, y: Tensor, alpha: float, beta: float, head: str
) -> np.ndarray:
    """L_mix of each first example: mixed inputs, mixed labels, λ ~ Beta(α, β)."""
    n = len(x)
    rows = np.zeros(n)
    for i in range(n):
        for j in range(n):

            def mixed(lam: float, i: int = i, j: int = j) -> float:
                point = lam * x[i] + (1 - lam) * x[j]
                label = lam * y[i] + (1 - lam) * y[j]
                with torch.no_grad():
                    return float(plain_loss(f(point[None]), label[None], head))

            rows[i] += expectation(mixed, alpha, beta) / n
    return rows


def brute_regularizer(
    f: Callable[[Tensor], Tensor], x: Tensor, y: Tensor, alpha: float, beta: float, head: str
) -> np.ndarray:
    """R of each example: labels kept, λ ~ D̃_λ, the clean loss subtracted."""
    n = len(x)
    rows = np.zeros(n)
    for i in range(n):
        for j in range(n):

            def moved(lam: float, i: int = i, j: int = j) -> float:
                point = x[i] + (1 - lam) * (x[j] - x[i])
                with torch.no_grad():
                    ends = plain_loss(f(torch.stack([point, x[i]])), y[i].expand(2, -1), head)
                return float(ends[0] - ends[1])

            rows[i] += sum(
                float(w) * expectation(moved, float(p), float(q)) / n
                for w, p, q in relabelled_components(alpha, beta)
            )
    return rows


# Kinks on a segment, by values alone.


def line_points(x: Tensor, partner: Tensor, a: Tensor) -> Tensor:
    """x + a (partner − x), one a for each row."""
    return x + a.reshape(-1, *(1,) * (x.ndim - 1)) * (partner - x)


def kinks_by_bisection(
    f: Callable[[Tensor], Tensor], x: Tensor, partner: Tensor, cells: int = 256
) -> np.ndarray:
    """Every a in (0, 1) where a ↦ f(x + a (partner − x)) is not affine, for one segment.

    Intervals on whose inner points f leaves its chord are halved until they are 2^−22 wide; kinks
    closer than 1e-6 come out as one.
    """
    left = torch.linspace(0, 1, cells + 1, dtype=torch.float64)[:-1]
    width, inner = 1 / cells, torch.tensor([0.0, 0.11, 0.37, 0.58, 0.83, 1.0], dtype=torch.float64)
    while True:
        a = left[:, None] + width * inner
        with torch.no_grad():
            points = line_points(x.expand(a.numel(), *x.shape), partner.expand(a.numel(), *x.shape),
                                 a.flatten())  # fmt: skip
            values = f(points).unflatten(0, a.shape)
        chord = torch.lerp(values[:, :1], values[:, -1:], inner[:, None])
        left = left[(values - chord).abs().amax((1, 2)) > 1e-13 * values.abs().max()]
        if width < 2**-22:
            found = np.asarray(left + width / 2)
            return found[np.diff(found, prepend=-1.0) > 1e-6]
        width /= 2
        # Windows overlap by half, so that no kink hides at the end of two.
        left = torch.cat([left, left + width / 2, left + width]).unique()
