"""What the pieces of a segment cost, over forward passes of as many inputs as there are corners.

Float64, evaluation mode, random inputs, networks as initialised; batches of the same size.
"""

from collections.abc import Callable
from functools import partial

import torch
from torch import Tensor

from benchmarks.timing import emit, interleaved
from deep.models import build_model
from theory.kinks import exact_regularizer
from theory.network import Function, evaluating
from theory.regularizer import regularizer
from theory.segments import segment_pieces

ROUNDS = 5


def main() -> None:
    """Prints the figures."""
    torch.manual_seed(0)
    one = {"in_channels": 1}
    for name, settings, segments, budget, rows in (
        ("mlp", {"image_size": 8, "width": 256, **one}, 50, None, 1024),
        ("lenet", {"image_size": 16, **one}, 10, None, 1024),
        ("preact18", {"image_size": 8, "width": 8, **one}, 2, None, 1024),
        ("preact18", {"image_size": 32, "width": 16}, 1, 500, 256),
    ):
        model = build_model(name, **settings).double()
        side = settings["image_size"]
        x, partner = torch.randn(2, segments, settings.get("in_channels", 3), side, side).double()
        with evaluating(model) as f:
            pieces = partial(segment_pieces, f, x, partner, max_pieces=budget, rows=rows)
            corners = len(pieces().breakpoints)
            seconds = interleaved(
                {"pieces": pieces, "forward": _forward(f, x, corners, rows)}, ROUNDS
            )
        note = f"{name} {side}×{side}, {corners} corners, {rows} rows a batch"
        note += f", budget {budget}" if budget else ""
        emit("pieces of a segment", seconds, "pieces", "forward", 2.0, note)
    _emit_regularizer()


def _forward(f: Function, x: Tensor, count: int, rows: int) -> Callable[[], None]:
    """Runs so many inputs through the network."""
    batches = x[torch.arange(count) % len(x)].split(rows)

    def run() -> None:
        with torch.no_grad():
            for batch in batches:
                f(batch)

    return run


def _emit_regularizer() -> None:
    """R on all pairs to 1e-13 over Gauss–Jacobi across the kinks, which errs by about 1e-5."""
    model = build_model("mlp", in_channels=1, image_size=8, width=256).double()
    x, targets = torch.randn(16, 1, 8, 8).double(), torch.eye(10).double()[torch.arange(16) % 10]
    with evaluating(model) as f:
        seconds = interleaved(
            {
                "exact": lambda: exact_regularizer(f, x, targets, alpha=1.0),
                "quadrature": lambda: regularizer(f, x, targets, alpha=1.0, nodes=256),
            },
            ROUNDS,
        )
    emit("R on all pairs, piece by piece", seconds, "exact", "quadrature", None,
         "MLP 64-256-256-10, 16 examples; 256 Gauss–Jacobi nodes across the kinks")  # fmt: skip


if __name__ == "__main__":
    main()
