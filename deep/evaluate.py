"""How good a classifier is on labelled data: loss, error, calibration."""

from dataclasses import dataclass

import torch
from jaxtyping import Float, Int
from torch import Tensor, nn

from theory.errors import InputError
from theory.losses import Head, as_targets, loss, probabilities
from theory.network import evaluating

BINS = 15


@dataclass(frozen=True)
class Evaluation:
    """Means over a set of examples.

    Attributes:
        loss: Negative log-likelihood of the labels, in nats.
        error: Share of examples whose most probable class is wrong, in [0, 1].
        calibration_error: Expected calibration error, see `calibration_error`.
    """

    loss: float
    error: float
    calibration_error: float


def evaluate(
    model: nn.Module,
    x: Float[Tensor, "samples *dims"],
    labels: Int[Tensor, " samples"],
    *,
    head: Head = "softmax",
    batch_size: int = 256,
) -> Evaluation:
    """Evaluates a network in evaluation mode and leaves it as it was.

    Args:
        model: Maps a batch to logits.
        x: Inputs; batches of them go to the model's device.
        labels: Class indices.
        head: Which loss; a class's probability under "sigmoid" is its own logit's.
        batch_size: Examples in one pass.

    Raises:
        InputError: If there are no examples, or labels outside the classes.
    """
    if len(x) == 0:
        raise InputError("there are no examples to evaluate: pass at least one")
    device = next((p.device for p in model.parameters()), x.device)
    losses, confidences, hits = [], [], []
    with torch.no_grad(), evaluating(model) as f:
        for inputs, truth in zip(x.split(batch_size), labels.split(batch_size), strict=True):
            logits, truth = f(inputs.to(device)), truth.to(device)
            targets = as_targets(truth, logits.shape[1], head, dtype=logits.dtype)
            losses.append(loss(logits, targets, head))
            g = probabilities(logits, head)
            if g.shape[1] == 1:
                g = torch.cat([1 - g, g], 1)
            confidence, predicted = g.max(1)
            confidences.append(confidence)
            hits.append(predicted == truth)
    hit = torch.cat(hits).double()
    return Evaluation(
        loss=float(torch.cat(losses).double().mean()),
        error=float((1 - hit).mean()),
        calibration_error=calibration_error(torch.cat(confidences).double(), hit),
    )


def calibration_error(
    confidence: Float[Tensor, " samples"], hit: Float[Tensor, " samples"], bins: int = BINS
) -> float:
    """Expected calibration error, Σ_b (n_b/n) |accuracy_b − confidence_b|.

    Over `bins` equal intervals (lower end open) of the predicted class's probability; Guo et al.,
    "On calibration of modern neural networks", ICML 2017, equation (3).

    Args:
        confidence: Probability of the class predicted.
        hit: 1 where it was the right one, 0 elsewhere.
        bins: Number of intervals.
    """
    which = (confidence * bins).ceil().long().clamp(1, bins) - 1
    gaps = torch.zeros(bins, dtype=torch.float64, device=hit.device)
    gaps.index_add_(0, which, (hit - confidence).double())
    return float(gaps.abs().sum() / len(hit))
