"""Pre-activation residual networks in the form used for the MixupE experiments.

He et al., "Identity mappings in deep residual networks", ECCV 2016, adapted to small images: a 3×3
convolution of stride 1 and no pooling at the start, four stages of halved resolution, global
average pooling. Following the published code of Manifold Mixup (Verma et al., ICML 2019) and MixupE
(Zou, Verma et al., UAI 2023), there is NO batch norm and no ReLU between the last block and the
pooling, unlike in He et al.
"""

from collections.abc import Sequence

import torch.nn.functional as F
from jaxtyping import Float
from torch import Tensor, nn

# Depth -> blocks in each stage, and whether a block is a bottleneck (1×1, 3×3, 1×1).
STAGES = {
    18: ((2, 2, 2, 2), False),
    34: ((3, 4, 6, 3), False),
    50: ((3, 4, 6, 3), True),
    101: ((3, 4, 23, 3), True),
}


class PreActBlock(nn.Module):
    """x + branch(x), the branch being batch norm, ReLU and a bias-free convolution, repeated.

    Where the shape changes, the shortcut is a bias-free 1×1 convolution of the PRE-ACTIVATED input.

    Args:
        in_channels: Channels of x.
        layout: (out_channels, kernel_size, stride) of each convolution in turn.
    """

    def __init__(self, in_channels: int, layout: Sequence[tuple[int, int, int]]):
        super().__init__()
        self.norms, self.convs = nn.ModuleList(), nn.ModuleList()
        channels, total_stride = in_channels, 1
        for out_channels, kernel, stride in layout:
            self.norms.append(nn.BatchNorm2d(channels))
            self.convs.append(
                nn.Conv2d(channels, out_channels, kernel, stride, padding=kernel // 2, bias=False)
            )
            channels, total_stride = out_channels, total_stride * stride
        self.shortcut: nn.Conv2d | None = None
        if total_stride != 1 or in_channels != channels:
            self.shortcut = nn.Conv2d(in_channels, channels, 1, total_stride, bias=False)

    def forward(
        self, x: Float[Tensor, "batch channels height width"]
    ) -> Float[Tensor, "batch out_channels out_height out_width"]:
        """The block's output; height and width are divided by the stride, rounded up."""
        activated = F.relu(self.norms[0](x))
        branch = self.convs[0](activated)
        for norm, conv in zip(self.norms[1:], self.convs[1:], strict=True):
            branch = conv(F.relu(norm(branch)))
        return branch + (x if self.shortcut is None else self.shortcut(activated))


class PreActResNet(nn.Module):
    """PreActResNet-18, 34, 50 or 101, for images of any size; PyTorch's default initialisation.

    In eval mode, with the batch norms' shifts and the last bias at zero and fresh running
    statistics, it is positively homogeneous: f(c·x) = c·f(x) for c > 0.

    Args:
        depth: 18, 34, 50 or 101.
        num_classes: Number of logits.
        in_channels: Channels of the images.
        width: Channels of the first stage, doubled at every further one; 64 as published.
            Bottleneck blocks (50, 101) put out four times as many.
    """

    def __init__(self, depth: int, *, num_classes: int = 10, in_channels: int = 3, width: int = 64):
        super().__init__()
        blocks, bottleneck = STAGES[depth]
        self.stem = nn.Conv2d(in_channels, width, 3, padding=1, bias=False)
        self.stages = nn.Sequential()
        channels = width
        for index, count in enumerate(blocks):
            inner = width * 2**index
            stage = nn.Sequential()
            for position in range(count):
                stride = 2 if index > 0 and position == 0 else 1
                if bottleneck:
                    layout = [(inner, 1, 1), (inner, 3, stride), (4 * inner, 1, 1)]
                else:
                    layout = [(inner, 3, stride), (inner, 3, 1)]
                stage.append(PreActBlock(channels, layout))
                channels = layout[-1][0]
            self.stages.append(stage)
        self.linear = nn.Linear(channels, num_classes)

    def forward(
        self, x: Float[Tensor, "batch channels height width"]
    ) -> Float[Tensor, "batch classes"]:
        """Logits."""
        return self.linear(self.stages(self.stem(x)).mean((2, 3)))
