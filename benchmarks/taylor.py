"""What Taylor terms cost over one plain forward pass, beside other Taylor-mode libraries.

Float32, all in one run. The other libraries are optional: a line says which is not installed. An
environment with all of them needs Python 3.12:

    python3.12 -m venv .venv-peers
    .venv-peers/bin/pip install -e . jax jet-for-pytorch
    .venv-peers/bin/python -m benchmarks taylor
"""

import math
import sys
from collections.abc import Callable
from functools import partial
from importlib import import_module
from importlib.util import find_spec
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.overrides import TorchFunctionMode

from benchmarks.timing import emit, interleaved
from deep.models import build_model
from theory.network import evaluating
from theory.series import compiled
from theory.taylor import taylor_terms

ORDER = 8
ACTIVATIONS = {"tanh": nn.Tanh, "softplus": nn.Softplus, "gelu": nn.GELU}
Contestants = dict[str, Callable[[], object]]


def main() -> None:
    """Prints the figures."""
    torch.manual_seed(0)
    for name, activation in ACTIVATIONS.items():
        _emit_perceptron(name, activation)
    _emit_residual()


def _emit_perceptron(name: str, activation: type[nn.Module]) -> None:
    """784-1024-1024-10, batch 256."""
    layers = (nn.Linear(784, 1024), nn.Linear(1024, 1024), nn.Linear(1024, 10))
    model = nn.Sequential(layers[0], activation(), layers[1], activation(), layers[2])
    x = torch.randn(256, 784)
    v = x.roll(1, 0) - x
    with evaluating(model) as f:

        def fused() -> Tensor:
            with compiled():
                return taylor_terms(f, x, v, ORDER)

        contestants: Contestants = {
            "forward": partial(_forward, f, x),
            "eager": partial(taylor_terms, f, x, v, ORDER),
            "compiled": fused,
        }
        goals = {"eager": 8.0 if name == "tanh" else 11.0, "compiled": 6.5}
        if name == "tanh":
            contestants["order 16"] = partial(taylor_terms, f, x, v, 16)
            contestants["nested jvp, order 3"] = partial(taylor_terms, f, x, v, 3, "nested")
            contestants |= _peers(model, x, v)
        seconds = interleaved(contestants, rounds=9)
    note = f"784-1024-1024-10, batch 256, {torch.get_num_threads()} threads"
    for contestant in list(contestants)[1:]:
        order = "" if "order" in contestant else f", order {ORDER}"
        label = f"{name} perceptron{order}: {contestant}"
        emit(label, seconds, contestant, "forward", goals.get(contestant), note)


def _peers(model: nn.Sequential, x: Tensor, v: Tensor) -> Contestants:
    """The same series of the tanh perceptron by other libraries; checked against ours."""
    found: Contestants = {}
    for library, make in {"jax": _jax_peers, "jet": _jet_peer}.items():
        if find_spec(library) is None:
            print(f"{library} is not installed: left out", file=sys.stderr)
        else:
            found |= make(model, x, v)
    return found


def _jax_peers(model: nn.Sequential, x: Tensor, v: Tensor) -> Contestants:
    jax, jnp = import_module("jax"), import_module("jax.numpy")
    jet = import_module("jax.experimental.jet").jet

    layers = [layer for layer in model if isinstance(layer, nn.Linear)]
    weights = [(jnp.array(p.weight.detach().T), jnp.array(p.bias.detach())) for p in layers]
    start, direction = jnp.array(x), jnp.array(v)

    def net(weights: Any, z: Any) -> Any:
        for w, b in weights[:-1]:
            z = jnp.tanh(z @ w + b)
        return z @ weights[-1][0] + weights[-1][1]

    # Everything is an argument, or the compiler would work the result out beforehand.
    def by_jet(weights: Any, start: Any, direction: Any) -> Any:
        series = [direction, *[jnp.zeros_like(direction)] * (ORDER - 1)]
        return jet(partial(net, weights), (start,), (series,))

    def by_nesting(weights: Any, start: Any, direction: Any) -> Any:
        def curve(k: int) -> Callable[[Any], Any]:
            if k == 0:
                return lambda a: (net(weights, start + a * direction),)
            lower = curve(k - 1)

            def evaluate(a: Any) -> Any:
                values, tangents = jax.jvp(lower, (a,), (jnp.ones_like(a),))
                return (*values, tangents[-1])

            return evaluate

        return curve(ORDER)(jnp.zeros(()))

    jet_run, nested_run = jax.jit(by_jet), jax.jit(by_nesting)
    arguments = (weights, start, direction)
    with evaluating(model) as f:
        ours = taylor_terms(f, x, v, ORDER)[ORDER]
    for theirs in (jet_run(*arguments)[1][-1], nested_run(*arguments)[ORDER]):
        term = torch.tensor(theirs.tolist()) / math.factorial(ORDER)
        torch.testing.assert_close(term, ours, rtol=1e-2, atol=1e-4 * float(ours.abs().max()))
    return {
        "jax.experimental.jet, jitted": lambda: jax.block_until_ready(jet_run(*arguments)),
        "jax nested jvp, jitted": lambda: jax.block_until_ready(nested_run(*arguments)),
    }


def _jet_peer(model: nn.Sequential, x: Tensor, v: Tensor) -> Contestants:
    series = import_module("jet").jet(model, (x,))
    zero = torch.zeros_like(v)

    def run() -> Any:
        with torch.no_grad():
            return series((x, v, *[zero] * (ORDER - 1)))

    return {"jet-for-pytorch": run}


class _SoftplusForRelu(TorchFunctionMode):
    """Runs a model with softplus in the place of every ReLU."""

    def __torch_function__(
        self, func: Any, types: Any, args: tuple = (), kwargs: dict | None = None
    ) -> Any:
        if func in (F.relu, torch.relu):
            return F.softplus(args[0])
        return func(*args, **(kwargs or {}))


def _emit_residual() -> None:
    """PreActResNet-18, batch 16, with its own ReLU and with softplus."""
    model = build_model("preact18")
    x = torch.randn(16, 3, 32, 32)
    v = x.roll(1, 0) - x
    note = f"PreActResNet-18, batch 16, {torch.get_num_threads()} threads"
    with evaluating(model) as f:
        contestants: Contestants = {"forward": partial(_forward, f, x)}
        for order in (1, 8, 16):
            contestants[f"order {order}"] = partial(taylor_terms, f, x, v, order)
        seconds = interleaved(contestants, rounds=9)
        for contestant in list(contestants)[1:]:
            emit(f"ReLU network: {contestant}", seconds, contestant, "forward", 2.3, note)
        with _SoftplusForRelu():
            contestants = {
                "forward": partial(_forward, f, x),
                "order 4": partial(taylor_terms, f, x, v, 4),
            }
            seconds = interleaved(contestants, rounds=9)
    emit("softplus network: order 4", seconds, "order 4", "forward", 6.5, note)


def _forward(f: Callable[[Tensor], Tensor], x: Tensor) -> Tensor:
    with torch.no_grad():
        return f(x)


if __name__ == "__main__":
    main()
