"""Log-time flow against plain descent, and a batched sweep against a loop over its runs.

Both in one process; the descent is the shortest numpy loop that does it, at 0.9 of the largest
stable step.
"""

from functools import partial

import numpy as np
from scipy.special import expit

from benchmarks.timing import emit, interleaved
from toy.data import load
from toy.descent import Recipe, descend, step_limit
from toy.flow import gradient_flow
from toy.objective import Objective

ROUNDS = 5


def main() -> None:
    """Prints the figures."""
    objective = Objective(load("skewed"))
    step = 0.9 * step_limit(objective, Recipe())[0]
    seconds = interleaved(
        {
            "descent": partial(_descend, objective.points, step, round(1e6 / step)),
            "flow": partial(gradient_flow, objective, 30.0),
        },
        rounds=ROUNDS,
    )
    emit("ERM's flow to t = 1e30", seconds, "flow", "descent", 0.01, "descent to t = 1e6")
    runs = [
        Objective(load("clouds", seed), "mixup-signed", alpha)
        for seed in range(64)
        for alpha in (0.1, 0.3, 1.0, 3.0, 10.0)
    ]
    recipe = Recipe("gd", 500, sampled=True, records=10)
    seconds = interleaved(
        {
            "loop": lambda: [descend([run], recipe, [k]) for k, run in enumerate(runs)],
            "batch": partial(descend, runs, recipe),
        },
        rounds=ROUNDS,
    )
    emit("64 seeds × 5 α at once", seconds, "batch", "loop", 0.1, "40 points, 500 sampled steps")


def _descend(z: np.ndarray, step: float, steps: int) -> np.ndarray:
    w, scaled = np.zeros(z.shape[1]), step / len(z) * z.T
    for _ in range(steps):
        w += scaled @ expit(-(z @ w))
    return w


if __name__ == "__main__":
    main()
