"""Log-time flow against plain descent, a batched sweep against a loop, sums over pairs.

All in one process; the descent is the shortest numpy loop that does it, at 0.9 of the largest
stable step; the pairs are summed one by one in the shortest numpy expression that does it.
"""

from functools import partial

import numpy as np
from scipy.special import expit

from benchmarks.timing import emit, interleaved
from toy.data import load
from toy.descent import Recipe, descend, step_limit
from toy.flow import gradient_flow
from toy.objective import Objective
from toy.pairs import lobatto_rule

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
    mixed = Objective(load("digits"), "mixup-signed")
    for log10_t in (1.0, 10.0):
        w = gradient_flow(mixed, log10_t, times=2).w[-1]
        seconds = interleaved(
            {
                "one by one": partial(_pair_by_pair, mixed, w),
                "gradient": partial(mixed.gradient, w),
            },
            rounds=ROUNDS,
        )
        name = f"signed Mixup's gradient on digits at t = 1e{log10_t:g}"
        emit(name, seconds, "gradient", "one by one", 0.05, "360 points, 48 nodes one by one")
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


def _pair_by_pair(objective: Objective, w: np.ndarray) -> np.ndarray:
    u = objective.data.signed @ w
    lam, weights = lobatto_rule(objective.alpha, 48)
    own = lam[:, None, None]
    slopes = weights[:, None, None] * expit(-(own * u[:, None] + (1.0 - own) * u))
    pull = (own * slopes).sum((0, 2)) + ((1.0 - own) * slopes).sum((0, 1))
    return -(pull @ objective.data.signed) / u.size**2


def _descend(z: np.ndarray, step: float, steps: int) -> np.ndarray:
    w, scaled = np.zeros(z.shape[1]), step / len(z) * z.T
    for _ in range(steps):
        w += scaled @ expit(-(z @ w))
    return w


if __name__ == "__main__":
    main()
