"""How much of R each order of Theorem 1's expansion carries, for one network: the measurement."""

from collections.abc import Callable
from dataclasses import asdict
from typing import Any

import numpy as np
import torch
from jaxtyping import Float
from torch import Tensor

from theory.convergence import mass_inside
from theory.expansion import (
    Expansion,
    Pairs,
    Remainders,
    expand_regularizer,
    measure_remainders,
)
from theory.losses import Head
from theory.mixing import relabelled_law
from theory.network import Function
from theory.regularizer import regularizer
from theory.taylor import Engine

# Where remainders are measured; a = 1 is the partner.
DISTANCES = np.geomspace(1e-3, 1.0, 13)


def draw_pairs(n: int, partners: int, generator: torch.Generator) -> Pairs:
    """For each of n examples so many distinct partners drawn at random, itself among the choices.

    All n² pairs in order where that many are asked for.
    """
    partners = min(partners, n)
    j = torch.stack([torch.randperm(n, generator=generator)[:partners] for _ in range(n)])
    return torch.arange(n).repeat_interleave(partners), j.sort(1).values.flatten()


def measure_orders(
    f: Function,
    x: Float[Tensor, "n *dims"],
    targets: Float[Tensor, "n classes"],
    pairs: Pairs,
    *,
    order: int,
    alpha: float,
    beta: float | None = None,
    head: Head = "softmax",
    nodes: int = 16,
    engine: Engine = "series",
    rows: int = 64,
    on_pairs: Callable[[int], None] = lambda pairs: None,
) -> dict[str, Any]:
    """Theorem 1's expansions against R on the same pairs, their remainders and their radii.

    Args:
        f: The network as a function (evaluation mode).
        x: Inputs.
        targets: y, one row an example.
        pairs: Indices (i, j) of the pairs, every i as often as any other.
        order: Highest order K.
        alpha: α of the law of λ.
        beta: β of the law of λ; α where it is not given.
        head: Which loss.
        nodes: Quadrature nodes for R.
        engine: How the Taylor terms of f are computed.
        rows: Inputs in one pass.
        on_pairs: Called with the number of pairs done in each pass.

    Returns:
        `r`, R over the pairs, and by order `composite` and `nested` (R_K), `rest_composite` and
        `rest_nested` (|R − R_K|/|R|) and `nearer_than_first`, the share of examples whose R_K
        (composite) is nearer to R than R_1 is. `tangent` and `bending` split R: what the network's
        tangent gives, and the rest, which is the kinks' alone if `affine_pieces`.
        `rest_of_sample` has R − R_1 and R − R_K of each example. `remainders` of n pairs against
        the distance, with fitted exponents. `convergence`: medians of the three radii, and by
        example the mean mass of a inside the root estimate; empty below order 4.
    """
    law: dict[str, Any] = {"alpha": alpha, "beta": beta, "head": head}
    r = regularizer(f, x, targets, nodes=nodes, pairs=pairs, rows=2 * rows, **law).cpu().numpy()
    found = expand_regularizer(
        f, x, targets, order=order, engine=engine, pairs=pairs, rows=rows, on_pairs=on_pairs, **law
    )
    direction = x.roll(max(1, len(x) // 2), 0) - x
    remainders = measure_remainders(f, x, targets, direction, order, DISTANCES, head, engine)
    total = float(r.mean())
    scale = abs(total) or np.nan
    composite, nested = found.composite.cpu().numpy(), found.nested.cpu().numpy()
    tangent = float(found.tangent.mean())
    return {
        "order": order,
        "samples": len(x),
        "pairs": len(pairs[0]),
        "r": total,
        "composite": composite.mean(1).tolist(),
        "nested": nested.mean(1).tolist(),
        "rest_composite": (np.abs(total - composite.mean(1)) / scale).tolist(),
        "rest_nested": (np.abs(total - nested.mean(1)) / scale).tolist(),
        "nearer_than_first": (np.abs(r - composite) < np.abs(r - composite[0])).mean(1).tolist(),
        "tangent": tangent,
        "bending": total - tangent,
        "affine_pieces": found.affine_pieces,
        "rest_of_sample": {
            "first": (r - composite[0]).tolist(),
            "last": (r - composite[-1]).tolist(),
        },
        "remainders": _remainders_record(remainders),
        "convergence": _convergence_record(found, pairs, len(x), alpha, beta),
    }


def _remainders_record(remainders: Remainders) -> dict[str, Any]:
    names = ("of_f", "of_h", "of_loss")
    return {
        **{name: getattr(remainders, name).tolist() for name in ("distances", *names)},
        "rounding": remainders.rounding,
        "exponents": {
            name: remainders.exponent(getattr(remainders, name)).tolist() for name in names
        },
    }


def _convergence_record(
    found: Expansion, pairs: Pairs, n: int, alpha: float, beta: float | None
) -> dict[str, Any]:
    if found.radius is None:
        return {}
    i, j = (index.numpy() for index in pairs)
    medians = {}
    for name, radius in asdict(found.radius).items():
        # An example is its own partner too: there the loss is constant and the radius infinite.
        known = radius[(i != j) & ~np.isnan(radius)]
        medians[name] = float(np.median(known)) if len(known) else np.nan
    inside = mass_inside(relabelled_law(alpha, beta), np.nan_to_num(found.radius.root, nan=np.inf))
    by_example = np.bincount(i, inside, n) / np.bincount(i, minlength=n)
    return {"median_radius": medians, "mass_inside_of_sample": by_example.tolist()}
