"""Training objectives: modules that own the whole way from a batch to the loss that is minimised.

An objective holds the model, so its parameters are the model's, its train and eval mode set the
model's, and everything random in it comes from the generator it was given.

    erm     mean loss of the batch
    mixup   Zhang et al., "mixup: Beyond empirical risk minimization", ICLR 2018
    mixupe  Zou, Verma et al., "MixupE", UAI 2023
"""

import math

import torch
from jaxtyping import Float
from torch import Tensor, nn

from theory.errors import InputError
from theory.first_order import q_hat
from theory.losses import Head, loss
from theory.mixing import beta_law, relabelled_law
from theory.network import logits_function

OBJECTIVES = ("erm", "mixup", "mixupe")


class ERM(nn.Module):
    """Empirical risk minimisation: (1/n) Σ ℓ(f(x_i), y_i).

    Args:
        model: Maps a batch of inputs to logits.
        head: Which loss ℓ, see `theory.losses`.
    """

    def __init__(self, model: nn.Module, head: Head = "softmax"):
        super().__init__()
        self.model = model
        self.head: Head = head

    def logits(self, x: Float[Tensor, "batch *dims"]) -> Float[Tensor, "batch classes"]:
        """The model's logits, one row an example also where the model returns a plain vector."""
        return logits_function(self.model)(x)

    def forward(
        self, x: Float[Tensor, "batch *dims"], targets: Float[Tensor, "batch classes"]
    ) -> Float[Tensor, ""]:
        """The scalar to minimise, in nats.

        Args:
            x: Inputs.
            targets: y, rows as from `theory.losses.as_targets`.
        """
        return loss(self.logits(x), targets, self.head).mean()


class Mixup(ERM):
    """ERM on a mixed batch: λx_i + (1 − λ)x_j with labels λy_i + (1 − λ)y_j.

    One λ ~ Beta(α, β) a batch and one random permutation i ↦ j, as in Zhang et al. (ICLR 2018).

    Args:
        model: Maps a batch of inputs to logits.
        head: Which loss.
        alpha: α > 0.
        beta: β > 0; None for β = α, the usual symmetric law.
        generator: A CPU generator; each forward pass draws λ, then the permutation.

    Raises:
        InputError: If α or β is not a positive finite number.
    """

    def __init__(
        self,
        model: nn.Module,
        head: Head = "softmax",
        alpha: float = 1.0,
        beta: float | None = None,
        *,
        generator: torch.Generator,
    ):
        super().__init__(model, head)
        self.law = beta_law(alpha, beta)
        self.generator = generator

    def forward(
        self, x: Float[Tensor, "batch *dims"], targets: Float[Tensor, "batch classes"]
    ) -> Float[Tensor, ""]:
        """The scalar to minimise, in nats; arguments as for `ERM.forward`."""
        lam = self.law.sample(1, self.generator).item()
        partner = torch.randperm(len(x), generator=self.generator).to(x.device)
        x_mixed = lam * x + (1 - lam) * x[partner]
        targets_mixed = lam * targets + (1 - lam) * targets[partner]
        return super().forward(x_mixed, targets_mixed)


class MixupE(Mixup):
    """Mixup with its own first-order directional derivative strengthened.

    Zou, Verma et al. (UAI 2023), in the form of the authors' talk:

        total = η̂ (L_mix + η R),    R = E[a]/n Σ_i |q̂(x_i)|,    q̂ = (y − g(f))ᵀ f

    L_mix is the `Mixup` loss of the batch. q̂ comes from the CLEAN inputs by a second, separate
    forward pass: one pass over clean and mixed inputs together would change the statistics of
    batch norm. E[a] is the mean of a = 1 − λ under the relabelled law of Theorem 1,
    α/(α+β)·Beta(α+1, β) + β/(α+β)·Beta(β+1, α), which is α/(2α+1) for α = β. The factor
    η̂ = |L_mix| / |L_mix + η R| is a constant in differentiation (the authors' published code
    detaches it; the talk does not say), so the loss VALUE is always that of L_mix, and only the
    direction and length of the gradient change.

    In train mode the clean pass, like every pass, updates the running statistics of batch norm: two
    updates a step, the first by the mixed batch and the second by the clean one.

    Args:
        model: Maps a batch of inputs to logits.
        head: Which loss.
        alpha: α > 0.
        beta: β > 0; None for β = α.
        eta: Strength η ≥ 0 of R.
        generator: A CPU generator, used as in `Mixup`: for equal seeds both mix alike.

    Raises:
        InputError: If α or β is not a positive finite number, or η is negative or not finite.
    """

    def __init__(
        self,
        model: nn.Module,
        head: Head = "softmax",
        alpha: float = 1.0,
        beta: float | None = None,
        eta: float = 0.001,
        *,
        generator: torch.Generator,
    ):
        super().__init__(model, head, alpha, beta, generator=generator)
        if not 0 <= eta < math.inf:
            raise InputError(f"eta is {eta}: it must be zero or a positive finite number")
        self.eta = eta
        self.mean_a = relabelled_law(alpha, beta).moment(1)

    def forward(
        self, x: Float[Tensor, "batch *dims"], targets: Float[Tensor, "batch classes"]
    ) -> Float[Tensor, ""]:
        """The scalar to minimise, in nats; arguments as for `ERM.forward`."""
        mixup_loss = super().forward(x, targets)
        penalty = self.mean_a * q_hat(self.logits(x), targets, self.head).abs().mean()
        total = mixup_loss + self.eta * penalty
        # Both vanish at a perfect fit (in round-off): 0/0, and there is nothing to rescale.
        eta_hat = torch.where(total == 0, torch.ones_like(total), (mixup_loss / total).abs())
        return eta_hat.detach() * total


def build_objective(
    name: str,
    model: nn.Module,
    *,
    head: Head = "softmax",
    alpha: float = 1.0,
    beta: float | None = None,
    eta: float = 0.001,
    generator: torch.Generator,
) -> ERM:
    """The objective of that name, around the model.

    Args:
        name: One of `OBJECTIVES`.
        model: Maps a batch of inputs to logits.
        head: Which loss.
        alpha: Beta's α (mixup, mixupe).
        beta: Beta's β, None for α (mixup, mixupe).
        eta: Strength of the penalty (mixupe).
        generator: A CPU generator for λ and partners (mixup, mixupe).

    Raises:
        InputError: If the name is unknown or a parameter of the objective is out of range.
    """
    if name == "erm":
        return ERM(model, head)
    if name == "mixup":
        return Mixup(model, head, alpha, beta, generator=generator)
    if name == "mixupe":
        return MixupE(model, head, alpha, beta, eta, generator=generator)
    raise InputError(f"unknown objective {name!r}: choose one of {', '.join(OBJECTIVES)}")
