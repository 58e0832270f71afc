import numpy as np
import pytest

from theory.errors import InputError
from toy.data import ToyData, load
from toy.descent import ALGORITHMS, Recipe, descend, draws, sampled_gradient, step_limit
from toy.max_margin import max_margin
from toy.objective import PROTOCOLS, Objective


def plain_descent(objective, step, steps, momentum=0.0):
    w, v = np.zeros(objective.points.shape[1]), 0.0
    for _ in range(steps):
        v = momentum * v + objective.gradient(w)
        w = w - step * v
    return w


@pytest.mark.parametrize("protocol", PROTOCOLS)
@pytest.mark.parametrize("momentum", [0.0, 0.8])
def test_exact_descent_is_the_plain_loop(protocol, momentum):
    objectives = [Objective(load("clouds", s, 8), protocol, a, 16) for s, a in [(0, 0.5), (1, 2.0)]]
    algorithm = "momentum" if momentum else "gd"
    recipe = Recipe(algorithm, 40, step=0.1, momentum=momentum, records=3)
    paths = descend(objectives, recipe)
    for run, objective in enumerate(objectives):
        slow = plain_descent(objective, 0.1, 40, momentum)
        np.testing.assert_allclose(paths.w[-1, run], slow, rtol=1e-12)


@pytest.mark.parametrize("algorithm", ALGORITHMS)
@pytest.mark.parametrize("protocol", PROTOCOLS)
def test_a_batch_of_runs_is_the_runs_one_by_one(algorithm, protocol):
    """Each run owns its generator, so batching changes no draw and (to rounding) no result."""
    objectives = [
        Objective(load("clouds", seed, 10), protocol, alpha, 8)
        for seed in range(3)
        for alpha in (0.2, 1.0)
    ]
    recipe = Recipe(algorithm, 300, sampled=True, records=4)
    seeds = [7, 1, 4, 9, 2, 5]
    together = descend(objectives, recipe, seeds).w
    for run, (objective, seed) in enumerate(zip(objectives, seeds, strict=True)):
        alone = descend([objective], recipe, [seed]).w[:, 0]
        np.testing.assert_allclose(together[:, run], alone, rtol=1e-12, atol=1e-13)


@pytest.mark.parametrize("protocol", ["mixup-signed", "mixup-soft"])
def test_sampled_gradients_converge_to_the_exact_one_like_one_over_root_steps(protocol):
    """64 independent runs at one w: the error of N-step means falls with slope −1/2 in log N."""
    objective = Objective(load("skewed"), protocol, 0.7)
    w = np.array([0.6, -0.3])
    exact = objective.gradient(w)
    runs = [objective] * 64
    gradient = sampled_gradient(runs, draws(runs, range(64), Recipe(sampled=True)))
    counts = np.array([16, 64, 256, 1024])
    total, errors, done = np.zeros((64, 2)), [], 0
    for count in counts:
        for _ in range(count - done):
            total += gradient(np.broadcast_to(w, (64, 2)))
        done = count
        errors.append(np.sqrt(((total / count - exact) ** 2).sum(1).mean()))
    slope = np.polyfit(np.log(counts), np.log(errors), 1)[0]
    # 64 runs of 2 components know the root mean square to 1/√256, hence the slope to 0.05.
    assert slope == pytest.approx(-0.5, abs=0.06)
    bias = np.abs((total / counts[-1]).mean(0) - exact).max()
    assert bias < 4.0 * errors[-1] / np.sqrt(64)


def test_stochastic_gradient_is_unbiased():
    objective = Objective(load("skewed"), "mixup-signed", 1.0)
    recipe = Recipe("sgd", batch=3)
    runs = [objective] * 200
    gradient = sampled_gradient(runs, draws(runs, range(200), recipe))
    w = np.array([0.2, 0.4])
    values = np.stack([gradient(np.broadcast_to(w, (200, 2))) for _ in range(50)]).reshape(-1, 2)
    error = values.mean(0) - objective.gradient(w)
    assert (np.abs(error) < 4.0 * values.std(0) / np.sqrt(len(values))).all()


@pytest.mark.parametrize("algorithm", ["gd", "sgd", "momentum"])
@pytest.mark.parametrize("protocol", ["erm", "mixup-signed"])
def test_every_algorithm_of_gradient_type_nears_the_max_margin(algorithm, protocol):
    objective = Objective(load("skewed"), protocol)
    reference = max_margin(objective.data.signed)
    w = descend([objective], Recipe(algorithm, 20_000, sampled=True, records=4)).w[:, 0]
    margins = (objective.points @ w.T).min(0) / np.linalg.norm(w, axis=1)
    assert margins[1] < 0.93 * reference.margin < margins[-1]
    assert margins[-1] == max(margins[1:])


def test_time_is_the_flow_time():
    objective = Objective(load("skewed"))
    heavy = descend([objective], Recipe("momentum", 100, step=0.1, momentum=0.5, records=2))
    np.testing.assert_allclose(heavy.time[:, 0], [0.2, 20.0])


def test_the_stability_limit_is_sharp():
    """At a minimum where softplus is quadratic (z against −z), 2/L separates decay from growth."""
    pair = ToyData("pair", np.array([[1.0, 0.5], [-1.0, -0.5]]), np.ones(2))
    objective = Objective(pair)
    limit, suggested = step_limit(objective, Recipe())
    assert suggested == limit / 2
    w0 = 1e-6 * np.array([1.0, 0.5])

    def after(step):
        w = w0
        for _ in range(50):
            w = w - step * objective.gradient(w)
        return np.linalg.norm(w)

    assert after(0.98 * limit) < np.linalg.norm(w0) < after(1.02 * limit)


def test_bad_recipes_are_refused():
    objective = Objective(load("skewed"))
    with pytest.raises((InputError, TypeError), match="algorithm"):
        Recipe("newton")
    for bad in (
        {"steps": 0},
        {"step": -1.0},
        {"step": float("nan")},
        {"momentum": 1.0},
        {"batch": 0},
    ):
        with pytest.raises(InputError):
            Recipe(**bad)
    limit, suggested = step_limit(objective, Recipe())
    with pytest.raises(
        InputError, match=rf"2/L = {limit:.4g} of gd; {suggested:.4g} is a safe choice"
    ):
        descend([objective], Recipe(step=1.1 * limit))
    with pytest.raises(InputError, match="one shape"):
        descend([objective, Objective(load("clouds"))], Recipe())
    pairs = Objective(load("skewed"), "mixup-signed", diagonal=False)
    with pytest.raises(InputError, match="diagonal"):
        descend([pairs], Recipe(sampled=True))
