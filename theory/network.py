"""A network as the theory sees it: a function from inputs to logits that can be differentiated.

The theorems need f_θ to be one fixed function of one example. A `torch.nn.Module` is that in
evaluation mode; these helpers put it there, give it back as it was, and keep PyTorch's known
derivative faults out of the results.
"""

import copy
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any, Literal, get_args

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.nn.modules.batchnorm import _BatchNorm
from torch.overrides import TorchFunctionMode

from theory.errors import InputError

BatchNormMode = Literal["eval", "batch"]
Function = Callable[[Tensor], Tensor]


def logits_function(model: Callable[[Tensor], Any]) -> Function:
    """The model as a function whose result is a matrix of logits (batch, classes).

    A vector of shape (batch,), one logit an example, becomes one column.

    Raises:
        InputError: On call, if the model returns anything but one row of numbers an example.
    """

    def f(x: Any) -> Tensor:
        try:
            logits = model(x)
        except (RuntimeError, TypeError, ValueError, AssertionError, IndexError) as error:
            if isinstance(error, InputError) or _is_about_derivatives(error):
                raise
            if "more than 1 value per channel" in str(error):
                raise InputError(
                    "batch norm cannot normalise a batch of one example: use at least two"
                ) from error
            raise InputError(
                f"the model cannot take a batch of shape {tuple(x.shape)} and type {x.dtype} "
                f"({_first_line(error)}): give it the inputs it was built for"
            ) from error
        if not isinstance(logits, Tensor):
            raise InputError(
                f"the model returns {type(logits).__name__}, not a tensor of logits: wrap it in a "
                "module that returns the logits alone"
            )
        if logits.ndim == 1 and len(logits) == len(x):
            logits = logits[:, None]
        if logits.ndim != 2 or len(logits) != len(x):
            raise InputError(
                f"the model returns shape {tuple(logits.shape)} for a batch of {len(x)}: it must "
                "return one row of logits an example"
            )
        return logits

    return f


def count_logits(model: nn.Module, x: Any) -> int:
    """How many logits the model gives, found by one pass over a small batch on its device.

    Raises:
        InputError: If the model cannot take the batch or gives no row of logits an example.
    """
    with torch.no_grad(), evaluating(model) as f:
        return f(x).shape[1]


def refuse_coupled(model: nn.Module) -> None:
    """Refuses batch norm that has the statistics of the batch alone, also in evaluation mode.

    Raises:
        InputError: If there is such a layer.
    """
    for name, module in model.named_modules():
        if isinstance(module, _BatchNorm) and module.running_mean is None:
            raise InputError(
                f"{type(module).__name__} {name!r} keeps no running statistics, so the examples "
                "of a batch are coupled: build it with track_running_stats=True, or measure with "
                "batch_norm='batch'"
            )


def copy_in(model: nn.Module, dtype: torch.dtype) -> nn.Module:
    """A copy of the model whose floating-point parameters and buffers have another type.

    Raises:
        InputError: If the model holds something that cannot be copied.
    """
    try:
        return copy.deepcopy(model).to(dtype)
    except (RuntimeError, TypeError) as error:
        raise InputError(
            f"the model cannot be copied to {str(dtype).removeprefix('torch.')} "
            f"({_first_line(error)}): keep tensors with a graph, locks and open files out of it"
        ) from error


@contextmanager
def evaluating(model: nn.Module, batch_norm: BatchNormMode = "eval") -> Iterator[Function]:
    """The model as a fixed function for the length of a `with` block, left as it was afterwards.

    Args:
        model: Any module that maps a batch of inputs to logits.
        batch_norm: "eval" normalises by the running statistics, so that examples do not interact.
            "batch" normalises by the statistics of each batch, as in training: examples are then
            coupled, and results depend on how the data is cut into batches. Running statistics
            are not updated in either mode, and dropout is off.

    Yields:
        f, mapping a batch to logits of shape (batch, classes).

    Raises:
        InputError: If `batch_norm` is neither.
    """
    if batch_norm not in get_args(BatchNormMode):
        raise InputError(f"unknown batch-norm mode {batch_norm!r}: use eval or batch")
    was_training = [module for module in model.modules() if module.training]
    statistics: list[tuple[_BatchNorm, Tensor | None, Tensor | None]] = []
    model.eval()
    try:
        if batch_norm == "batch":
            for module in model.modules():
                if isinstance(module, _BatchNorm):
                    statistics.append((module, module.running_mean, module.running_var))
                    # Without running statistics PyTorch's batch norm uses the batch's, also in
                    # evaluation mode, and has nothing that it could update.
                    module.running_mean = module.running_var = None
        with differentiable_kernels(model):
            yield logits_function(model)
    finally:
        for module, mean, var in statistics:
            module.running_mean, module.running_var = mean, var
        for module in was_training:
            module.training = True  # not .train(), which would reach modules that were frozen


@contextmanager
def differentiable_kernels(model: nn.Module) -> Iterator[None]:
    """Keeps passes off fused kernels and compiled graphs without forward or second derivatives.

    That is attention's and recurrent layers' kernels; convolutions keep theirs, which have both and
    are much faster.
    """
    recurrent = any(isinstance(module, nn.RNNBase) for module in model.modules())
    libraries: Any = (torch.backends.mkldnn, torch.backends.cudnn) if recurrent else ()
    enabled = [library.enabled for library in libraries]
    fastpath = torch.backends.mha.get_fastpath_enabled()
    try:
        torch.backends.mha.set_fastpath_enabled(False)
        for library in libraries:
            library.enabled = False
        with sdpa_kernel(SDPBackend.MATH), uncompiled():
            yield
    finally:
        torch.backends.mha.set_fastpath_enabled(fastpath)
        for library, was_enabled in zip(libraries, enabled, strict=True):
            library.enabled = was_enabled


@contextmanager
def uncompiled() -> Iterator[None]:
    """Runs modules as they stand although they were given to `torch.compile`."""
    if "torch._dynamo" not in sys.modules:  # nothing is compiled, and its import takes seconds
        yield
        return
    with torch.compiler.set_stance("force_eager"):
        yield


@contextmanager
def derivative_rules() -> Iterator[None]:
    """Turns PyTorch's error about an operation without a derivative into one clear line."""
    try:
        yield
    except (RuntimeError, NotImplementedError) as error:
        if isinstance(error, InputError):
            raise
        message = _first_line(error)
        if "does not require grad" in message or "not have been used in the graph" in message:
            raise InputError(
                "the logits do not depend on the input through differentiable operations: replace "
                "detach, rounding, indexing or no_grad inside the model"
            ) from error
        if _is_about_derivatives(error) or isinstance(error, NotImplementedError):
            raise InputError(
                f"an operation of the model has no derivative rule ({message}): replace it by "
                "differentiable ones"
            ) from error
        raise


def _is_about_derivatives(error: Exception) -> bool:
    words = ("derivative", "forward AD", "forward-mode", "jvp", "does not require grad",
             "used in the graph", "differentiab", "setup_context", "vmap")  # fmt: skip
    return any(word in str(error) for word in words)


def _first_line(error: Exception) -> str:
    return (str(error).strip() or type(error).__name__).splitlines()[0].rstrip(".: ")


# Parameters below carry the names and the order of the PyTorch functions that they replace.


def _layer_norm(
    input: Tensor,
    normalized_shape: Any,
    weight: Tensor | None = None,
    bias: Tensor | None = None,
    eps: float = 1e-5,
    cudnn_enable: bool = True,
) -> Tensor:
    axes = tuple(range(-len(normalized_shape), 0))
    centred = input - input.mean(axes, keepdim=True)
    y = centred * (centred.square().mean(axes, keepdim=True) + eps).rsqrt()
    y = y if weight is None else y * weight
    return y if bias is None else y + bias


def _instance_norm(
    input: Tensor,
    running_mean: Tensor | None = None,
    running_var: Tensor | None = None,
    weight: Tensor | None = None,
    bias: Tensor | None = None,
    use_input_stats: bool = True,
    momentum: float = 0.1,
    eps: float = 1e-5,
) -> Tensor:
    if not use_input_stats:
        return F.batch_norm(input, running_mean, running_var, weight, bias, eps=eps)
    y = _layer_norm(input, input.shape[2:], eps=eps)
    per_channel = (-1, *(1,) * (input.ndim - 2))
    y = y if weight is None else y * weight.reshape(per_channel)
    return y if bias is None else y + bias.reshape(per_channel)


def _batch_norm(
    input: Tensor,
    running_mean: Tensor | None,
    running_var: Tensor | None,
    weight: Tensor | None = None,
    bias: Tensor | None = None,
    training: bool = False,
    momentum: float = 0.1,
    eps: float = 1e-5,
) -> Tensor:
    if training:
        raise InputError(
            "derivatives above first order through batch norm with batch statistics are refused: "
            "PyTorch's nested jvp returns wrong values there without a warning "
            "(pytorch issue 186256); use batch_norm='eval' or order 1"
        )
    return F.batch_norm(input, running_mean, running_var, weight, bias, eps=eps)


def _torch_instance_norm(
    input: Tensor,
    weight: Tensor | None,
    bias: Tensor | None,
    running_mean: Tensor | None,
    running_var: Tensor | None,
    use_input_stats: bool,
    momentum: float,
    eps: float,
    cudnn_enabled: bool,
) -> Tensor:
    return _instance_norm(
        input, running_mean, running_var, weight, bias, use_input_stats, momentum, eps
    )


def _torch_batch_norm(
    input: Tensor,
    weight: Tensor | None,
    bias: Tensor | None,
    running_mean: Tensor | None,
    running_var: Tensor | None,
    training: bool,
    momentum: float,
    eps: float,
    cudnn_enabled: bool,
) -> Tensor:
    return _batch_norm(input, running_mean, running_var, weight, bias, training, momentum, eps)


# What takes a number out of a tensor. Comparisons only choose a branch: right on its piece.
_READS = (Tensor.item, Tensor.tolist, Tensor.__float__, Tensor.__int__, Tensor.numpy)


class SafeNesting(TorchFunctionMode):
    """Makes nested `torch.func.jvp` right, or refuses.

    From second order on, nested jvp silently returns wrong numbers through `layer_norm`,
    `instance_norm` and train-mode `batch_norm` (pytorch issues 186256 and 196699). The first two
    are computed here from elementary operations, whose rules are right; the last is refused.
    """

    _replacements: dict[Any, Callable[..., Tensor]] = {  # noqa: RUF012
        F.layer_norm: _layer_norm,
        torch.layer_norm: _layer_norm,
        F.instance_norm: _instance_norm,
        torch.instance_norm: _torch_instance_norm,
        F.batch_norm: _batch_norm,
        torch.batch_norm: _torch_batch_norm,
    }

    def __torch_function__(
        self, func: Any, types: Any, args: tuple = (), kwargs: dict | None = None
    ) -> Any:
        """Called by PyTorch in place of every torch function."""
        if func in _READS and torch._C._functorch.is_functorch_wrapped_tensor(args[0]):
            raise InputError(
                "the model reads a number out of a tensor, and PyTorch's nested jvp silently loses "
                "its dependence on the input: keep it a tensor"
            )
        return self._replacements.get(func, func)(*args, **(kwargs or {}))
