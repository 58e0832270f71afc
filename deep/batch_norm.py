"""Batch norm by the statistics of the whole batch, where several processes share it."""

from typing import TypeVar

import torch
from jaxtyping import Float
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm

from deep.processes import gather, world_size

Model = TypeVar("Model", bound=nn.Module)


class SyncBatchNorm(_BatchNorm):
    """Batch norm whose mean and variance in training are those of all processes' rows.

    Made of operations that can be differentiated any number of times, as exact q needs, and on any
    device. `torch.nn.SyncBatchNorm` has no second derivative and refuses CPU tensors. Arguments and
    state are those of `torch.nn.BatchNorm2d`, for inputs of any shape (batch, channels, …). In one
    process alone and in evaluation mode it is PyTorch's batch norm.
    """

    def forward(self, input: Float[Tensor, "share channels *dims"]) -> Tensor:
        """The normalised input; every process must call it, with equally many rows."""
        if not self.training or world_size() == 1:
            return super().forward(input)
        low = input.dtype in (torch.bfloat16, torch.float16)
        x = input.float() if low else input
        axes = (0, *range(2, x.ndim))
        # The means and variances of shares of equal size make up those of the whole without the
        # cancellation of a sum of squares.
        variances, means = gather(torch.stack(torch.var_mean(x, axes, correction=0))[None]).unbind(
            1
        )
        mean = means.mean(0)
        variance = variances.mean(0) + (means - mean).square().mean(0)
        self._update(mean.detach(), variance.detach(), x[:, 0].numel() * world_size())
        scale = (variance + self.eps).rsqrt()
        per_channel = (-1, *(1,) * (x.ndim - 2))
        if self.affine:
            scale = scale * self.weight
        result = (x - mean.reshape(per_channel)) * scale.reshape(per_channel)
        if self.affine:
            result = result + self.bias.reshape(per_channel)
        return result.to(input.dtype)

    def _update(self, mean: Tensor, variance: Tensor, count: int) -> None:
        """Moves the running statistics, whose variance is the unbiased one."""
        if not self.track_running_stats or self.running_mean is None or self.running_var is None:
            return
        if self.num_batches_tracked is not None:
            self.num_batches_tracked.add_(1)
        # Without a momentum they are the means over all batches.
        count_of = self.num_batches_tracked
        factor = 1 / float(count_of) if self.momentum is None else self.momentum  # type: ignore[arg-type]
        self.running_mean.lerp_(mean, factor)
        self.running_var.lerp_(variance * count / (count - 1), factor)

    def _check_input_dim(self, input: Tensor) -> None:
        """Called by PyTorch: inputs may have any number of axes."""


def synchronize_batch_norm(model: Model) -> Model:
    """Makes PyTorch's batch norm layers of the model normalise by all processes' rows.

    The layers stay the same objects with the same parameters, statistics and hooks. Layers of a
    user's own class, derived from PyTorch's, are left as they are.
    """
    for module in model.modules():
        if type(module) in (nn.BatchNorm1d, nn.BatchNorm2d, nn.BatchNorm3d, nn.SyncBatchNorm):
            module.__class__ = SyncBatchNorm
    return model
