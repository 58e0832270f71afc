"""Theorem 1: the risk of Mixup is the standard risk plus a regulariser, L_mix = L_std + R.

    L_std = 1/n Σ_i ℓ(x_i, y_i)
    L_mix = 1/n² Σ_ij E_{λ ~ Beta(α, β)} ℓ(λ x_i + (1−λ) x_j, λ y_i + (1−λ) y_j)
    R     = 1/n Σ_i E_{λ ~ D̃_λ, x'} [φ_i(a) − φ_i(0)],   φ_i(a) = ℓ(x_i + a(x' − x_i), y_i)

with a = 1 − λ and x' uniform on the sample, x_i itself included (Zou, Verma et al., "MixupE", UAI
2023, Theorem 1 with its remainder kept, so that it is an identity). The two sides are computed by
routes that share nothing but the network: L_mix from mixed labels and Beta(α, β), R from kept
labels and D̃_λ.

All n² pairs times all quadrature nodes go through the network, in pieces of `rows` inputs, so
memory does not grow with n² and time does.
"""

import math
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from jaxtyping import Float
from torch import Tensor

from theory.agreement import pearson, sign_agreement
from theory.expansion import Pairs, in_pieces, refuse_none, taylor_regularizer
from theory.losses import Head, loss
from theory.mixing import BetaMixture, beta_law, relabelled_law
from theory.network import Function
from theory.taylor import Engine


def standard_risk(
    f: Function,
    x: Float[Tensor, "n *dims"],
    targets: Float[Tensor, "n classes"],
    head: Head = "softmax",
    *,
    rows: int = 256,
) -> Float[Tensor, " n"]:
    """ℓ(x_i, y_i) of each example in float64; the mean is L_std."""
    with torch.no_grad():
        pieces = [
            loss(f(a), b, head).double()
            for a, b in zip(x.split(rows), targets.split(rows), strict=True)
        ]
    return torch.cat(pieces)


def mixup_risk(
    f: Function,
    x: Float[Tensor, "n *dims"],
    targets: Float[Tensor, "n classes"],
    *,
    alpha: float,
    beta: float | None = None,
    nodes: int = 16,
    head: Head = "softmax",
    rows: int = 256,
) -> Float[Tensor, " n"]:
    """L_mix by its definition: all n² pairs, labels mixed, λ ~ Beta(α, β) by quadrature.

    Args:
        f: The network as a function (evaluation mode).
        x: Inputs.
        targets: y, one row an example.
        alpha: α of the law of λ.
        beta: β of the law of λ; α where it is not given.
        nodes: Gauss–Jacobi nodes. The error falls spectrally for a smooth network and
            algebraically across the kinks of a ReLU network.
        head: Which loss.
        rows: Inputs in one forward pass; bounds the memory.

    Returns:
        For each i the mean over j and λ, in float64; the mean over i is L_mix.

    Raises:
        InputError: If α or β is not positive, or there is no example.
    """
    total = x.new_zeros(len(x), dtype=torch.float64)
    with torch.no_grad():
        for i, j, a, weight in _pairs(x, beta_law(alpha, beta), nodes, rows):
            lam = 1 - a
            mixed = _rows(lam, x) * x[i] + _rows(a, x) * x[j]
            labels = lam[:, None] * targets[i] + a[:, None] * targets[j]
            total.index_add_(0, i, weight * loss(f(mixed), labels, head).double())
    return total


def regularizer(
    f: Function,
    x: Float[Tensor, "n *dims"],
    targets: Float[Tensor, "n classes"],
    *,
    alpha: float,
    beta: float | None = None,
    nodes: int = 16,
    head: Head = "softmax",
    pairs: Pairs | None = None,
    rows: int = 256,
) -> Float[Tensor, " n"]:
    """Theorem 1's R of each example: own label kept, λ ~ D̃_λ by quadrature.

    Arguments and errors as for `mixup_risk`, and `pairs`, the indices (i, j) of the pairs to take,
    every i at least once; all n² if not given. The mean over examples is R.
    """
    start = standard_risk(f, x, targets, head, rows=rows)
    total = torch.zeros_like(start)
    with torch.no_grad():
        for i, j, a, weight in _pairs(x, relabelled_law(alpha, beta), nodes, rows, pairs):
            moved = x[i] + _rows(a, x) * (x[j] - x[i])
            change = loss(f(moved), targets[i], head).double() - start[i]
            total.index_add_(0, i, weight * change)
    return total


def _rows(values: Tensor, like: Tensor) -> Tensor:
    return values.reshape(-1, *(1,) * (like.ndim - 1))


def _pairs(
    x: Tensor, law: BetaMixture, nodes: int, rows: int, pairs: Pairs | None = None
) -> Iterator[tuple[Tensor, Tensor, Tensor, Tensor]]:
    """Pieces (i, j, a, weight over the number of i's pairs) of all pairs times all nodes."""
    n = len(x)
    refuse_none(x)
    points, weights = (torch.from_numpy(v).to(x.device) for v in law.quadrature(nodes))
    counts = weights.new_full((n,), n)
    if pairs is not None:
        counts = pairs[0].to(x.device).bincount(minlength=n).double()
    for i, j in in_pieces(pairs, n, max(1, rows // len(points)), x.device):
        k = torch.arange(len(points), device=x.device).repeat(len(i))
        i, j = (index.repeat_interleave(len(points)) for index in (i, j))
        for part in torch.arange(len(k), device=x.device).split(rows):
            at = i[part]
            yield at, j[part], points[k[part]].to(x.dtype), weights[k[part]] / counts[at]


def _coarse(nodes: int) -> int:
    """Nodes of the rule that the quadrature error is judged by, always another one."""
    return 2 * nodes // 3 or 2


@dataclass(frozen=True)
class PairSettings:
    """How `measure_theorem_1` goes about it.

    Attributes:
        alpha: α of the law of λ.
        beta: β of the law of λ; α where it is None.
        head: Which loss.
        order: Highest order of the expansion of R that is measured on the same pairs.
        engine: How its Taylor terms are computed.
        nodes: Quadrature nodes; a rule of two thirds as many (of two for one node) tells the
            quadrature error.
        batch_size: Inputs in one differentiated pass, at least.
    """

    alpha: float = 1.0
    beta: float | None = None
    head: Head = "softmax"
    order: int = 1
    nodes: int = 8
    batch_size: int = 32
    engine: Engine = "series"

    @property
    def rows_per_pair(self) -> float:
        """Forward passes of one example that a pair costs, roughly."""
        rules = 1 + len(relabelled_law(self.alpha, self.beta).components)
        return rules * (self.nodes + _coarse(self.nodes))

    @property
    def series_work(self) -> float:
        """Forward passes that a pair's Taylor terms cost, roughly."""
        if self.order == 1:
            return 0.0
        return 4.0**self.order if self.engine == "nested" else 2.0 + 0.2 * self.order**2

    def draws(self, n: int) -> int:
        """Forward passes for an estimate of R: as many as both sides take on all pairs of n."""
        return round(n**2 * self.rows_per_pair)

    def rows(self, x: Tensor) -> int:
        """Inputs in one pass: more than a batch where they are small, to save calls."""
        return max(self.batch_size, min(4096, 2**17 // max(1, x[0].numel())))

    def affordable(self, f: Function, x: Tensor, targets: Tensor, seconds: float) -> int:
        """The largest n whose n² pairs and `draws` should fit the time, by the measured speed.

        At least 3.
        """
        picks = torch.arange(self.rows(x), device=x.device) % len(x)
        a, b = x[picks], targets[picks]

        def seconds_of(run: Callable[[], object]) -> float:
            """The slower of two runs, after one that also sets up: better too few pairs."""
            times = []
            for _ in range(3):
                start = time.perf_counter()
                run()
                times.append(time.perf_counter() - start)
            return max(times[1:])

        # The work itself on as few examples as fill one pass.
        few = max(2, math.isqrt(self.rows(x) // self.nodes))
        x_few, y_few = a[:few], b[:few]
        risk = seconds_of(
            lambda: mixup_risk(
                f, x_few, y_few, alpha=self.alpha, nodes=self.nodes, head=self.head,
                rows=self.rows(x),
            )
        )  # fmt: skip
        per_pair = risk / (few**2 * self.nodes) * 2 * self.draws(1)
        return max(3, math.isqrt(int(seconds / per_pair)))


def measure_theorem_1(
    f: Function,
    x: Float[Tensor, "n *dims"],
    targets: Float[Tensor, "n classes"],
    settings: PairSettings,
    on_progress: Callable[[float], None] = lambda work: None,
) -> dict[str, Any]:
    """Theorem 1 on all n² pairs: both sides, their quadrature errors, and the first order of R.

    Args:
        f: The network as a function (evaluation mode).
        x: Inputs.
        targets: y, one row an example.
        settings: The law of λ, the loss, the order and the quadrature.
        on_progress: Called with the work done, in forward passes of one example.

    Returns:
        `samples`, `nodes`, the two sides `l_mix`, `l_std`, `r`, the relative `identity_error` and
        `quadrature_error`, the first order `r1`, the agreement of R_1 with R over examples, and
        both by example.
    """
    n, nodes, rows = len(x), settings.nodes, settings.rows(x)
    law: dict[str, Any] = {"alpha": settings.alpha, "beta": settings.beta, "head": settings.head}
    rules = len(relabelled_law(settings.alpha, settings.beta).components)

    def mixed(m: int) -> np.ndarray:
        value = mixup_risk(f, x, targets, nodes=m, rows=2 * rows, **law).cpu().numpy()
        on_progress(n * n * m)
        return value

    def relabelled(m: int) -> np.ndarray:
        value = regularizer(f, x, targets, nodes=m, rows=2 * rows, **law).cpu().numpy()
        on_progress(n * n * m * rules)
        return value

    by_example = mixed(nodes)
    l_mix = float(by_example.mean())
    r = relabelled(nodes)
    # Errors of single examples are not let cancel: across kinks they are as good as random.
    quadrature_error = float(
        np.abs(by_example - mixed(_coarse(nodes))).mean()
        + np.abs(r - relabelled(_coarse(nodes))).mean()
    )
    l_std = float(standard_risk(f, x, targets, settings.head).mean())
    r1 = taylor_regularizer(f, x, targets, order=1, rows=rows, **law)[0].cpu().numpy()
    total = float(r.mean())
    if abs(total) <= 100 * torch.finfo(x.dtype).eps * abs(l_mix):
        total = 0.0  # all of it is rounding: alike examples, or one alone
    return {
        "samples": n,
        "nodes": nodes,
        "l_std": l_std,
        "l_mix": l_mix,
        "r": total,
        "r1": float(r1.mean()),
        "identity_error": abs(l_mix - l_std - total) / abs(l_mix) if l_mix else math.nan,
        "quadrature_error": quadrature_error / (abs(l_mix) or 1.0),
        "first_order_pearson": float(pearson(r, r1)),
        "first_order_sign_agreement": float(sign_agreement(r, r1)),
        "r_of_sample": r.tolist(),
        "r1_of_sample": r1.tolist(),
    }
