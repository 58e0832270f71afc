"""Which layer breaks homogeneity: the gap (g − y)ᵀ(f − J x) as an exact sum over layers.

For a network that is a graph of modules z_l = F_l(z_in), put r_l = F_l(z_in) − J_{F_l} z_in, the
part of a module's output that its own linearisation through the origin misses: the bias of an
affine layer, β − γμ/σ for batch norm in evaluation mode, σ(z) − σ'(z) z for an activation, and
zero for bias-free convolutions, ReLU, pooling and addition. By the chain rule

    (g − y)ᵀ (f − J x)  =  Σ_l ⟨ ∂[(g − y)ᵀ f]/∂z_l , r_l ⟩       with g − y held constant,

so one forward and one backward pass give every layer's share. What happens outside the leaf modules
between input and logits (functional calls, parameters and embedded positions added by hand) is seen
only by what is missing from the sum: the unattributed remainder.
"""

import math
from types import TracebackType
from typing import Any

import numpy as np
import pandas as pd
import torch
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm
from torch.nn.modules.conv import _ConvNd
from torch.nn.modules.pooling import _AdaptiveAvgPoolNd, _AdaptiveMaxPoolNd, _AvgPoolNd, _MaxPoolNd

from theory.network import derivative_rules

_HOMOGENEOUS = (
    nn.ReLU, nn.LeakyReLU, nn.PReLU, nn.Identity, nn.Flatten, nn.Unflatten, nn.Upsample,
    _AvgPoolNd, _MaxPoolNd, _AdaptiveAvgPoolNd, _AdaptiveMaxPoolNd, nn.modules.dropout._DropoutNd,
)  # fmt: skip
# Modules with children that they use without calling them.
_UNITS = (nn.MultiheadAttention,)
_AFFINE = (nn.Linear, _ConvNd, _BatchNorm)


class LayerShares:
    """Records every layer's share of the homogeneity gap while one backward pass runs.

    Use it around `theory.first_order.first_order` (or `loss_gradient`):

        with evaluating(model) as f, LayerShares(model) as shares:
            terms = first_order(f, x, targets, mean)
        shares.by_layer["layer1.0.bn1"]  # shape (batch,), sums over layers to the gap

    Attributes:
        by_layer: Share of each leaf module that the pass went through, by its qualified name; a
            module called several times has its sum. Shape (batch,), or () where the module's
            output does not lead with the batch axis and only the total is known.
        kinds: Class name of each of these modules.
        last: The affine layer whose output is the logits, so that its share needs no backward
            pass; None where the network ends otherwise.
    """

    def __init__(self, model: nn.Module) -> None:
        self.by_layer: dict[str, Tensor] = {}
        self.kinds: dict[str, str] = {}
        self.last: str | None = None
        self._latest: tuple[str, nn.Module, Any] | None = None
        self._model = model
        self._handles: list[Any] = []
        self._inplace: list[Any] = []
        self._x = torch.empty(0)
        self._in_doubt: set[str] = set()

    def __enter__(self) -> "LayerShares":
        if self._model.training:
            raise ValueError("attribution is for evaluation mode: use theory.network.evaluating")
        for name, module in self._model.named_modules():
            if "parametrizations" in name.split("."):  # makes a weight, a constant in x
                continue
            if getattr(module, "inplace", False):  # would overwrite the input that r is made of
                module.inplace = False
                self._inplace.append(module)
            known = isinstance(module, (*_HOMOGENEOUS, *_AFFINE)) and _is_stock(module)
            if known or isinstance(module, _UNITS) or next(module.children(), None) is None:
                hook = self._hook(name or "(model)")
                self._handles.append(module.register_forward_hook(hook, with_kwargs=True))
        self._handles.append(self._model.register_forward_pre_hook(self._note_input, prepend=True))
        self._handles.append(self._model.register_forward_hook(self._note_last))
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        value: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        for handle in self._handles:
            handle.remove()
        for module in self._inplace:
            module.inplace = True
        self._handles.clear()
        self._inplace.clear()
        if kind is None and self._in_doubt:
            self._settle_doubt()

    def _settle_doubt(self) -> None:
        """Leaves only the total where the first axis has the batch's length by chance.

        It does in sequence-first code with as many positions as examples. A batch of another size
        tells: the first axis is the examples' if its length follows.
        """
        n = 2 if len(self._x) != 2 else 3  # two at least, for batch norm with batch statistics
        leads = dict.fromkeys(self._in_doubt, True)

        def noting(name: str) -> Any:
            def forward_hook(module: nn.Module, inputs: tuple, output: Any) -> None:
                leads[name] &= len(_main_output(output)) == n

            return forward_hook

        modules = {name or "(model)": module for name, module in self._model.named_modules()}
        handles = [modules[name].register_forward_hook(noting(name)) for name in leads]
        try:
            with torch.no_grad():
                self._model(torch.cat([self._x, self._x])[:n])
        finally:
            for handle in handles:
                handle.remove()
        for name, examples in leads.items():
            if not examples:
                self.by_layer[name] = self.by_layer[name].sum()

    def _note_input(self, module: nn.Module, inputs: tuple) -> None:
        self._x = inputs[0].detach()

    def _note_last(self, model: nn.Module, inputs: tuple, logits: Any) -> None:
        if self._latest is None:
            return
        name, module, output = self._latest
        affine = isinstance(module, _AFFINE) and _is_stock(module)
        # A view of it, such as a column squeezed to a vector, is the same numbers.
        same = isinstance(logits, Tensor) and logits.data_ptr() == output.data_ptr()
        self.last = name if affine and same and logits.numel() == output.numel() else None
        self._latest = None

    def _hook(self, name: str) -> Any:
        def forward_hook(module: nn.Module, inputs: tuple, keywords: dict, output: Any) -> None:
            output = _main_output(output)
            if not isinstance(output, Tensor) or not output.requires_grad:
                return
            self.kinds[name] = type(module).__name__
            self._latest = name, module, output
            offset = _offset(module, inputs, keywords, output)
            if offset is None:
                return

            def backward_hook(gradient: Tensor) -> None:
                product = (gradient * offset).detach()
                batch = len(self._x)
                resolved = product.ndim > 0 and len(product) == batch
                if resolved and batch > 1 and product.numel() % batch**2 == 0:
                    self._in_doubt.add(name)
                share = product.flatten(1).sum(1) if resolved else product.sum()
                known = self.by_layer.get(name)
                if known is not None and known.shape != share.shape:
                    known, share = known.sum(), share.sum()
                self.by_layer[name] = share if known is None else known + share

            output.register_hook(backward_hook)

        return forward_hook


def _is_stock(module: nn.Module) -> bool:
    """Whether the module's forward is PyTorch's own, so that the closed form for it is right."""
    return type(module).forward.__module__.startswith("torch.nn.modules")


def _main_output(output: Any) -> Any:
    """The tensor that a module returns, or the first of several (attention, recurrent layers)."""
    return output[0] if isinstance(output, tuple) and output else output


def _offset(module: nn.Module, inputs: tuple, keywords: dict, output: Tensor) -> Tensor | None:
    """r = F(z) − J_F z in a shape that broadcasts against the output; None where it is zero."""
    if _is_stock(module):
        if isinstance(module, _HOMOGENEOUS):
            return None
        if isinstance(module, nn.Linear):
            return None if module.bias is None else module.bias.detach()
        if isinstance(module, _ConvNd) and module.padding_mode in ("zeros", "circular"):
            return None if module.bias is None else _per_channel(module.bias.detach(), output)
        if isinstance(module, _BatchNorm) and module.running_mean is not None:
            return _per_channel(_batch_norm_shift(module), output)
    return _measured_offset(module, inputs, keywords)


def _per_channel(values: Tensor, output: Tensor) -> Tensor:
    return values.reshape(-1, *(1,) * (output.ndim - 2)) if output.ndim > 2 else values


def _batch_norm_shift(module: _BatchNorm) -> Tensor:
    """β − γ μ/√(var + ε), the constant that batch norm adds in evaluation mode."""
    assert module.running_mean is not None
    assert module.running_var is not None
    shift = -module.running_mean * (module.running_var + module.eps).rsqrt()
    if module.affine:
        shift = shift * module.weight.detach() + module.bias.detach()
    return shift


def _measured_offset(module: nn.Module, inputs: tuple, keywords: dict) -> Tensor | None:
    """r by a jvp of the module along its own input, for any module."""
    places = [k for k, z in enumerate(inputs) if isinstance(z, Tensor) and z.is_floating_point()]
    if not places:
        return None  # constant in x, an embedding of positions say: no gradient comes past it
    values = tuple(inputs[k].detach() for k in places)

    def forward(*replaced: Tensor) -> Tensor:
        arguments = list(inputs)
        for k, value in zip(places, replaced, strict=True):
            arguments[k] = value
        return _main_output(module.forward(*arguments, **keywords))

    with torch.no_grad(), derivative_rules():
        z, tangent = torch.func.jvp(forward, values, values)[:2]
    return (z - tangent).detach()


def attribution_table(
    shares: dict[str, list[Tensor]], kinds: dict[str, str], gap: np.ndarray
) -> pd.DataFrame:
    """One row a layer, largest share first, and what no layer accounts for in a last row.

    Args:
        shares: `LayerShares.by_layer` of every batch, in the data's order.
        kinds: `LayerShares.kinds`.
        gap: The examples' homogeneity gaps.

    Returns:
        Columns `layer`, `kind`, `mean` (over examples; sums to the gap's mean) and `mean_abs` (of
        the examples' shares, NaN where only the total is known).
    """
    rows = []
    rest_of_examples: np.ndarray | None = gap.copy()
    rest = gap.sum()
    for layer, pieces in shares.items():
        total = sum(float(piece.double().sum()) for piece in pieces)
        rest -= total
        mean_abs = math.nan
        resolved = all(piece.ndim for piece in pieces)
        if resolved:
            by_example = torch.cat(pieces).double().cpu().numpy()
            resolved = len(by_example) == len(gap)
        if resolved:
            mean_abs = float(np.abs(by_example).mean())
            if rest_of_examples is not None:
                rest_of_examples -= by_example
        else:
            rest_of_examples = None
        rows.append((layer, kinds[layer], total / len(gap), mean_abs))
    table = pd.DataFrame(rows, columns=["layer", "kind", "mean", "mean_abs"])
    order = table["mean_abs"].fillna(table["mean"].abs()).sort_values(ascending=False).index
    left = math.nan if rest_of_examples is None else float(np.abs(rest_of_examples).mean())
    table = table.loc[order].reset_index(drop=True)
    table.loc[len(table)] = ["(unattributed)", "", rest / len(gap), left]
    return table
