"""A plain multilayer perceptron."""

from math import prod

from jaxtyping import Float
from torch import Tensor, nn


class MLP(nn.Module):
    """Dense layers d → width → width → classes with ReLU between them.

    No normalisation; PyTorch's default initialisation. Inputs of any shape are flattened to
    d = in_channels · height · width numbers; a table of d columns is in_channels = d with
    image_size = 1.

    Args:
        num_classes: Number of logits.
        in_channels: Channels of the images, or columns of a table.
        image_size: (height, width) of the images.
        width: Units of each of the two hidden layers.
        bias: Whether the layers have biases. Without them the network is homogeneous: J x = f.
    """

    def __init__(
        self,
        *,
        num_classes: int = 10,
        in_channels: int = 3,
        image_size: tuple[int, int] = (32, 32),
        width: int = 128,
        bias: bool = True,
    ):
        super().__init__()
        self.layers = nn.Sequential(
            nn.Flatten(),
            nn.Linear(in_channels * prod(image_size), width, bias=bias),
            nn.ReLU(),
            nn.Linear(width, width, bias=bias),
            nn.ReLU(),
            nn.Linear(width, num_classes, bias=bias),
        )

    def forward(self, x: Float[Tensor, "batch *shape"]) -> Float[Tensor, "batch classes"]:
        """Logits."""
        return self.layers(x)
