"""LeNet for images of any size."""

from jaxtyping import Float
from torch import Tensor, nn

from theory.errors import InputError

SMALLEST = 16  # a side of 16 leaves one pixel after two 5×5 convolutions and two poolings


class LeNet(nn.Module):
    """LeNet-5 (LeCun et al., 1998) with ReLU and max-pooling; PyTorch's default initialisation.

    Two unpadded 5×5 convolutions (6 and 16 channels), each followed by ReLU and 2×2 max-pooling,
    then dense layers of 120 and 84 units. An adaptive average pooling to 5×5 stands before the
    dense layers, so that any image size works, a spectrogram of 160×101 too; on 32×32 images it
    does nothing and the network is the classical one.

    Args:
        num_classes: Number of logits.
        in_channels: Channels of the images.
        image_size: (height, width) of the images, only to refuse those that are too small.

    Raises:
        InputError: If a side of the images is below 16.
    """

    def __init__(
        self,
        *,
        num_classes: int = 10,
        in_channels: int = 3,
        image_size: tuple[int, int] = (32, 32),
    ):
        super().__init__()
        if min(image_size) < SMALLEST:
            raise InputError(
                f"lenet needs images of at least {SMALLEST}×{SMALLEST}, not "
                f"{image_size[0]}×{image_size[1]}: enlarge them or choose a PreActResNet"
            )
        self.features = nn.Sequential(
            nn.Conv2d(in_channels, 6, 5),
            nn.ReLU(),
            nn.MaxPool2d(2),
            nn.Conv2d(6, 16, 5),
            nn.ReLU(),
            nn.MaxPool2d(2),
            nn.AdaptiveAvgPool2d(5),
        )
        self.classifier = nn.Sequential(
            nn.Flatten(),
            nn.Linear(16 * 5 * 5, 120),
            nn.ReLU(),
            nn.Linear(120, 84),
            nn.ReLU(),
            nn.Linear(84, num_classes),
        )

    def forward(
        self, x: Float[Tensor, "batch channels height width"]
    ) -> Float[Tensor, "batch classes"]:
        """Logits."""
        return self.classifier(self.features(x))
