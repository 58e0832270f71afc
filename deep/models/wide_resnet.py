"""Wide residual networks in the form used for the MixupE experiments.

Zagoruyko & Komodakis, "Wide residual networks", BMVC 2016, as the published code of Manifold Mixup
(Verma et al., ICML 2019) and MixupE (Zou, Verma et al., UAI 2023) arranges them. That differs from
Zagoruyko & Komodakis in three ways: all convolutions have biases, the second convolution of a block
carries the stride, and the shortcut convolution sees the raw input rather than the pre-activated
one. There is no dropout. One oddity of that code is left out: its last batch norm updates running
statistics with momentum 0.9, here PyTorch's 0.1 as in every other layer.
"""

import torch.nn.functional as F
from jaxtyping import Float
from torch import Tensor, nn


class WideBlock(nn.Module):
    """shortcut(x) + conv(relu(norm(conv(relu(norm(x)))))), the shortcut 1×1 where shapes change.

    Args:
        in_channels: Channels of x.
        out_channels: Channels of the output.
        stride: Stride of the second convolution and of the shortcut.
    """

    def __init__(self, in_channels: int, out_channels: int, stride: int):
        super().__init__()
        self.norm1 = nn.BatchNorm2d(in_channels)
        self.conv1 = nn.Conv2d(in_channels, out_channels, 3, padding=1)
        self.norm2 = nn.BatchNorm2d(out_channels)
        self.conv2 = nn.Conv2d(out_channels, out_channels, 3, stride, padding=1)
        self.shortcut: nn.Module = nn.Identity()
        if stride != 1 or in_channels != out_channels:
            self.shortcut = nn.Conv2d(in_channels, out_channels, 1, stride)

    def forward(
        self, x: Float[Tensor, "batch channels height width"]
    ) -> Float[Tensor, "batch out_channels out_height out_width"]:
        """The block's output; height and width are divided by the stride, rounded up."""
        branch = self.conv1(F.relu(self.norm1(x)))
        return self.conv2(F.relu(self.norm2(branch))) + self.shortcut(x)


class WideResNet(nn.Module):
    """WRN-depth-width, for images of any size; PyTorch's default initialisation.

    Args:
        depth: 6n + 4 for n blocks in each of the three stages.
        num_classes: Number of logits.
        in_channels: Channels of the images.
        width: Widening factor k; the stages have 16k, 32k and 64k channels.
    """

    def __init__(self, depth: int, *, num_classes: int = 10, in_channels: int = 3, width: int = 10):
        super().__init__()
        self.stem = nn.Conv2d(in_channels, 16, 3, padding=1)
        self.stages = nn.Sequential()
        channels = 16
        for index in range(3):
            out_channels = 16 * width * 2**index
            stage = nn.Sequential()
            for position in range((depth - 4) // 6):
                stride = 2 if index > 0 and position == 0 else 1
                stage.append(WideBlock(channels, out_channels, stride))
                channels = out_channels
            self.stages.append(stage)
        self.norm = nn.BatchNorm2d(channels)
        self.linear = nn.Linear(channels, num_classes)

    def forward(
        self, x: Float[Tensor, "batch channels height width"]
    ) -> Float[Tensor, "batch classes"]:
        """Logits."""
        features = F.relu(self.norm(self.stages(self.stem(x))))
        return self.linear(features.mean((2, 3)))
