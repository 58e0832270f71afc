"""Training objectives: modules that own the whole way from a batch to the loss that is minimised.

An objective holds the model, so its parameters are the model's, its train and eval mode set the
model's, and everything random in it comes from the generator it was given. With several processes
(`deep.processes`) x and targets are a process's own rows of the batch, all processes hold
generators of equal seeds, and wrapping the objective in `DistributedDataParallel` gives the
gradient of the whole batch.

    erm             mean loss of the batch
    mixup           Zhang et al., "mixup: Beyond empirical risk minimization", ICLR 2018
    manifold_mixup  Verma et al., "Manifold Mixup", ICML 2019
    mixupe-…        Zou, Verma et al., "MixupE", UAI 2023, see `deep.mixupe`

A confound to know: in the published code of MixupE the ERM and Manifold Mixup baselines minimise
binary cross-entropy on softmax outputs, Mixup and MixupE cross-entropy. `loss="bce-softmax"` trains
the baselines so; the default is cross-entropy for all.
"""

from typing import Literal

import torch
from jaxtyping import Float, Int
from torch import Tensor, nn

from deep.processes import gather, rank, world_size
from theory.errors import InputError
from theory.losses import Head, loss
from theory.mixing import beta_law
from theory.network import logits_function, uncompiled

Lam = Literal["batch", "sample"]
LossForm = Literal["cross-entropy", "bce-softmax"]


class ERM(nn.Module):
    """Empirical risk minimisation: (1/n) Σ ℓ(f(x_i), y_i).

    Args:
        model: Maps a batch of inputs to logits.
        head: Which loss ℓ, see `theory.losses`.
        loss_form: "cross-entropy" for that ℓ, or "bce-softmax" for binary cross-entropy between the
            softmax and the target, averaged over examples AND classes as PyTorch's `BCELoss` is
            (which also cuts each logarithm off at −100; nothing is cut off here).

    Attributes:
        accuracy: Of the last batch's predictions, a detached scalar: the mean weight that a
            target gives to the class predicted. On a mixed batch, λ·[pred = y_i] +
            (1 − λ)·[pred = y_j].
        generator: What randomness comes from; None where there is none.

    Raises:
        InputError: If the form of the loss is unknown or does not go with the head.
    """

    def __init__(
        self, model: nn.Module, head: Head = "softmax", loss_form: LossForm | str = "cross-entropy"
    ):
        super().__init__()
        if loss_form not in ("cross-entropy", "bce-softmax"):
            raise InputError(f"unknown loss {loss_form!r}: use cross-entropy or bce-softmax")
        if loss_form == "bce-softmax" and head != "softmax":
            raise InputError("loss bce-softmax needs the softmax head: leave one of the two out")
        self.model = model
        self.head: Head = head
        self.loss_form = loss_form
        self.generator: torch.Generator | None = None
        self.accuracy = torch.tensor(float("nan"))

    def logits(self, x: Float[Tensor, "batch *dims"]) -> Float[Tensor, "batch classes"]:
        """The model's logits, one row an example also where the model returns a plain vector."""
        logits = logits_function(self.model)(x)
        return logits.float() if logits.dtype in (torch.bfloat16, torch.float16) else logits

    def risk(
        self, logits: Float[Tensor, "batch classes"], targets: Float[Tensor, "batch classes"]
    ) -> Float[Tensor, ""]:
        """Mean loss of a batch of logits, in nats; notes the accuracy."""
        with torch.no_grad():
            if targets.shape[1] == 1:
                hits = torch.where(logits > 0, targets, 1 - targets)
            else:
                hits = targets.gather(1, logits.argmax(1, keepdim=True))
            self.accuracy = hits.mean()
        if self.loss_form == "bce-softmax":
            return binary_cross_entropy_of_softmax(logits, targets).mean()
        return loss(logits, targets, self.head).mean()

    def forward(
        self, x: Float[Tensor, "batch *dims"], targets: Float[Tensor, "batch classes"]
    ) -> Float[Tensor, ""]:
        """The scalar to minimise, in nats.

        Args:
            x: Inputs.
            targets: y, rows as from `theory.losses.as_targets`.
        """
        return self.risk(self.logits(x), targets)


def binary_cross_entropy_of_softmax(
    logits: Float[Tensor, "batch classes"], targets: Float[Tensor, "batch classes"]
) -> Float[Tensor, "batch classes"]:
    """−y log p − (1 − y) log(1 − p) for each class, p the softmax, in nats.

    log(1 − p_c) is the log-sum-exp of the other classes' log p, which a saturated softmax does not
    round to −∞.
    """
    log_p = logits.log_softmax(-1)
    classes = logits.shape[-1]
    itself = torch.eye(classes, dtype=torch.bool, device=logits.device)
    others = log_p[:, None, :].masked_fill(itself, float("-inf")).logsumexp(-1)
    return -(targets * log_p + (1 - targets) * others)


class Mixup(ERM):
    """ERM on a mixed batch: λx_i + (1 − λ)x_j with labels λy_i + (1 − λ)y_j.

    One random permutation i ↦ j and, as in Zhang et al. (ICLR 2018), one λ ~ Beta(α, β) a batch.

    Args:
        model: Maps a batch of inputs to logits.
        head: Which loss.
        alpha: α > 0.
        beta: β > 0; None for β = α, the usual symmetric law.
        lam: One λ a "batch", or an independent one a "sample".
        loss_form: As for `ERM`.
        generator: A CPU generator; each forward pass draws λ, then the permutation.

    Raises:
        InputError: If α or β is not a positive finite number, or lam is neither.
    """

    def __init__(
        self,
        model: nn.Module,
        head: Head = "softmax",
        alpha: float = 1.0,
        beta: float | None = None,
        lam: Lam | str = "batch",
        loss_form: LossForm | str = "cross-entropy",
        *,
        generator: torch.Generator,
    ):
        super().__init__(model, head, loss_form)
        if lam not in ("batch", "sample"):
            raise InputError(f"unknown lam {lam!r}: draw one a batch or one a sample")
        self.law = beta_law(alpha, beta)
        self.lam = lam
        self.generator: torch.Generator = generator

    def forward(
        self, x: Float[Tensor, "batch *dims"], targets: Float[Tensor, "batch classes"]
    ) -> Float[Tensor, ""]:
        """The scalar to minimise, in nats; arguments as for `ERM.forward`."""
        mixing = self.draw(x)
        return self.risk(self.logits(mixing(x)), mixing(targets))

    def draw(self, x: Tensor) -> "Mixing":
        """λ and partners for a batch.

        Raises:
            InputError: If there is one example alone, which cannot be mixed.
        """
        batch = len(x) * world_size()
        if batch < 2:
            raise InputError("a batch of one example cannot be mixed: use batches of at least two")
        own = slice(rank() * len(x), (rank() + 1) * len(x))
        if self.lam == "batch":
            lam: float | Tensor = self.law.sample(1, self.generator).item()
        else:
            lam = self.law.sample(batch, self.generator)[own].to(x.device, x.dtype)
        partner = torch.randperm(batch, generator=self.generator)[own].to(x.device)
        return Mixing(lam, partner)


class Mixing:
    """One draw of λ and partners: call it on anything with one row an example.

    Args:
        lam: λ of all rows, or of each.
        partner: For each row of this process, its partner's place in the whole batch.
    """

    def __init__(self, lam: float | Float[Tensor, " share"], partner: Int[Tensor, " share"]):
        self.lam, self.partner = lam, partner

    def __call__(self, rows: Float[Tensor, "share *dims"]) -> Float[Tensor, "share *dims"]:
        """λ·(row) + (1 − λ)·(partner's row)."""
        lam = self.lam
        if isinstance(lam, Tensor):
            lam = lam.to(rows.dtype).reshape(-1, *(1,) * (rows.ndim - 1))
        return lam * rows + (1 - lam) * gather(rows)[self.partner]


class ManifoldMixup(Mixup):
    """Mixup of a hidden layer's output, the layer drawn anew for each batch.

    The input, the output of the first stage or that of the second, with equal chances; labels are
    mixed by the same λ (Verma et al., ICML 2019). Which layers those are, `mixing_layers` says.
    Arguments and errors as for `Mixup`; each forward pass draws λ, the permutation, then the layer,
    and raises InputError if that layer does not run exactly once in it. With `torch.compile` only
    passes that mix the input are compiled.
    """

    def __init__(self, model: nn.Module, *arguments: object, **options: object):
        super().__init__(model, *arguments, **options)  # type: ignore[arg-type]
        self._layers = mixing_layers(model)

    def forward(
        self, x: Float[Tensor, "batch *dims"], targets: Float[Tensor, "batch classes"]
    ) -> Float[Tensor, ""]:
        """The scalar to minimise, in nats; arguments as for `ERM.forward`."""
        mixing = self.draw(x)
        place = int(torch.randint(1 + len(self._layers), (), generator=self.generator))
        if place == 0:
            return self.risk(self.logits(mixing(x)), mixing(targets))
        calls: list[Tensor] = []

        def mix(module: nn.Module, inputs: object, output: object) -> Tensor:
            if not isinstance(output, Tensor) or output.shape[:1] != x.shape[:1]:
                raise InputError(
                    f"mixing layer {place} of {type(self.model).__name__} does not return one "
                    "tensor with a row an example: name others in mixing_layers"
                )
            calls.append(mixing(output))
            return calls[-1]

        handle = self._layers[place - 1].register_forward_hook(mix)
        try:
            with uncompiled():  # compiled graphs do not notice hooks
                logits = self.logits(x)
        finally:
            handle.remove()
        if len(calls) != 1:
            raise InputError(
                f"mixing layer {place} of {type(self.model).__name__} ran {len(calls)} times in a "
                "pass: name layers in mixing_layers that run once"
            )
        return self.risk(logits, mixing(targets))


def mixing_layers(model: nn.Module) -> list[nn.Module]:
    """The modules whose outputs Manifold Mixup may mix besides the input.

    The first two of the model's `stages`, or those in its attribute `mixing_layers`, if it has one.

    Raises:
        InputError: If the model has neither.
    """
    layers = getattr(model, "mixing_layers", None)
    stages = getattr(model, "stages", None)
    if layers is None and isinstance(stages, nn.Sequential):
        layers = list(stages)[:2]
    modules = list(layers) if isinstance(layers, (list, tuple, nn.ModuleList)) else []
    if not modules or not all(isinstance(layer, nn.Module) for layer in modules):
        raise InputError(
            f"{type(model).__name__} does not say where Manifold Mixup may mix: give it an "
            "attribute mixing_layers, a list of its modules, or train it by mixup"
        )
    return modules
