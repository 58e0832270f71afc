"""Stacked training against one network after another, by the objectives of `deep.objective`."""

import math
from dataclasses import replace

import pytest
import torch

from deep.loop import Optimization
from deep.mixup import Mixing
from deep.objective import build_objective
from deep.stacked import (
    METHODS,
    Part,
    Run,
    draw_epoch,
    initial,
    outcomes,
    steps_an_epoch,
    trained,
)
from theory.losses import as_targets
from theory.mixing import beta_law

CLASSES, INPUTS, WIDTH = 3, 5, 16
SETTINGS = Optimization(epochs=7.5, batch_size=8, lr=0.05, weight_decay=1e-3)
GRID = [(0.2, 0.0), (1.0, 0.5), (2.0, 3.0)]


def training_parts(seeds, rows=33, dtype=torch.float64):
    """Different examples for each seed, not centred, so that exact q and q̂ differ."""
    parts = {}
    for seed in seeds:
        generator = torch.Generator().manual_seed(100 + seed)
        x = torch.randn(rows, INPUTS, generator=generator, dtype=torch.float64) + 0.5
        noise = torch.randn(rows, CLASSES, generator=generator, dtype=torch.float64)
        parts[seed] = Part(x.to(dtype), (x[:, :CLASSES] + noise).argmax(1))
    return parts


def trained_alone(run, part, settings=SETTINGS):
    """One network by its objective and by PyTorch's optimiser, fed the draws of its seed."""
    rows = len(part.x)
    model, generator = initial(run.seed, INPUTS, CLASSES, WIDTH)
    objective = build_objective(
        run.method, model.to(part.x.dtype), alpha=run.alpha, eta=run.eta, mean=part.x.mean(0),
        generator=torch.Generator(),
    )  # fmt: skip
    optimizer = torch.optim.SGD(
        objective.parameters(), settings.lr, settings.momentum,
        weight_decay=settings.weight_decay, nesterov=True,
    )  # fmt: skip
    targets = as_targets(part.labels, CLASSES, dtype=part.x.dtype)
    steps = steps_an_epoch(rows, settings.batch_size)
    for index in range(math.ceil(settings.epochs * steps)):
        place = index % steps
        if place == 0:
            (order,), (keys,), (u,) = draw_epoch([generator], rows, steps)
        size = settings.batch_size
        here = slice(place * size, rows if place == steps - 1 else (place + 1) * size)
        lam = beta_law(run.alpha).inverse(u.numpy())[place]
        objective.draw = lambda x, lam=lam, here=here, keys=keys: Mixing(
            float(lam), keys[here].argsort()
        )
        for group in optimizer.param_groups:
            group["lr"] = settings.learning_rate(index, steps)
        optimizer.zero_grad()
        objective(part.x[order[here]], targets[order[here]]).backward()
        optimizer.step()
    return model


def logits_by_run(runs, parts, settings=SETTINGS, **options):
    """Logits of each run on its own training examples, by run."""
    options = {"width": WIDTH, **options}
    found = {}
    for chosen, stack in trained(runs, parts, CLASSES, settings, **options):
        x = torch.stack([parts[run.seed].x for run in chosen])
        found.update(zip(chosen, stack(x), strict=True))
    return found


@pytest.mark.parametrize(("dtype", "atol"), [(torch.float64, 1e-12), (torch.float32, 1e-5)])
@pytest.mark.parametrize("method", METHODS)
def test_a_stack_trains_each_network_as_the_loop_does(method, dtype, atol):
    """30 steps with ragged last batches, of runs that differ in seed, α, η and data."""
    runs = [Run(seed, method, alpha, eta) for seed in (0, 3) for alpha, eta in GRID]
    parts = training_parts((0, 3), dtype=dtype)
    found = logits_by_run(runs, parts)
    for run in runs:
        alone = trained_alone(run, parts[run.seed])(parts[run.seed].x)
        torch.testing.assert_close(found[run], alone, rtol=0, atol=atol)


@pytest.mark.parametrize("methods", [METHODS, METHODS[::-1]])
def test_a_run_does_not_depend_on_those_beside_it(methods):
    """Alone, in stacks of two or among all, in any order; and seeds are not mixed up."""
    runs = [Run(seed, method, 0.5, 1.0) for method in methods for seed in (5, 1, 2)]
    parts = training_parts((1, 2, 5))
    settings = replace(SETTINGS, epochs=2)
    together = logits_by_run(runs, parts, settings)
    pairs = logits_by_run(runs, parts, settings, most=2)
    assert together.keys() == pairs.keys() == set(runs)
    for run in runs:
        (alone,) = logits_by_run([run], parts, settings).values()
        torch.testing.assert_close(together[run], alone, rtol=0, atol=1e-12)
        torch.testing.assert_close(pairs[run], alone, rtol=0, atol=1e-12)


def test_without_a_penalty_mixupe_is_mixup_and_with_one_it_is_not():
    parts = training_parts((0,))
    mixup, *others = METHODS[1:]
    found = logits_by_run(
        [Run(0, mixup, 2.0), *(Run(0, m, 2.0, eta) for m in others for eta in (0.0, 1.0))], parts
    )
    for method in others:
        reference = found[Run(0, mixup, 2.0)]
        torch.testing.assert_close(found[Run(0, method, 2.0, 0.0)], reference, rtol=0, atol=1e-12)
        assert (found[Run(0, method, 2.0, 1.0)] - reference).abs().max() > 0.1


def test_a_run_that_diverges_is_told_and_spoils_no_other():
    runs = [Run(0, "mixupe-paper", 1.0, eta) for eta in (0.5, 1.0, 2.0)] + [Run(1, "mixupe-paper")]
    parts = training_parts((0, 1))
    spoilt = {0: parts[0], 1: Part(parts[1].x * 1e200, parts[1].labels)}
    ((chosen, stack),) = trained(runs, spoilt, CLASSES, SETTINGS, width=WIDTH)
    loss, error = outcomes(stack, chosen, spoilt)
    for run, one_loss, one_error in zip(chosen, loss.tolist(), error.tolist(), strict=True):
        if run.seed == 1:
            assert math.isnan(one_loss)
            assert math.isnan(one_error)
            continue
        alone = trained_alone(run, parts[0])(parts[0].x)
        expected = torch.nn.functional.cross_entropy(alone, parts[0].labels)
        assert one_loss == pytest.approx(expected.item(), abs=1e-12)


def test_outcomes_are_mean_loss_and_share_of_misses():
    """Of each run on its own seed's rows, row by row, in pieces that do not divide their number."""
    runs = [Run(4, "erm"), Run(7, "erm")]
    parts = training_parts((4, 7))
    ((chosen, stack),) = trained(runs, parts, CLASSES, replace(SETTINGS, epochs=1), width=WIDTH)
    loss, error = outcomes(stack, chosen, parts, rows=10)
    for k, run in enumerate(chosen):
        part, losses, misses = parts[run.seed], 0.0, 0
        model = trained_alone(run, part, replace(SETTINGS, epochs=1))
        for x, label in zip(part.x, part.labels.tolist(), strict=True):
            f = model(x[None])[0].tolist()
            losses += math.log(sum(map(math.exp, f))) - f[label]
            misses += max(range(CLASSES), key=f.__getitem__) != label
        assert float(loss[k]) == pytest.approx(losses / len(part.x), abs=1e-12)
        assert float(error[k]) == pytest.approx(misses / len(part.x), abs=1e-12)


def test_seeds_draw_alike_whatever_is_drawn_beside_them():
    """And the first network is the one that PyTorch makes after manual_seed."""
    network, generator = initial(3, INPUTS, CLASSES, WIDTH)
    torch.manual_seed(3)
    expected = torch.nn.Linear(INPUTS, WIDTH)
    assert torch.equal(next(network.parameters()), expected.weight)
    alone = [draw_epoch([generator], 9, 2) for _ in range(2)]
    generators = [initial(seed, INPUTS, CLASSES, WIDTH)[1] for seed in (1, 3)]
    beside = [draw_epoch(generators, 9, 2) for _ in range(2)]
    for one, two in zip(alone, beside, strict=True):
        for a, b in zip(one, two, strict=True):
            assert torch.equal(a[0], b[1])
            assert not torch.equal(b[0], b[1])
    assert sorted(alone[0].order[0].tolist()) == list(range(9))
    assert not torch.equal(alone[0].order, alone[1].order)


def test_progress_counts_runs_an_epoch():
    calls = []
    runs = [Run(seed, "erm") for seed in (0, 1, 2)]
    for _ in trained(
        runs, training_parts((0, 1, 2)), CLASSES, replace(SETTINGS, epochs=2.5), width=WIDTH,
        most=2, progress=calls.append,
    ):  # fmt: skip
        pass
    assert calls == [1, 1, 1, 2, 2, 2]
