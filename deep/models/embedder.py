"""Models whose inputs are no vectors."""

from typing import Any

from jaxtyping import Float
from torch import Tensor, nn


class Embedder(nn.Module):
    """A model in two parts, f = head(embed(x)); what the theory asks of x, it asks of embeddings.

    A subclass sets `head` and defines `embed`.

    Attributes:
        head: Maps embeddings to logits.
    """

    head: nn.Module

    def embed(self, x: Any) -> Float[Tensor, "batch dim"]:
        """The embeddings z, one row an example."""
        raise NotImplementedError

    def forward(self, x: Any) -> Float[Tensor, "batch classes"]:
        """Logits."""
        return self.head(self.embed(x))
