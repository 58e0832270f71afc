"""Training objectives by name; see `deep.mixup` and `deep.mixupe` for what each computes."""

from typing import Literal, get_args

import torch
from jaxtyping import Float
from torch import Tensor, nn

from deep.data.graph_batches import Graphs
from deep.mixup import ERM, Lam, LossForm, ManifoldMixup, Mixup
from deep.mixupe import (
    Exact,
    MixupE,
    OfficialV1,
    OfficialV2,
    OfficialV3,
    OfficialV4,
    Statistics,
)
from deep.models.embedder import Embedder
from theory.errors import InputError, unknown
from theory.losses import Head

Objective = Literal[
    "erm", "mixup", "manifold_mixup", "mixupe-paper", "mixupe-official-v1", "mixupe-official-v2",
    "mixupe-official-v3", "mixupe-official-v4", "mixupe-exact",
]  # fmt: skip
OBJECTIVES: tuple[Objective, ...] = get_args(Objective)

_MIXUPE = {
    "mixupe-paper": MixupE,
    "mixupe-official-v1": OfficialV1,
    "mixupe-official-v2": OfficialV2,
    "mixupe-official-v3": OfficialV3,
    "mixupe-official-v4": OfficialV4,
    "mixupe-exact": Exact,
}


class OnEmbedding(nn.Module):
    """An objective of what a model's head makes of the embeddings that the rest of it gives.

    The embedding z takes the place of the input x: it is mixed, and exact q is a derivative along
    z̄ - z. z̄ is the batch's own mean embedding, held constant in differentiation, since the mean
    over all training inputs moves with every step. One pass gives z for the clean and the mixed
    examples, so that MixupE costs no second one and `clean_statistics` has nothing to choose.

    The whole model is trained through z. Two penalties do not reach it, and train the head alone:
    those of mixupe-official-v1 and -v2, which detach their input. mixupe-exact's needs a head of
    layers that `theory.tangents` knows.

    Args:
        model: A module that embeds.
        objective: Around the model's head.

    Attributes:
        generator: The objective's.
    """

    def __init__(self, model: Embedder, objective: ERM):
        super().__init__()
        self.model, self.objective = model, objective
        self.generator = objective.generator

    @property
    def accuracy(self) -> Tensor:
        """Of the last batch, see `deep.mixup.ERM`."""
        return self.objective.accuracy

    def forward(
        self, x: Float[Tensor, "batch *dims"] | Graphs, targets: Float[Tensor, "batch classes"]
    ) -> Float[Tensor, ""]:
        """The scalar to minimise, in nats; arguments as for `ERM.forward`."""
        z = self.model.embed(x)
        if isinstance(self.objective, MixupE) and self.objective.needs_mean:
            self.objective.mean = z.mean(0).detach()
        return self.objective(z, targets)


def build_objective(
    name: str,
    model: nn.Module,
    *,
    head: Head = "softmax",
    loss: LossForm | str = "cross-entropy",
    alpha: float = 1.0,
    beta: float | None = None,
    lam: Lam | str = "batch",
    eta: float = 0.001,
    tau: float = 1.0,
    clean_statistics: Statistics | str = "update",
    mean: Float[Tensor, "*dims"] | None = None,
    generator: torch.Generator,
) -> ERM | OnEmbedding:
    """The objective of that name, around the model. Each takes of the options what concerns it.

    Args:
        name: One of `OBJECTIVES`.
        model: Maps a batch of inputs to logits. If it is an `Embedder`, the objective acts on its
            embeddings, see `OnEmbedding`.
        head: Which loss.
        loss: Form of the loss of erm, mixup and manifold_mixup, see `deep.mixup.ERM`.
        alpha: Beta's α.
        beta: Beta's β, None for α.
        lam: One λ a "batch" or a "sample".
        eta: Strength of MixupE's penalty.
        tau: τ of mixupe-official-v1 and -v3.
        clean_statistics: Whether MixupE's clean pass updates batch norm's running statistics.
        mean: x̄', the mean of the training inputs; mixupe-exact, -official-v1 and -v2 need it,
            but on embeddings.
        generator: A CPU generator for λ, partners and layers.

    Raises:
        InputError: If the name is unknown, an option of the objective is out of range or missing,
            or a form of the loss is asked of an objective that has none to choose.
    """
    if name not in OBJECTIVES:
        raise unknown("objective", name, OBJECTIVES)
    if isinstance(model, Embedder):
        on_head = build_objective(
            name, model.head, head=head, loss=loss, alpha=alpha, beta=beta, lam=lam, eta=eta,
            tau=tau, clean_statistics=clean_statistics, mean=torch.zeros(()), generator=generator,
        )  # fmt: skip
        assert isinstance(on_head, ERM)
        return OnEmbedding(model, on_head)
    if name == "erm":
        return ERM(model, head, loss)
    if name in ("mixup", "manifold_mixup"):
        kind = Mixup if name == "mixup" else ManifoldMixup
        return kind(model, head, alpha, beta, lam, loss, generator=generator)
    if loss != "cross-entropy":
        raise InputError(f"loss {loss} is for erm, mixup and manifold_mixup, not for {name}")
    return _MIXUPE[name](
        model,
        head,
        alpha,
        beta,
        lam,
        eta=eta,
        tau=tau,
        mean=mean,
        clean_statistics=clean_statistics,
        generator=generator,
    )
