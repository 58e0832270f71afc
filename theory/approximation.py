"""The check itself: does MixupE's approximation hold for this network on this data?

`check_approximation` runs everything in this room on one network in one state and states, claim by
claim, what holds. It reads no files and trains nothing; `python -m theory.check_approx` does both
around it.
"""

import math
from collections.abc import Callable, Iterable, Iterator
from dataclasses import asdict, dataclass, fields
from numbers import Integral
from typing import Any, get_args

import pandas as pd
import torch
from jaxtyping import Float
from torch import Tensor, nn
from torch.nn.parameter import is_lazy

from theory.agreement import compare
from theory.corrections import corrections_frame
from theory.errors import InputError, check_positive
from theory.expansion import Pairs
from theory.expectation import Sampling, sampled_regularizer
from theory.kinks import segment_regularizer
from theory.losses import Head, as_targets
from theory.mixing import relabelled_law
from theory.network import BatchNormMode, copy_in, evaluating, refuse_coupled
from theory.orders import draw_pairs, measure_orders
from theory.probe import measure_alignment, measure_first_order
from theory.regularizer import PairSettings, measure_theorem_1
from theory.report import Report
from theory.segments import segment_pieces
from theory.self_check import derivative_self_check
from theory.taylor import Engine
from theory.verdicts import Thresholds, judge

SELF_CHECK_SAMPLES = 4
MOST_ORDERS = 24
# Cost for one example in forward passes, as `python -m benchmarks first_order` finds it, rounded.
FIRST_ORDER_WORK, GRADIENT_WORK = 3.0, 11.0


@dataclass(frozen=True)
class _Data:
    """The examples of a check, whole, on the network's device."""

    x: Tensor
    targets: Tensor
    mean: Tensor

    def batches(self, rows: int) -> Iterator[tuple[Tensor, Tensor]]:
        """(x, targets) in the data's order."""
        return zip(self.x.split(rows), self.targets.split(rows), strict=True)

    def spread(self, n: int) -> tuple[Tensor, Tensor]:
        """n examples at even distances, so that data sorted by class gives all classes."""
        picks = torch.linspace(0, len(self.x) - 1, n, device=self.x.device).round().long()
        return self.x[picks], self.targets[picks]


# Derivatives are taken, whatever the caller has turned off.
@torch.inference_mode(False)
@torch.enable_grad()
def check_approximation(
    model: nn.Module,
    data: Iterable[tuple[Tensor, Tensor]],
    *,
    alpha: float = 1.0,
    beta: float | None = None,
    order: int = 1,
    head: Head = "softmax",
    mean: Float[Tensor, " *dims"] | None = None,
    batch_norm: BatchNormMode = "eval",
    dtype: torch.dtype | None = None,
    batch_size: int = 32,
    gradients: bool = True,
    nodes: int = 8,
    pair_samples: int | None = None,
    pair_seconds: float = 30.0,
    tolerance: float | None = None,
    thresholds: Thresholds | None = None,
    engine: Engine = "series",
    max_pieces: int | None = None,
    seed: int = 0,
    on_progress: Callable[[float], None] | None = None,
) -> Report:
    """Measures every claim behind MixupE's approximation q̂ ≈ q for one network as it is now.

    Exact q = (g − y)ᵀ J (x̄' − x) against q̂ = (y − g)ᵀ f, the two gaps between them, the layers
    that cause the second, the alignment of their parameter gradients, and Theorem 1's identity and
    first-order share on all pairs of a part of the data (Zou, Verma et al., "MixupE", UAI 2023).

    Args:
        model: Any module that maps a floating-point batch to logits of shape (batch, classes) or
            (batch,). It is measured in evaluation mode, on its own device, and left as it was.
        data: Iterable of (x, y) batches; y holds class indices or probability rows. Read once.
        alpha: α of Mixup's Beta(α, β).
        beta: β; α where it is not given.
        order: Highest order of the expansion of R to report. Above 1, both expansions are held
            against R on random pairs, one or more a sample.
        head: "softmax" for cross-entropy, "sigmoid" for (summed) binary cross-entropy.
        mean: x̄' = E[x'], of one input's shape; the mean of `data` where it is not given.
        batch_norm: "eval", or "batch" to normalise by the statistics of each `batch_size` examples.
            The theorem's expectation over pairs is not defined there and is left out.
        dtype: Precision to measure in (on a copy), float32 or float64; the model's own where it
            is not given.
        batch_size: Examples in one pass.
        gradients: Whether to measure the gradient alignment, the dearest part.
        nodes: Quadrature nodes for the expectation over λ; the error that they leave is measured.
        pair_samples: Number of examples whose pairs are all taken for the exact R, at most the
            number in `data`. Where it is not given, as many as `pair_seconds` allow.
        pair_seconds: About how long that part and an estimate of R over all of `data` may take
            together; the network's speed is measured first. Both cost the same.
        tolerance: Go on with the estimate of R until its 95 % interval's half-width is below this
            part of it, however long that takes.
        thresholds: What the claims are held against.
        engine: How Taylor terms above the first are computed: "series", or "nested" for nested
            jvp, the readable reference, up to order 4.
        max_pieces: For networks of affine pieces (ReLU): follow each random pair's segment exactly,
            kink by kink in float64, for so many pieces, and sample what is left of it.
        seed: Of the bootstrap and of the estimate's draws.
        on_progress: Called now and then with the work done since the last call, in forward passes
            of one example.

    Returns:
        The report; `print` it for the table of claims.

    Raises:
        InputError: If the data, the model or an option cannot be used.
    """
    thresholds = thresholds or Thresholds()
    if not isinstance(thresholds, Thresholds):
        raise InputError("thresholds are no Thresholds: pass theory.Thresholds(q_hat=0.5), say")
    relabelled_law(alpha, beta)  # refuses a bad α or β before any work
    counts = {
        "order": order,
        "nodes": nodes,
        "batch_size": batch_size,
        "pair_samples": pair_samples,
        "max_pieces": max_pieces,
    }
    for name, number in counts.items():
        if number is not None and (not isinstance(number, Integral) or number < 1):
            raise InputError(f"{name} is {number}: it must be a whole number, at least 1")
    if order > MOST_ORDERS:
        raise InputError(
            f"order is {order}: a check takes at most {MOST_ORDERS}, as the nested expansion costs "
            "order^5; theory.taylor.taylor_terms goes further"
        )
    if engine not in get_args(Engine):
        raise InputError(f"unknown engine {engine!r}: use one of {', '.join(get_args(Engine))}")
    if not isinstance(seed, Integral) or not 0 <= seed < 2**32:
        raise InputError(f"seed is {seed}: it must be a whole number, at least 0 and below 2^32")
    check_positive("pair_seconds", pair_seconds)
    Sampling(tolerance=tolerance)  # refuses a bad one
    if max_pieces is not None and batch_norm == "batch":
        raise InputError("max_pieces needs batch_norm='eval': batch statistics have no segments")
    if order > 1 and batch_norm == "batch":
        raise InputError(
            "order above 1 with batch_norm='batch' is refused: batch statistics couple the "
            "examples, so that none has a series of its own; use order=1 or batch_norm='eval'"
        )
    model = _checked_model(model, dtype)
    if batch_norm == "eval":
        refuse_coupled(model)
    examples = _gather(model, data, mean, head, batch_size)
    progress = on_progress or (lambda rows: None)

    with evaluating(model, batch_norm) as f:
        found = measure_first_order(
            model, f, examples.batches(batch_size), examples.mean, head,
            coupled=batch_norm == "batch", corrections=True,
            on_batch=lambda rows: progress(FIRST_ORDER_WORK * rows),
        )  # fmt: skip
        samples = found.samples
        alignment, alignment_note = pd.DataFrame(), "not asked for"
        if gradients:
            alignment, alignment_note = measure_alignment(
                model, f, examples.batches(batch_size), examples.mean, head, found,
                coupled=batch_norm == "batch",
                on_batch=lambda rows: progress(GRADIENT_WORK * rows),
            )  # fmt: skip
        pairs: dict[str, Any] = {}
        orders: dict[str, Any] = {}
        segments: dict[str, Any] = {}
        if batch_norm == "eval":
            plan = PairSettings(alpha, beta, head, order, nodes, batch_size, engine)
            n = pair_samples or plan.affordable(f, examples.x, examples.targets, pair_seconds)
            n = min(n, len(examples.x))
            pairs = measure_theorem_1(f, *examples.spread(n), plan, progress)
            # One partner a sample at least, and as many pairs as the identity takes.
            partners = max(1, n**2 // len(examples.x))
            drawn = draw_pairs(len(examples.x), partners, torch.Generator().manual_seed(seed))
            if order > 1:
                orders = measure_orders(
                    f, examples.x, examples.targets, drawn, order=order, alpha=alpha, beta=beta,
                    head=head, nodes=nodes, engine=engine, rows=plan.rows(examples.x),
                    on_pairs=lambda done: progress(done * (nodes + plan.series_work)),
                )  # fmt: skip
            if max_pieces is not None:
                segments = _segments_part(model, examples, drawn, plan, max_pieces)
            sampled = sampled_regularizer(
                f, examples.x, examples.targets, Sampling(plan.draws(n), tolerance),
                alpha=alpha, beta=beta, head=head, generator=torch.Generator().manual_seed(seed),
                rows=plan.rows(examples.x), on_progress=progress,
            )  # fmt: skip
            pairs["sampled"] = {"tolerance": tolerance, **asdict(sampled)}
    self_check, self_check_note = _self_check_part(model, examples, head, order, batch_norm)

    q, q_hat = samples["q"].to_numpy(), samples["q_hat"].to_numpy()
    agreement = compare(q, q_hat, seed)
    claims = judge(
        samples, agreement, alignment, alignment_note, pairs, orders, self_check, self_check_note,
        thresholds, examples.x.dtype, seed,
    )  # fmt: skip
    settings = {
        "alpha": alpha,
        "beta": alpha if beta is None else beta,
        "order": order,
        "engine": engine,
        "head": head,
        "mean": "data" if mean is None else "given",
        "batch_norm": batch_norm,
        "dtype": str(examples.x.dtype).removeprefix("torch."),
        "batch_size": batch_size,
        "nodes": nodes,
        "tolerance": tolerance,
        "samples": len(examples.x),
        "seed": seed,
        "thresholds": asdict(thresholds),
    }
    return Report(
        claims=claims,
        samples=samples,
        agreement=pd.DataFrame.from_dict(
            {name: asdict(estimate) for name, estimate in agreement.items()}, orient="index"
        ),
        attribution=found.attribution,
        corrections=corrections_frame(q, found.approximations, seed),
        alignment=alignment,
        regularizer=pairs,
        orders=orders,
        segments=segments,
        self_check=self_check,
        settings=settings,
    )


def _checked_model(model: nn.Module, dtype: torch.dtype | None) -> nn.Module:
    if not isinstance(model, nn.Module):
        raise InputError(f"the model is a {type(model).__name__}: pass a torch.nn.Module")
    if dtype is not None and not isinstance(dtype, torch.dtype):
        raise InputError(f"dtype is {dtype!r}: pass torch.float32 or torch.float64")
    parameters = dict(model.named_parameters())
    for name, tensor in (*parameters.items(), *model.named_buffers()):
        _check_tensor(name, tensor, constant=name not in parameters)
    if dtype is None or all(
        p.dtype == dtype for p in model.parameters() if p.is_floating_point()
    ):  # fmt: skip
        return model
    if not dtype.is_floating_point:
        raise InputError(f"dtype is {dtype}: derivatives need a floating-point type")
    return copy_in(model, dtype)


def _check_tensor(name: str, tensor: Tensor, *, constant: bool) -> None:
    """Raises InputError unless a parameter, or a buffer where `constant`, can be measured with."""
    if is_lazy(tensor) or tensor.is_meta:
        raise InputError(
            f"the model's {name} has no values yet: run one batch through the model, or build it "
            "on a device other than meta"
        )
    if tensor.is_inference():
        raise InputError(
            f"the model's {name} was made in torch.inference_mode, which derivatives cannot pass: "
            "build or load the model outside of it"
        )
    if not tensor.is_floating_point():
        return
    # A buffer may hold Inf, as a mask of attention does; statistics that do have diverged.
    may_be_infinite = constant and not name.rpartition(".")[2].startswith("running_")
    bad = tensor.isnan() if may_be_infinite else ~tensor.isfinite()
    if bool(bad.any()):
        raise InputError(f"the model's {name} holds NaN or Inf: train or load it anew")


def _gather(
    model: nn.Module,
    data: Iterable[tuple[Tensor, Tensor]],
    mean: Tensor | None,
    head: Head,
    batch_size: int,
) -> _Data:
    """All examples in one tensor of the model's precision, with validated targets and x̄'."""
    xs, ys = [], []
    for batch in data:
        if not isinstance(batch, tuple | list) or len(batch) != 2:
            raise InputError("data must yield (x, y) pairs of tensors: pass [(x, y)] for one batch")
        try:
            x, y = (torch.as_tensor(part).detach() for part in batch)
        except (TypeError, ValueError, RuntimeError) as error:
            raise InputError(f"a batch does not hold numbers ({error}): pass tensors") from error
        if x.ndim == 0 or y.ndim == 0:
            raise InputError(
                "data yields single examples: wrap the data set in a DataLoader to have batches"
            )
        if len(x) != len(y):
            raise InputError(f"a batch holds {len(x)} inputs and {len(y)} labels: they must match")
        xs.append(x)
        ys.append(y)
    if sum(map(len, xs)) == 0:
        raise InputError("there are no samples: pass data with at least one example")
    if len({(x.shape[1:], y.shape[1:], y.dtype) for x, y in zip(xs, ys, strict=True)}) > 1:
        raise InputError("batches differ in the shape of inputs or labels: make them alike")
    x, y = torch.cat(xs), torch.cat(ys)
    if not x.is_floating_point():
        raise InputError(f"inputs are {x.dtype}: derivatives need floating-point inputs")
    if not bool(torch.isfinite(x).all()):
        raise InputError("the data holds NaN or Inf: clean it first")
    parameter = next((p for p in model.parameters() if p.is_floating_point()), x)
    if torch.finfo(parameter.dtype).bits < 32:
        raise InputError(
            f"the check would be made in {parameter.dtype}, whose rounding hides R: pass "
            "dtype=torch.float32, or make model and data .float()"
        )
    x = x.to(parameter.device, parameter.dtype)
    with torch.no_grad(), evaluating(model) as f:
        logits, again = f(x[:batch_size]), f(x[:batch_size])
        slack = (
            1e-3 * float(logits.abs().max()) if len(logits) else 0.0
        )  # for nondeterministic sums
        if bool(logits.isfinite().all()) and not torch.allclose(logits, again, rtol=0, atol=slack):
            raise InputError(
                "the model gives other logits for the same inputs, so it is no fixed function: let "
                "functional dropout follow self.training, or fix its random draws"
            )
        num_classes = logits.shape[1]
    targets = as_targets(y.to(x.device), num_classes, head, dtype=x.dtype)
    if mean is None:
        mean = x.mean(0, dtype=torch.float64)
    elif mean.shape != x.shape[1:]:
        raise InputError(
            f"mean has shape {tuple(mean.shape)} and one input {tuple(x.shape[1:])}: they must be "
            "the same"
        )
    # A copy, as a tensor made in inference mode takes no part in derivatives.
    return _Data(x, targets, mean.detach().clone().to(x.device, x.dtype))


def _segments_part(
    model: nn.Module, examples: _Data, pairs: Pairs, plan: PairSettings, max_pieces: int
) -> dict[str, Any]:
    """R of each drawn pair kink by kink, in float64 whatever the check's own precision."""
    i, j = (index.to(examples.x.device) for index in pairs)
    x, targets = examples.x.double(), examples.targets.double()
    with evaluating(copy_in(model, torch.float64)) as f:
        found = segment_regularizer(
            f, x[i], targets[i], x[j], alpha=plan.alpha, beta=plan.beta, head=plan.head,
            max_pieces=max_pieces,
        )  # fmt: skip
        # One segment to look at.
        usual = found.counts.argsort(stable=True)[len(i) // 2].view(1)
        shown = segment_pieces(f, x[i[usual]], x[j[usual]], max_pieces=max_pieces)
    columns = {field.name: getattr(found, field.name) for field in fields(found)}
    return {
        "max_pieces": max_pieces,
        "pairs": {"i": pairs[0].tolist(), "j": pairs[1].tolist()},
        **{name: column.cpu().tolist() for name, column in columns.items()},
        "segment": {
            "pair": int(usual), "breakpoints": shown.breakpoints.tolist(),
            "logits": shown.logits.tolist(), "target": targets[i[usual]][0].tolist(),
        },
    }  # fmt: skip


def _self_check_part(
    model: nn.Module, examples: _Data, head: Head, order: int, batch_norm: BatchNormMode
) -> tuple[dict[str, Any], str]:
    x, targets = examples.spread(min(SELF_CHECK_SAMPLES, len(examples.x)))
    try:
        result = derivative_self_check(
            model, x, targets, examples.mean, head=head, order=order, batch_norm=batch_norm
        )
    except InputError as error:
        return {}, str(error)
    notes = []
    if any(result.kinks):
        notes.append(
            f"{max(result.kinks)} of the {result.samples} samples tested lie on a kink (a tie in "
            "max-pooling, a ReLU at exactly 0), where no derivative exists and q is one of several "
            "subgradients"
        )
    unknown = [str(k) for k, error in enumerate(result.errors, start=1) if math.isnan(error)]
    if unknown and len(unknown) < len(result.errors):
        notes.append(f"order {', '.join(unknown)} could be compared on none of them")
    return asdict(result), "; ".join(notes)
