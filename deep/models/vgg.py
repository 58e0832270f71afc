"""VGG networks with batch norm for images of any size."""

from jaxtyping import Float
from torch import Tensor, nn

from theory.errors import InputError

# Depth -> convolutions in each of the five stages (Simonyan & Zisserman's configurations A and B).
STAGES = {11: (1, 1, 2, 2, 2), 13: (2, 2, 2, 2, 2)}
SMALLEST = 32  # five poolings halve the sides five times


class VGG(nn.Module):
    """VGG-11 or VGG-13 with batch norm; PyTorch's default initialisation.

    Simonyan & Zisserman, "Very deep convolutional networks", ICLR 2015, configuration A or B: five
    stages of 3×3 convolutions (with biases), each followed by batch norm (Ioffe & Szegedy, 2015)
    and ReLU, and 2×2 max-pooling after each stage. Global average pooling and one dense layer take
    the place of the three dense layers, so that any image size works, a spectrogram of 160×101 too.

    Args:
        depth: 11 or 13.
        num_classes: Number of logits.
        in_channels: Channels of the images.
        image_size: (height, width) of the images, only to refuse those that are too small.
        width: Channels of the first stage, 64 as published; the others have 2, 4, 8, 8 times that.

    Raises:
        InputError: If a side of the images is below 32.
    """

    def __init__(
        self,
        depth: int,
        *,
        num_classes: int = 10,
        in_channels: int = 3,
        image_size: tuple[int, int] = (32, 32),
        width: int = 64,
    ):
        super().__init__()
        if min(image_size) < SMALLEST:
            raise InputError(
                f"vgg{depth} needs images of at least {SMALLEST}×{SMALLEST}, not "
                f"{image_size[0]}×{image_size[1]}: enlarge them or choose a PreActResNet"
            )
        self.stages = nn.Sequential()
        channels = in_channels
        for count, multiple in zip(STAGES[depth], (1, 2, 4, 8, 8), strict=True):
            stage = nn.Sequential()
            for _ in range(count):
                stage.append(nn.Conv2d(channels, width * multiple, 3, padding=1))
                stage.append(nn.BatchNorm2d(width * multiple))
                stage.append(nn.ReLU())
                channels = width * multiple
            stage.append(nn.MaxPool2d(2))
            self.stages.append(stage)
        self.linear = nn.Linear(channels, num_classes)

    def forward(
        self, x: Float[Tensor, "batch channels height width"]
    ) -> Float[Tensor, "batch classes"]:
        """Logits."""
        return self.linear(self.stages(x).mean((2, 3)))
