"""How much further the same forward passes go when R is sampled with care, and the second order.

Variances over plain Monte Carlo's at equal forward passes, as each estimate states its own, on
networks trained on digits by Mixup; the second-order term of all partners over one forward pass.
"""

import json

import torch
from torch import Tensor, nn

from benchmarks.timing import emit, interleaved
from deep.data.images import load_images
from deep.loop import Optimization, Training
from deep.mixup import Mixup
from deep.models import build_model
from theory.expectation import Control, Sampling, sampled_regularizer
from theory.losses import as_targets
from theory.network import Function, evaluating
from theory.second_order import gauss_newton_term

KINDS: tuple[tuple[Control, int], ...] = (
    ("none", 1), ("none", 4), ("first-order", 1), ("first-order", 4), ("fitted", 1), ("fitted", 4),
    ("fitted", 8),
)  # fmt: skip


def main() -> None:
    """Prints the figures."""
    data = load_images("digits")
    targets = as_targets(data.y_train, 10)
    for name, width in (("mlp", 128), ("preact18", 8)):
        torch.manual_seed(0)
        model = build_model(name, width=width)
        _train(model, data.x_train, targets)
        with evaluating(model) as f:
            for control, strata in KINDS:
                sampling = Sampling(8192, control=control, lam_strata=strata)
                found = sampled_regularizer(
                    f, data.x_train[:128], targets[:128], sampling,
                    alpha=1.0, generator=torch.Generator().manual_seed(0),
                )  # fmt: skip
                figure = {
                    "name": f"plain variance over that of {control}, {strata} λ strata",
                    "ratio": round(found.variance_reduction, 2),
                    "goal": None,
                    "baseline": "plain Monte Carlo at equal forward passes",
                    "note": f"{name}, width {width}, one epoch; R = {found.mean:.4f} ± "
                    f"{found.sem:.4f}, R_1 = {found.first_order:.4f}, θ = {found.coefficient:.2f}",
                }
                print(json.dumps(figure, ensure_ascii=False), flush=True)
            _second_order(f, data.x_train, f"{name}, width {width}")


def _train(model: nn.Module, x: Tensor, targets: Tensor) -> None:
    objective = Mixup(model, generator=torch.Generator().manual_seed(0))
    generator = torch.Generator().manual_seed(0)
    settings = Optimization(epochs=1, batch_size=32, lr=0.02)
    for _ in Training(objective, x, targets, settings, generator=generator):
        pass


def _second_order(f: Function, partners: Tensor, model: str) -> None:
    x = partners[:16]

    def forward() -> None:
        with torch.no_grad():
            f(x)

    contestants = {
        "forward": forward,
        "second order": lambda: gauss_newton_term(f, x, partners, alpha=1.0),
    }
    emit("Gauss–Newton term of all partners", interleaved(contestants, rounds=5), "second order",
         "forward", None, f"{model}, 16 examples, {len(partners)} partners")  # fmt: skip


if __name__ == "__main__":
    main()
