"""The loop takes the stated steps, in the stated order, reproducibly, and stops on nonsense."""

import math
from itertools import islice

import numpy as np
import pytest
import torch
from torch import nn
from torch.nn.utils.parametrizations import spectral_norm

from deep.loop import Optimization, Training
from deep.mixup import ERM
from deep.models import build_model
from deep.objective import OBJECTIVES, build_objective
from theory.errors import InputError


def rng(seed=0):
    return torch.Generator().manual_seed(seed)


def blobs(samples=120, seed=0):
    """Three noisy patterns of 8 × 8 pixels, one a class."""
    generator = rng(seed)
    patterns = torch.randn(3, 1, 8, 8, generator=rng(99))
    labels = torch.randint(3, (samples,), generator=generator)
    x = patterns[labels] + 0.5 * torch.randn(samples, 1, 8, 8, generator=generator)
    return x, torch.eye(3)[labels]


def small_network(name="preact18", seed=0):
    torch.manual_seed(seed)
    return build_model(name, num_classes=3, in_channels=1, image_size=8, width=4)


def train(objective, x, targets, *, generator, augment=None, **settings):
    return Training(
        objective, x, targets, Optimization(**settings), generator=generator, augment=augment
    )


def learning_rate(index, total, peak):
    """Of a run of one epoch with default settings."""
    return Optimization(lr=peak).learning_rate(index, total)


class Recorder(nn.Module):
    """A loss that remembers which examples it was given; x holds their numbers."""

    def __init__(self):
        super().__init__()
        self.weight = nn.Parameter(torch.ones(1))
        self.batches = []

    def forward(self, x, targets):
        assert torch.equal(x, targets)
        assert self.training
        self.batches.append(x[:, 0].int().tolist())
        return (self.weight * x).sum() * 0 + self.weight.sum()


def record(samples, **options):
    recorder = Recorder()
    x = torch.arange(samples, dtype=torch.float32)[:, None]
    steps = list(train(recorder, x, x, generator=rng(1), **options))
    return recorder.batches, steps


@pytest.mark.parametrize(
    ("samples", "batch_size", "sizes"),
    [
        (12, 4, [4, 4, 4]),
        (11, 4, [4, 4, 3]),
        (9, 4, [4, 5]),  # the ninth would stand alone
        (2, 4, [2]),
        (5, 4, [5]),
        (3, 2, [3]),
    ],
)
def test_every_example_is_seen_once_an_epoch_and_none_alone(samples, batch_size, sizes):
    batches, steps = record(samples, epochs=3.0, batch_size=batch_size)
    assert [len(batch) for batch in batches] == sizes * 3
    orders = np.concatenate(batches).reshape(3, samples).tolist()
    assert all(sorted(order) == list(range(samples)) for order in orders)
    assert samples < 9 or len(set(map(tuple, orders))) == 3  # reshuffled
    assert [step.index for step in steps] == list(range(3 * len(sizes)))
    assert steps[-1].total == len(steps)
    assert steps[len(sizes) - 1].epoch == 1
    assert steps[-1].epoch == 3


def test_fractions_of_an_epoch_are_rounded_up_to_steps():
    assert len(record(40, epochs=1.5, batch_size=10)[1]) == 6
    assert len(record(40, epochs=0.01, batch_size=10)[1]) == 1
    assert record(40, epochs=0.0, batch_size=10) == ([], [])


def test_learning_rate_warms_up_linearly_and_falls_as_a_cosine_to_zero():
    rates = [learning_rate(k, 200, 0.3) for k in range(200)]
    np.testing.assert_allclose(rates[:10], 0.03 * np.arange(1, 11))
    phase = np.arange(190) / 190
    np.testing.assert_allclose(rates[10:], 0.3 * np.cos(np.pi * phase / 2) ** 2)
    assert max(rates) == 0.3
    assert 0 < rates[-1] < 1e-4
    assert [learning_rate(0, 1, 0.3), learning_rate(0, 2, 0.3)] == [0.3, 0.3]


def test_steps_are_those_of_nesterov_sgd_with_weight_decay():
    """Against the update written out: b ← m·b + d, w ← w − lr·(d + m·b), d = ∇ + decay·w."""
    x = torch.tensor([[1.0, 2.0], [3.0, -1.0]], dtype=torch.float64)
    targets = torch.eye(2, dtype=torch.float64)
    torch.manual_seed(0)
    model = nn.Linear(2, 2, bias=False).double()
    w, buffer = model.weight.detach().clone().numpy(), 0.0
    steps = list(
        train(ERM(model), x, targets, epochs=5.0, lr=0.2, momentum=0.8, weight_decay=0.03,
              generator=rng())
    )  # fmt: skip
    for index, step in enumerate(steps):
        logits = x.numpy() @ w.T
        g = np.exp(logits) / np.exp(logits).sum(1, keepdims=True)
        loss = -np.log(g[[0, 1], [0, 1]]).mean()
        assert step.loss == pytest.approx(loss, rel=1e-12)
        assert step.lr == learning_rate(index, 5, 0.2)
        d = (g - np.eye(2)).T @ x.numpy() / 2 + 0.03 * w
        buffer = 0.8 * buffer + d
        w = w - step.lr * (d + 0.8 * buffer)
    np.testing.assert_allclose(model.weight.detach().numpy(), w, rtol=1e-12)


@pytest.mark.parametrize("objective", OBJECTIVES)
def test_equal_seeds_give_bit_identical_runs(objective):
    x, targets = blobs(50)

    def run(seed):
        model = small_network(seed=0)
        loop = train(
            build_objective(objective, model, mean=x.mean(0), generator=rng(seed)),
            x, targets, epochs=2.0, batch_size=16, generator=rng(seed),
        )  # fmt: skip
        return [step.loss for step in loop], model.state_dict()

    (losses, weights), (losses_again, weights_again) = run(1), run(1)
    assert losses == losses_again
    assert all(torch.equal(weights[name], weights_again[name]) for name in weights)
    assert run(2)[0] != losses


@pytest.mark.parametrize("objective", OBJECTIVES)
def test_a_small_network_learns(objective):
    """Fresh draws of three noisy patterns are told apart after a few dozen steps."""
    x, targets = blobs(160)
    model = small_network()
    steps = list(
        train(build_objective(objective, model, mean=x.mean(0), generator=rng(1)), x, targets,
              epochs=8.0, batch_size=32, generator=rng(2))
    )  # fmt: skip
    assert steps[-1].loss < steps[0].loss
    new_x, new_targets = blobs(300, seed=5)
    model.eval()
    with torch.no_grad():
        accuracy = (model(new_x).argmax(1) == new_targets.argmax(1)).float().mean().item()
    assert accuracy > 0.95


def test_the_caller_may_evaluate_between_steps():
    """Evaluation between the steps changes nothing: neither mode nor random numbers leak."""
    x, targets = blobs(40)

    def run(evaluate):
        model = small_network()
        objective = build_objective("mixup", model, generator=rng(1))
        losses = []
        for step in train(objective, x, targets, epochs=2.0, batch_size=8, generator=rng(2)):
            losses.append(step.loss)
            if evaluate:
                objective.eval()
                with torch.no_grad():
                    model(x)
        return losses

    assert run(evaluate=True) == run(evaluate=False)


def test_the_caller_may_stop():
    x, targets = blobs(40)
    loop = train(ERM(small_network()), x, targets, epochs=100.0, batch_size=8, generator=rng())
    assert [step.index for step in islice(loop, 3)] == [0, 1, 2]


def test_a_diverging_loss_stops_the_run_before_it_reaches_the_weights():
    x, targets = blobs(40)
    model = small_network("mlp")
    loop = train(ERM(model), x, targets, epochs=50.0, lr=1e30, generator=rng())
    with pytest.raises(InputError, match=r"the loss is (nan|inf) at step \d+ of 100: lower the"):
        list(loop)


def test_a_loss_of_nan_takes_no_step():
    class Broken(Recorder):
        def forward(self, x, targets):
            return super().forward(x, targets) * math.nan

    broken, x = Broken(), torch.zeros(4, 1)
    with pytest.raises(InputError, match="the loss is nan at step 1 of 1"):
        list(train(broken, x, x, epochs=1.0, generator=rng()))
    assert broken.weight.item() == 1


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"samples": 1}, "1 examples in batches of 32"),
        ({"samples": 0}, "0 examples"),
        ({"batch_size": 1}, "batch_size is 1: training needs at least 2"),
        ({"epochs": -1.0}, "epochs is -1.0"),
        ({"epochs": math.inf}, "epochs is inf"),
        ({"lr": math.nan}, "lr is nan"),
        ({"momentum": -0.5}, "momentum is -0.5"),
        ({"weight_decay": -1e-4}, "weight_decay is -0.0001"),
    ],
)
def test_train_refuses(options, message):
    with pytest.raises(InputError, match=message):
        record(**{"samples": 8, "epochs": 1.0, **options})


def test_train_refuses_unusable_data():
    x = torch.zeros(4, 1)
    bad = torch.tensor([[0.0], [math.nan], [0.0], [0.0]])
    for inputs, targets in ((bad, x), (x, bad)):
        with pytest.raises(InputError, match="hold NaN or infinity"):
            list(train(Recorder(), inputs, targets, epochs=1.0, generator=rng()))


def test_train_refuses_a_network_without_anything_to_train():
    x, targets = blobs(8)
    for model in (nn.Flatten(), small_network("mlp").requires_grad_(False)):
        with pytest.raises(InputError, match="no parameter of the network requires a gradient"):
            train(ERM(model), x, targets, generator=rng())


def test_a_run_taken_up_again_is_the_uninterrupted_one():
    """After any number of steps, mid-epoch or at an epoch's end, weights and losses bit for bit."""
    x, targets = blobs(50)

    def start(seed=1):
        torch.manual_seed(0)
        model = build_model("preact18", num_classes=3, in_channels=1, image_size=8, width=4)
        # Dropout draws, and spectral norm iterates vectors that it keeps in buffers.
        model.linear = nn.Sequential(nn.Dropout(0.3), spectral_norm(model.linear))
        torch.manual_seed(seed)
        objective = build_objective("mixupe-exact", model, mean=x.mean(0), generator=rng(seed))
        return train(objective, x, targets, epochs=3.0, batch_size=16, generator=rng(seed))

    whole = start()
    losses = [step.loss for step in whole]
    assert len(losses) == 12
    for stop in (0, 1, 3, 4, 6, 11):
        first = start()
        before = [step.loss for step in islice(first, stop)]
        state, weights = first.state_dict(), first.objective.state_dict()
        again = start(seed=9)  # its own seeds must not matter
        again.objective.load_state_dict(weights)
        again.load_state_dict(state)
        assert before + [step.loss for step in again] == losses
        for name, tensor in whole.objective.state_dict().items():
            assert torch.equal(tensor, again.objective.state_dict()[name])


def test_steps_schedule_lowers_the_rate_at_milestones_after_a_warm_up_from_its_start():
    settings = Optimization(
        epochs=8, lr=0.1, schedule="steps", warmup_epochs=2, warmup_lr=0.001, milestones=(4, 6.5),
        decay=0.1,
    )  # fmt: skip
    rates = [settings.learning_rate(k, 10) for k in range(80)]
    np.testing.assert_allclose(rates[:20], 0.001 + 0.099 * np.arange(1, 21) / 20)
    np.testing.assert_allclose(rates[20:40], 0.1)
    np.testing.assert_allclose(rates[40:65], 0.01)
    np.testing.assert_allclose(rates[65:], 0.001)


def test_adamw_steps_are_pytorchs():
    x, targets = blobs(40)
    models = [small_network(), small_network()]
    settings = {"epochs": 1.0, "batch_size": 40, "lr": 0.01, "weight_decay": 0.1}
    list(train(ERM(models[0]), x, targets, optimizer="adamw", generator=rng(3), **settings))
    order = torch.randperm(40, generator=rng(3))
    objective = ERM(models[1])
    optimizer = torch.optim.AdamW(models[1].parameters(), 0.01, weight_decay=0.1)
    objective(x[order], targets[order]).backward()
    optimizer.step()
    for mine, theirs in zip(*(model.parameters() for model in models), strict=True):
        assert torch.equal(mine, theirs)


def test_augmentation_is_told_examples_and_epoch():
    seen = []

    def augment(x, samples, epoch):
        assert torch.equal(x[:, 0].int(), samples.int())
        seen.append((epoch, len(samples)))
        return x

    record(10, epochs=2.0, batch_size=4, augment=augment)
    assert seen == [(0, 4), (0, 4), (0, 2), (1, 4), (1, 4), (1, 2)]
