"""Several processes that train one network together, seen from inside one of them.

Without `torch.distributed` there is one process, and everything here is the identity.
"""

import os
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any, TypeVar

import torch
import torch.distributed as dist
from jaxtyping import Float
from torch import Tensor
from torch.autograd.function import once_differentiable

from theory.errors import InputError

Result = TypeVar("Result")


def world_size() -> int:
    """Number of processes."""
    return dist.get_world_size() if dist.is_available() and dist.is_initialized() else 1


def rank() -> int:
    """This process's number, from 0."""
    return dist.get_rank() if world_size() > 1 else 0


def gather(x: Float[Tensor, "share *dims"]) -> Float[Tensor, "batch *dims"]:
    """The rows of all processes, in order of their ranks; every process holds equally many.

    Differentiable: each process's rows get the sum of the gradients that arise on all processes.
    """
    if world_size() == 1:
        return x
    return _Gather.apply(x)


class _Gather(torch.autograd.Function):
    """`gather`, with one derivative; that in `torch.distributed.nn` is deprecated."""

    @staticmethod
    def forward(ctx: Any, x: Tensor) -> Tensor:
        x = x.contiguous()
        parts = [torch.empty_like(x) for _ in range(world_size())]
        dist.all_gather(parts, x)
        return torch.cat(parts)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad: Tensor) -> Tensor:
        total = grad.clone(memory_format=torch.contiguous_format)
        dist.all_reduce(total)
        return total.tensor_split(world_size())[rank()]


def mean_over_processes(value: Float[Tensor, "*dims"]) -> Float[Tensor, "*dims"]:
    """The mean of a tensor over processes, a constant in differentiation."""
    value = value.detach()
    if world_size() == 1:
        return value
    total = value.clone()
    dist.all_reduce(total)
    return total / world_size()


def wait_for_first(work: Callable[[], Result]) -> Result:
    """What a piece of work gives that the first process alone does, on all processes.

    Raises:
        InputError: On all of them, if the first one's work raises it.
    """
    outcome: list[Any] = [None, None]
    if rank() == 0:
        try:
            outcome[0] = work()
        except InputError as error:
            outcome[1] = str(error)
    if world_size() > 1:
        dist.broadcast_object_list(outcome)
    if outcome[1] is not None:
        raise InputError(outcome[1])
    return outcome[0]


def choose_device(name: str) -> torch.device:
    """The device of that name; "auto" takes a GPU if there is one, each process its own.

    Raises:
        InputError: If the device cannot be used.
    """
    if name == "auto":
        if not torch.cuda.is_available():
            return torch.device("cpu")
        return torch.device("cuda", int(os.environ.get("LOCAL_RANK", "0")))
    try:
        device = torch.device(name)
        torch.zeros(1, dtype=torch.float64, device=device)
    except (RuntimeError, AssertionError, TypeError) as error:
        reason = str(error).splitlines()[0]
        raise InputError(f"--device {name} cannot be used ({reason}): try cpu") from error
    return device


@contextmanager
def processes(device: torch.device) -> Iterator[None]:
    """Joins the processes that `torchrun` started, by NCCL on GPUs and gloo on CPUs.

    Does nothing where a process stands alone.
    """
    if int(os.environ.get("WORLD_SIZE", "1")) == 1 or world_size() > 1:
        yield
        return
    if device.type == "cuda":
        torch.cuda.set_device(device)
    dist.init_process_group("nccl" if device.type == "cuda" else "gloo")
    try:
        yield
    finally:
        dist.destroy_process_group()
