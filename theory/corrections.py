"""What would mend q̂, and at which price: approximations to q between MixupE's and the exact value.

    q − q̂  =  (g − y)ᵀ J x̄'  +  Σ_l share of layer l          (see `first_order` and `attribution`)

so each part of the error that is known can be added to q̂ (Zou, Verma et al., "MixupE", UAI 2023,
equation (1)). What the parts cost differs: the share of the last layer is (g − y)ᵀ b with b its
bias, and free; every other part takes a backward pass through the network, which gives exact q as
well. A difference quotient of the loss towards x̄' needs no backward pass at all.
"""

from collections.abc import Mapping
from dataclasses import asdict

import numpy as np
import pandas as pd
from jaxtyping import Float
from torch import Tensor

from theory.agreement import COMPARISONS, compare
from theory.losses import Head, loss
from theory.network import Function

STEP = 0.01
Q_HAT = "q̂"
LAST_LAYER = "q̂ + last layer's bias"
QUOTIENT = "difference quotient"
NORMALIZATION = "q̂ + normalisation gap"
LAYERS = "q̂ + shares of all layers"
EXACT = "exact q"
# Cost for one example in forward passes: of the value, and of the value with its gradient for the
# parameters, as a penalty needs it. PreActResNet-18, results/benchmarks/first_order.jsonl, rounded.
COSTS = {
    Q_HAT: (1.0, 3.2),
    LAST_LAYER: (1.0, 3.2),
    QUOTIENT: (2.0, 6.6),
    NORMALIZATION: (2.2, 8.3),
    LAYERS: (2.2, 8.3),
    EXACT: (2.2, 8.3),
}


def difference_quotient(
    f: Function,
    x: Float[Tensor, "batch *dims"],
    targets: Float[Tensor, "batch classes"],
    mean: Float[Tensor, " *dims"],
    start: Float[Tensor, " batch"],
    head: Head = "softmax",
    step: float = STEP,
) -> Float[Tensor, " batch"]:
    """(ℓ(x + s(x̄' − x), y) − ℓ(x, y))/s of each example, which tends to q as s → 0.

    One forward pass beside the one that gave ℓ(x, y). It errs by the curvature of the loss, about
    s/2 φ'', and by the rounding of ℓ over s.

    Args:
        f: The network as a function that treats the examples of a batch independently.
        x: Inputs.
        targets: y, one row an example.
        mean: x̄' = E[x'].
        start: ℓ(x, y).
        head: Which loss.
        step: s.
    """
    return (loss(f(x + step * (mean - x)), targets, head) - start) / step


def corrections_frame(
    q: np.ndarray, approximations: Mapping[str, np.ndarray], seed: int = 0
) -> pd.DataFrame:
    """How near each approximation comes to q, and what it costs.

    Args:
        q: Exact q of each example.
        approximations: By name (the keys of `COSTS`), one number an example.
        seed: Of the bootstrap.

    Returns:
        One row an approximation: `approximation`; `relative_error` with `low` and `high`, its 95 %
        bootstrap interval; `pearson`, `spearman`, `sign_agreement` and `slope` against q;
        `forwards`, the cost of its value, and `penalty_forwards`, that of its value and parameter
        gradient, both in forward passes.
    """
    rows = []
    for name, values in approximations.items():
        agreement = compare(q, values, seed)
        error = asdict(agreement["relative_error"])
        rows.append(
            {
                "approximation": name,
                "relative_error": error.pop("value"),
                **error,
                **{k: agreement[k].value for k in COMPARISONS if k != "relative_error"},
                **dict(zip(("forwards", "penalty_forwards"), COSTS[name], strict=True)),
            }
        )
    return pd.DataFrame(rows)
