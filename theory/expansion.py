"""Theorem 1 order by order: its two expansions of R, what they leave out, and how that decays.

With Δ(a) = f(x + a(x' − x)) − f(x) the regulariser of an example is R = E[h(f + Δ) − h(f) − yᵀΔ],
and the expectation is over partners x' and a ~ D̃_λ (Zou, Verma et al., "MixupE", UAI 2023). Cut
off at order K, there are two expansions:

    composite   Σ_{k ≤ K} a^k φ^{(k)}(0)/k!, the Taylor polynomial of φ(a) = ℓ(f(x + a v), y)
    nested      Σ_{k ≤ K} h^{(k)}(f)[Δ_K, …, Δ_K]/k! − yᵀΔ_K, with Δ_K the Taylor polynomial of Δ:
                the form of the theorem's statement

They agree up to a^K and differ beyond, so in expectation they are two different numbers. Beside
them stands the tangent's share E[ℓ(f + a J v, y) − ℓ(f, y)]: what R would be if the network were
affine. What is left, R minus that, is due to the bending of f; for a network of affine pieces
(ReLU, max-pooling) it is due to the kinks on the way alone, and no order sees it.
"""

import math
from collections.abc import Callable, Iterator
from dataclasses import dataclass, fields

import numpy as np
import torch
from jaxtyping import Float
from torch import Tensor

from theory.convergence import FEWEST_ORDERS, Radius, convergence_radius
from theory.errors import InputError
from theory.first_order import first_order
from theory.losses import Head, log_partition, loss
from theory.mixing import BetaMixture, relabelled_law
from theory.network import Function
from theory.taylor import Engine, loss_terms, taylor_terms

Pairs = tuple[Tensor, Tensor]
FITTED_DISTANCES = 5
# Nodes for one-dimensional integrals over a that need no forward pass of the network.
TANGENT_NODES = 64


@dataclass(frozen=True)
class Expansion:
    """R of each example by both expansions, cut off after each order.

    Attributes:
        composite: Row K − 1 is R_K of each example; float64.
        nested: The same in the nested form.
        tangent: The tangent's share of each example.
        affine_pieces: Whether every Taylor term of f above the first is exactly zero, as for a
            network of affine pieces.
        radius: Estimates of φ's radius of convergence for each pair, of shape (pairs,); None below
            order 4.
    """

    composite: Float[Tensor, "order n"]
    nested: Float[Tensor, "order n"]
    tangent: Float[Tensor, " n"]
    affine_pieces: bool
    radius: Radius | None


def expand_regularizer(
    f: Function,
    x: Float[Tensor, "n *dims"],
    targets: Float[Tensor, "n classes"],
    *,
    order: int,
    alpha: float,
    beta: float | None = None,
    head: Head = "softmax",
    engine: Engine = "series",
    pairs: Pairs | None = None,
    rows: int = 64,
    on_pairs: Callable[[int], None] = lambda pairs: None,
) -> Expansion:
    """Both expansions of Theorem 1's R, and the tangent's share.

    Args:
        f: The network as a function (evaluation mode).
        x: Inputs.
        targets: y, one row an example.
        order: Highest order K ≥ 1.
        alpha: α of the law of λ.
        beta: β of the law of λ; α where it is not given.
        head: Which loss.
        engine: How the Taylor terms of f are computed.
        pairs: Indices (i, j) of the pairs to take, every i at least once; all n² if not given.
        rows: Pairs in one pass; bounds the memory.
        on_pairs: Called with the number of pairs done in each pass.

    Raises:
        InputError: If the order is below 1, α or β is not positive, there is no example, or as
            for `theory.taylor.taylor_terms`.
    """
    _refuse(x, order)
    law = relabelled_law(alpha, beta)
    moments = torch.tensor([law.moment(k) for k in range(1, order + 1)], dtype=torch.float64)
    sums = x.new_zeros(2 * order + 1, len(x), dtype=torch.float64)
    counts = x.new_zeros(len(x), dtype=torch.float64)
    affine, radii = True, []
    for i, j in in_pieces(pairs, len(x), rows, x.device):
        terms = taylor_terms(f, x[i], x[j] - x[i], order, engine).double()
        affine &= not bool(terms[2:].any())
        y = targets[i].double()
        phi = loss_terms(terms, y, order, head)
        if order >= FEWEST_ORDERS:
            radii.append(convergence_radius(phi.cpu().numpy()))
        composite = phi[1:] * moments.to(x.device)[:, None]
        nested = _nested(terms, y, law, head)
        tangent = _tangent(terms, y, law, head)
        sums.index_add_(1, i, torch.cat([composite.cumsum(0), nested, tangent[None]]))
        counts.index_add_(0, i, torch.ones_like(tangent))
        on_pairs(len(i))
    means = sums / counts
    radius = (
        Radius(
            *(np.concatenate([getattr(r, field.name) for r in radii]) for field in fields(Radius))
        )
        if radii
        else None
    )
    return Expansion(means[:order], means[order:-1], means[-1], affine, radius)


def taylor_regularizer(
    f: Function,
    x: Float[Tensor, "n *dims"],
    targets: Float[Tensor, "n classes"],
    *,
    order: int,
    alpha: float,
    beta: float | None = None,
    head: Head = "softmax",
    rows: int = 64,
) -> Float[Tensor, "order n"]:
    """The composite expansion alone: row K − 1 is Σ_{k ≤ K} E[a^k] mean_j φ_ij^{(k)}(0)/k!.

    Nothing says that the sums converge: a network's series along x → x' may diverge before a = 1.
    The first order alone is linear in the direction, so one vjp an example does for all partners;
    above it every pair takes its own series. Arguments and errors as for `expand_regularizer`.
    """
    _refuse(x, order)
    if order > 1:
        return expand_regularizer(
            f, x, targets, order=order, alpha=alpha, beta=beta, head=head, rows=rows
        ).composite
    mean = x.mean(0, dtype=torch.float64).to(x.dtype)
    pieces = zip(x.split(rows), targets.split(rows), strict=True)
    q = torch.cat([first_order(f, a, b, mean, head).q for a, b in pieces]).double()
    return relabelled_law(alpha, beta).moment(1) * q[None]


def refuse_none(x: Tensor) -> None:
    """Refuses a batch without examples.

    Raises:
        InputError: If it is one.
    """
    if len(x) == 0:
        raise InputError("there are no examples: pass at least one")


def _refuse(x: Tensor, order: int) -> None:
    if order < 1:
        raise InputError(f"the order of the expansion is {order}: it must be at least 1")
    refuse_none(x)


def in_pieces(pairs: Pairs | None, n: int, rows: int, device: torch.device) -> Iterator[Pairs]:
    """Pairs (i, j), `rows` at a time: those given, or all n² ordered ones, i = j included."""
    total = n * n if pairs is None else len(pairs[0])
    for start in range(0, total, rows):
        stop = min(start + rows, total)
        if pairs is None:
            flat = torch.arange(start, stop, device=device)
            yield flat // n, flat % n
        else:
            yield pairs[0][start:stop].to(device), pairs[1][start:stop].to(device)


def _nested(terms: Tensor, y: Tensor, law: BetaMixture, head: Head) -> Tensor:
    """E over a of the nested expansion of each pair, for every order: (order, pairs)."""
    order = len(terms) - 1
    rows = []
    for k in range(1, order + 1):
        # A polynomial of degree k² in a, for which so many nodes are exact.
        a, weights = _rule(law, k * k // 2 + 1, terms)
        powers = a[:, None] ** torch.arange(1, k + 1, device=terms.device)
        delta = torch.einsum("ak,kbc->abc", powers, terms[1 : k + 1])
        base = terms[0].expand_as(delta)
        of_h = loss_terms(
            torch.stack([base, delta]).flatten(1, 2), None, k, head
        )[1:].sum(0).reshape(len(a), -1)  # fmt: skip
        rows.append(weights @ (of_h - (delta * y).sum(-1)))
    return torch.stack(rows)


def _tangent(terms: Tensor, y: Tensor, law: BetaMixture, head: Head) -> Tensor:
    """E over a of the loss on the network's tangent, minus the loss at its point."""
    a, weights = _rule(law, TANGENT_NODES, terms)
    moved = terms[0] + a[:, None, None] * terms[1]
    change = loss(moved.flatten(0, 1), y.repeat(len(a), 1), head).reshape(len(a), -1)
    return weights @ (change - loss(terms[0], y, head))


def _rule(law: BetaMixture, nodes: int, like: Tensor) -> tuple[Tensor, Tensor]:
    a, weights = (torch.from_numpy(v).to(like.device) for v in law.quadrature(nodes))
    return a, weights


@dataclass(frozen=True)
class Remainders:
    """What a Taylor polynomial leaves out, against the distance a, with the decay fitted.

    Attributes:
        distances: Values of a, ascending.
        of_f: Row K: mean over examples of ‖f(x + a v) − T_K f(a)‖, K = 1 … order. The theorem's ψ
            is this over a^K.
        of_h: The same for |h(f + Δ) − Σ_{k ≤ K} h^{(k)}(f)[Δ, …, Δ]/k!| with the exact Δ. The
            theorem's ψ̂ is this over a^K.
        of_loss: The same for |φ(a) − T_K φ(a)|, the remainder of the composite expansion.
        rounding: Size of the rounding errors in these numbers.
    """

    distances: np.ndarray
    of_f: np.ndarray
    of_h: np.ndarray
    of_loss: np.ndarray
    rounding: float

    def exponent(self, remainder: np.ndarray) -> np.ndarray:
        """Fitted p in remainder ~ a^p for each order, from the smallest distances above rounding.

        K + 1 for a function with K + 1 derivatives, K at least if ψ → 0 as the theorem says; NaN
        where fewer than three distances stand clear of rounding, or the remainder is zero.
        """
        return np.array([self._slope(row) for row in remainder])

    def _slope(self, row: np.ndarray) -> float:
        clear = np.flatnonzero(row > 100 * self.rounding)[:FITTED_DISTANCES]
        if len(clear) < 3:
            return math.nan
        return float(np.polyfit(np.log(self.distances[clear]), np.log(row[clear]), 1)[0])


def measure_remainders(
    f: Function,
    x: Float[Tensor, "batch *dims"],
    targets: Float[Tensor, "batch classes"],
    direction: Float[Tensor, "batch *dims"],
    order: int,
    distances: np.ndarray,
    head: Head = "softmax",
    engine: Engine = "series",
) -> Remainders:
    """The remainders of Theorem 1's expansions at given distances along given directions.

    Args:
        f: The network as a function (evaluation mode).
        x: Inputs.
        targets: y, one row an example.
        direction: v, one for each input; x' − x in the theorem.
        order: Highest order.
        distances: Values of a > 0, ascending; a = 1 is the partner itself.
        head: Which loss.
        engine: How the Taylor terms of f are computed.
    """
    terms = taylor_terms(f, x, direction, order, engine).double()
    y = targets.double()
    phi = loss_terms(terms, y, order, head)
    found: list[list[Tensor]] = [[], [], []]
    for a in distances:
        with torch.no_grad():
            moved = f(x + float(a) * direction).double()
        powers = terms.new_tensor([float(a) ** k for k in range(order + 1)])
        f_sums = (powers[:, None, None] * terms).cumsum(0)[1:]
        phi_sums = (powers[:, None] * phi).cumsum(0)[1:]
        h_terms = loss_terms(torch.stack([terms[0], moved - terms[0]]), None, order, head)
        found[0].append((moved - f_sums).norm(dim=-1).mean(1))
        found[1].append((log_partition(moved, head) - h_terms.cumsum(0)[1:]).abs().mean(1))
        found[2].append((loss(moved, y, head) - phi_sums).abs().mean(1))
    of_f, of_h, of_loss = (torch.stack(rows, 1).cpu().numpy() for rows in found)
    # Deep networks amplify the rounding of their inputs about tenfold.
    rounding = 10 * torch.finfo(x.dtype).eps * float(terms[0].norm(dim=-1).mean())
    return Remainders(np.asarray(distances, float), of_f, of_h, of_loss, rounding)
