"""What Mixup trains on: two photographs, their convex combinations, and the law of λ."""

from collections.abc import Sequence

import numpy as np
from matplotlib.figure import Figure
from scipy import stats
from sklearn.datasets import load_sample_images

from figures.drawing import Drawing
from figures.style import COLORS, new_figure, style

LAMBDAS = (1.0, 0.75, 0.5, 0.25, 0.0)
ALPHAS = (0.2, 1.0, 2.0)
_LABELS = ("temple", "flower")
_CAPTION = (
    "Mixup trains on λx + (1 − λ)x′ with the target λy + (1 − λ)y′, here between two photographs "
    "(scikit-learn's sample images, CC BY: china.jpg by Danielle Buma, flower.jpg by Xavi "
    "Talleda); right: the law of λ, Beta(α, α)."
)


def drawings() -> dict[str, Drawing]:
    """The figure by name."""
    return {"mixing": Drawing(_CAPTION, plot)}


def mixed(lams: Sequence[float] = LAMBDAS) -> list[np.ndarray]:
    """λx + (1 − λ)x′ for each λ: (height, width, RGB) in [0, 1]."""
    first, second = (
        np.asarray(image, dtype=float)[20:420:2, 120:520:2] / 255
        for image in load_sample_images().images
    )
    return [lam * first + (1 - lam) * second for lam in lams]


def plot() -> Figure:
    """Five mixtures with their targets as bars, and the densities of λ."""
    with style():
        figure = new_figure(9.0, 2.3)
        axes = figure.subplots(
            2, len(LAMBDAS) + 1, sharex="row", height_ratios=(6, 1),
            width_ratios=(*[1] * len(LAMBDAS), 1.3),
        )  # fmt: skip
        for upper, lower, lam, image in zip(*axes[:, :-1], LAMBDAS, mixed(), strict=True):
            upper.imshow(image)
            upper.set(title=f"λ = {lam:g}", xticks=[], yticks=[])
            lower.barh([1, 0], [lam, 1 - lam], color=COLORS[:2])
            lower.set(xlim=(0, 1), xticks=[0, 1], yticks=[1, 0], yticklabels=["", ""])
        axes[1, 0].set_yticklabels(_LABELS)
        axes[1, 2].set_xlabel("target")
        for ax in axes[:, -1]:
            ax.remove()
        law = figure.add_subplot(axes[0, 0].get_gridspec()[:, -1])
        lam = np.linspace(0.002, 0.998, 499)
        for alpha, color in zip(ALPHAS, COLORS[2:], strict=False):
            law.plot(lam, stats.beta.pdf(lam, alpha, alpha), color=color, label=f"α = {alpha:g}")
        law.set(title="law of λ", xlabel="λ", ylabel="density", ylim=(0, 3), xlim=(0, 1))
        law.legend()
    return figure
