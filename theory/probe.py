"""The first-order comparison of q̂ with q on a fixed set of examples, cheap enough for training.

One forward and one backward pass give q, q̂, both gaps and every layer's share of the second one
(Zou, Verma et al., "MixupE", UAI 2023; see `theory.first_order` and `theory.attribution`). The
whole check, `theory.approximation`, starts with it.
"""

from collections import defaultdict
from collections.abc import Callable, Iterable, Iterator
from dataclasses import asdict, dataclass, fields
from typing import Any

import numpy as np
import pandas as pd
import torch
from jaxtyping import Float
from torch import Tensor, nn

from theory.agreement import bootstrapped, compare, relative_size
from theory.alignment import gradient_alignment
from theory.attribution import LayerShares, attribution_table
from theory.corrections import (
    EXACT,
    LAST_LAYER,
    LAYERS,
    NORMALIZATION,
    Q_HAT,
    QUOTIENT,
    difference_quotient,
)
from theory.errors import InputError
from theory.first_order import FirstOrder, first_order, first_order_coupled
from theory.losses import Head, as_targets
from theory.network import BatchNormMode, Function, count_logits, evaluating, refuse_coupled

Batches = Iterable[tuple[Tensor, Tensor]]
Rows = Callable[[int], None]


@dataclass(frozen=True)
class FirstOrderMeasure:
    """What a set of examples gave.

    Attributes:
        samples: One row an example; columns as `theory.first_order.FirstOrder`.
        attribution: Shares of the homogeneity gap, see `theory.attribution.attribution_table`.
        approximations: Name -> approximation to q for each example, see `theory.corrections`;
            empty if not asked for.
    """

    samples: pd.DataFrame
    attribution: pd.DataFrame
    approximations: dict[str, np.ndarray]


def measure_first_order(
    model: nn.Module,
    f: Function,
    batches: Batches,
    mean: Float[Tensor, " *dims"],
    head: Head = "softmax",
    *,
    coupled: bool = False,
    corrections: bool = False,
    on_batch: Rows = lambda rows: None,
) -> FirstOrderMeasure:
    """q, q̂, both gaps and the attribution on all batches.

    Args:
        model: The network, inside `theory.network.evaluating`.
        f: The same network as a function, as `evaluating` gave it.
        batches: (x, targets) batches.
        mean: x̄' = E[x'].
        head: Which loss.
        coupled: Whether f normalises by batch statistics.
        corrections: Whether to compute the approximations too, at one more forward pass.
        on_batch: Called with the number of rows done.

    Raises:
        InputError: If the model gives NaN or infinity, or an operation has no derivative rule.
    """
    last_layer: list[Tensor] = []
    quotients: list[Tensor] = []
    columns: dict[str, list[Tensor]] = {field.name: [] for field in fields(FirstOrder)}
    shares: dict[str, list[Tensor]] = defaultdict(list)
    kinds: dict[str, str] = {}
    for x, targets in batches:
        with LayerShares(model) as recorded:
            terms = first_order(f, x, targets, mean, head)
        if recorded.last in recorded.by_layer and recorded.by_layer[recorded.last].ndim:
            last_layer.append(recorded.by_layer[recorded.last])
        if coupled:
            # One backward pass gives totals over the coupled batch, not the rows.
            recorded.by_layer = {k: v.sum() for k, v in recorded.by_layer.items()}
            terms = first_order_coupled(f, x, targets, mean, head)
        for name, column in vars(terms).items():
            columns[name].append(column)
        for layer, share in recorded.by_layer.items():
            shares[layer].append(share)
        kinds |= recorded.kinds
        if corrections:
            with torch.no_grad():
                quotients.append(difference_quotient(f, x, targets, mean, terms.loss, head))
        on_batch(len(x))
    samples = pd.DataFrame({name: _column(pieces) for name, pieces in columns.items()})
    bad = ~np.isfinite(samples.to_numpy()).all(1)
    if bad.any():
        raise InputError(
            f"the model gives NaN or Inf on {int(bad.sum())} of {len(bad)} examples (first: number "
            f"{int(bad.argmax())}): check its weights and the scale of the data"
        )
    approximations: dict[str, np.ndarray] = {}
    if corrections:
        q_hat = samples["q_hat"].to_numpy()
        approximations[Q_HAT] = q_hat
        if sum(map(len, last_layer)) == len(samples):
            approximations[LAST_LAYER] = q_hat + _column(last_layer)
        approximations[QUOTIENT] = _column(quotients)
        approximations[NORMALIZATION] = q_hat + samples["normalization_gap"].to_numpy()
        if all(piece.ndim for pieces in shares.values() for piece in pieces):
            all_shares = sum((_column(pieces) for pieces in shares.values()), 0.0)
            approximations[LAYERS] = q_hat + all_shares
        approximations[EXACT] = samples["q"].to_numpy()
    attribution = attribution_table(shares, kinds, samples["homogeneity_gap"].to_numpy())
    return FirstOrderMeasure(samples, attribution, approximations)


def _column(pieces: list[Tensor]) -> np.ndarray:
    return torch.cat(pieces).double().cpu().numpy()


def measure_alignment(
    model: nn.Module,
    f: Function,
    batches: Batches,
    mean: Float[Tensor, " *dims"],
    head: Head,
    found: FirstOrderMeasure,
    *,
    coupled: bool = False,
    on_batch: Rows = lambda rows: None,
) -> tuple[pd.DataFrame, str]:
    """`theory.alignment.gradient_alignment`, or an empty table and why there is none.

    Args:
        model: The network, inside `theory.network.evaluating`.
        f: The same network as a function.
        batches: The batches that `found` was measured on.
        mean: x̄' = E[x'].
        head: Which loss.
        found: What `measure_first_order` found; its signs spare a pass.
        coupled: Whether f normalises by batch statistics.
        on_batch: Called with the number of rows done.
    """
    signs = None
    if not coupled:
        signs = torch.from_numpy(np.sign(found.samples[["q", "q_hat"]].to_numpy()))
    try:
        return gradient_alignment(
            model, f, batches, mean, head, coupled=coupled, signs=signs, on_batch=on_batch
        ), ""
    except InputError as error:  # a model may well lack second derivatives or parameters
        return pd.DataFrame(), str(error)


def measure_probe(
    model: nn.Module,
    x: Float[Tensor, "samples *dims"],
    targets: Float[Tensor, "samples classes"],
    mean: Float[Tensor, " *dims"],
    *,
    head: Head = "softmax",
    batch_norm: BatchNormMode = "eval",
    batch_size: int = 32,
    gradients: bool = True,
    seed: int = 0,
) -> dict[str, Any]:
    """How well q̂ stands for q on a probe set, as plain numbers for a line of a log.

    Deterministic; the model and PyTorch's random state are left as they were.

    Args:
        model: Any module from inputs to logits; the data is brought to its device and type.
        x: The probe's inputs.
        targets: y, one row an example.
        mean: x̄' = E[x'].
        head: Which loss.
        batch_norm: "eval", or "batch" to normalise by the statistics of each `batch_size` examples.
        batch_size: Examples in one pass.
        gradients: Whether to compare the penalties' parameter gradients, the dearest part.
        seed: Of the bootstrap.

    Returns:
        `samples`; means `loss`, `mean_q`, `mean_q_hat`, `mean_abs_q`, `mean_abs_q_hat` and
        `norm_q`, in nats; `relative_error`, `pearson`, `spearman`, `sign_agreement`, `slope`,
        `normalization` and `homogeneity` (the gaps' sizes relative to ‖q‖), each with `value`,
        `low`, `high` (95 % bootstrap interval); `attribution`, a list of {layer, kind, mean,
        mean_abs}; `alignment` with `cosine_q`, `cosine_abs_q`, `norm_q`, `norm_q_hat` over all
        parameters, or None and the reason in `alignment_note`.

    Raises:
        InputError: If the probe's parts do not belong together, the model gives NaN or infinity or
            cannot take the inputs, or an operation has no derivative rule.
    """
    if not len(x) or len(x) != len(targets) or mean.shape != x.shape[1:]:
        raise InputError(
            f"the probe holds inputs of shape {tuple(x.shape)}, targets of shape "
            f"{tuple(targets.shape)} and a mean of shape {tuple(mean.shape)}: give at least one "
            "input, one row of targets each, and a mean of one input's shape"
        )
    if batch_size < 1:
        raise InputError(f"batch_size is {batch_size}: it must be at least 1")
    if batch_norm == "eval":
        refuse_coupled(model)
    like = next((p for p in model.parameters() if p.is_floating_point()), x)
    x, mean = (part.to(like.device, like.dtype) for part in (x, mean))
    classes = count_logits(model, x[:1])
    targets = as_targets(targets.to(x.device), classes, head, dtype=x.dtype)

    def batches() -> Iterator[tuple[Tensor, Tensor]]:
        return zip(x.split(batch_size), targets.split(batch_size), strict=True)

    coupled = batch_norm == "batch"
    alignment, note = pd.DataFrame(), "not asked for"
    with evaluating(model, batch_norm) as f:
        found = measure_first_order(model, f, batches(), mean, head, coupled=coupled)
        if gradients:
            alignment, note = measure_alignment(
                model, f, batches(), mean, head, found, coupled=coupled
            )
    samples = found.samples
    q, q_hat = samples["q"].to_numpy(), samples["q_hat"].to_numpy()
    estimates = compare(q, q_hat, seed)
    for gap in ("normalization", "homogeneity"):
        estimates[gap] = bootstrapped(relative_size, q, samples[f"{gap}_gap"].to_numpy(), seed=seed)
    whole = ["cosine_q", "cosine_abs_q", "norm_q", "norm_q_hat"]
    return {
        "samples": len(samples),
        "loss": float(samples["loss"].mean()),
        "norm_q": float(np.linalg.norm(q)),
        "mean_q": float(q.mean()),
        "mean_q_hat": float(q_hat.mean()),
        "mean_abs_q": float(np.abs(q).mean()),
        "mean_abs_q_hat": float(np.abs(q_hat).mean()),
        **{name: asdict(estimate) for name, estimate in estimates.items()},
        "attribution": found.attribution.to_dict("records"),
        "alignment": None if alignment.empty else alignment.loc[0, whole].to_dict(),
        "alignment_note": note,
    }
