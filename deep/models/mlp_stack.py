"""Perceptrons of one shape as one network: a layer of all is one batched matrix product."""

from collections.abc import Sequence

import torch
from jaxtyping import Float
from torch import Tensor

from deep.models.mlp import MLP

# Eight times as fast in place as a product with a mask.
_RELU_GRADIENT = torch.ops.aten.threshold_backward.grad_input


class MLPStack:
    """Perceptrons as `deep.models.mlp.MLP`, one a run; the weights of a layer are one tensor.

    Values and tangents run through the layers as rows of one batch. Their gradient is written out
    here, each product straight into the parameter's `grad`: with autograd a step takes a quarter
    longer, for the memory that it takes and gives back.

    Args:
        networks: The perceptrons, of one shape; their parameters are copied.

    Attributes:
        weights: Of each layer, (runs, inputs, outputs).
        biases: Of each layer, (runs, 1, outputs).
    """

    def __init__(self, networks: Sequence[MLP]):
        of_layer = list(zip(*(network.parameters() for network in networks), strict=True))
        self.weights = [torch.stack([p.detach().T for p in layer]) for layer in of_layer[::2]]
        self.biases = [torch.stack([p.detach()[None] for p in layer]) for layer in of_layer[1::2]]
        for parameter in self.parameters:
            parameter.grad = torch.empty_like(parameter)

    @property
    def parameters(self) -> list[Tensor]:
        """Weights, then biases."""
        return [*self.weights, *self.biases]

    def __call__(self, x: Float[Tensor, "runs rows inputs"]) -> Float[Tensor, "runs rows classes"]:
        """Logits of each run on its own rows."""
        return self.forward(x, x.shape[1])[-1]

    def forward(
        self, x: Float[Tensor, "runs rows inputs"], values: int
    ) -> list[Float[Tensor, "runs rows width"]]:
        """What each layer is given, and at the end the logits.

        Args:
            x: Inputs in the first rows; in those behind them directions v, as many as there are,
                for the last of the inputs. What comes out there is J v.
            values: How many rows are inputs.
        """
        given = [x]
        for k, (weight, bias) in enumerate(zip(self.weights, self.biases, strict=True)):
            x = torch.bmm(x, weight)
            x[:, :values] += bias
            if k < len(self.weights) - 1:
                _halve(x, x, values)
            given.append(x)
        return given

    def backward(
        self, given: list[Tensor], gradient: Float[Tensor, "runs rows classes"], values: int
    ) -> None:
        """Sets the gradient of the parameters from that of the logits and their tangents.

        Args:
            given: What `forward` gave.
            gradient: In the last of it.
            values: How many rows are inputs.
        """
        layers = list(zip(self.weights, self.biases, given[:-1], strict=True))
        for k, (weight, bias, x) in reversed(list(enumerate(layers))):
            torch.bmm(x.mT, gradient, out=weight.grad)
            torch.sum(gradient[:, :values], 1, keepdim=True, out=bias.grad)
            if k:
                gradient = torch.bmm(gradient, weight.mT)
                _halve(gradient, x, values)


def _halve(rows: Tensor, x: Tensor, values: int) -> None:
    """Sets rows to zero, in place, where x is not positive; tangents as the last of the values."""
    parts = [slice(values), slice(values, None)]
    of = [slice(values), slice(2 * values - x.shape[1], values)]
    for part, where in zip(parts, of, strict=True):
        _RELU_GRADIENT(rows[:, part], x[:, where], 0, grad_input=rows[:, part])
