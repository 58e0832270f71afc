"""The command: a run killed at any moment and resumed is the uninterrupted one, bit for bit."""

import json
import os
import random
import shutil
import signal
import subprocess
import sys
import time
from dataclasses import fields
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file

import deep.training
from deep.data.examples import Examples, in_proportion
from deep.data.images import load_images
from deep.evaluate import evaluate
from deep.models.from_file import model_from_file
from deep.objective import build_objective
from deep.recipes import BUILT_IN, Config, Recipe, as_flags, recipe_settings
from deep.run_folder import read_lines
from deep.train import config_of_recipe, main, summary
from deep.training import Stopped, train
from theory.errors import InputError
from theory.losses import as_targets
from theory.probe import measure_probe

ROOT = Path(__file__).resolve().parent.parent
NET = """
import torch
from torch import nn

class Net(nn.Module):
    def __init__(self, num_classes):
        super().__init__()
        self.stages = nn.Sequential(
            nn.Sequential(nn.Conv2d(3, 4, 5, stride=4), nn.BatchNorm2d(4), nn.ReLU()),
            nn.Sequential(nn.Flatten(), nn.Dropout(0.2)),
        )
        self.head = nn.Linear(4 * 7 * 7, num_classes)

    def forward(self, x):
        return self.head(self.stages(x))

def wrong_size():
    return nn.Sequential(nn.Flatten(), nn.Linear(99, 10))
"""
FILES = ("log.jsonl", "checks.jsonl", "weights.safetensors")
EPOCHS = 3


@pytest.fixture(scope="module")
def net(tmp_path_factory):
    path = tmp_path_factory.mktemp("net") / "net.py"
    path.write_text(NET)
    return path


def flags(net, out, *more):
    """Fourteen steps an epoch, checkpoints every fourth step, checks twice an epoch."""
    return [
        "--model", f"{net}:Net", "--objective", "mixupe-exact", "--epochs", str(EPOCHS),
        "--batch-size", "96", "--lr", "0.05", "--eta", "0.1", "--validation", "100",
        "--crop-padding", "2", "--flip", "--check-every", "0.5", "--check-samples", "16",
        "--log-samples", "60", "--checkpoint-steps", "4", "--out", str(out), *more,
    ]  # fmt: skip


def start(net, out, *more):
    command = [sys.executable, "-m", "deep.train", *flags(net, out, *more)]
    return subprocess.Popen(
        command, cwd=ROOT, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
    )


@pytest.fixture(scope="module")
def whole(net, tmp_path_factory):
    """The folder of an uninterrupted run in a process of its own."""
    out = tmp_path_factory.mktemp("whole") / "run"
    process = start(net, out)
    _, errors = process.communicate(timeout=300)
    assert process.returncode == 0, errors
    return out


def same(one, other):
    return all((one / name).read_bytes() == (other / name).read_bytes() for name in FILES)


def interrupted(net, out, number=signal.SIGTERM, after=1):
    """A run in this process that gets a signal after an epoch."""

    def on_epoch(line):
        if line["epoch"] == after:
            os.kill(os.getpid(), number)

    with pytest.raises(Stopped) as stopped:
        train(config_for(net, out), on_epoch)
    return stopped.value.code


def config_for(net, out, **changes):
    settings = {
        "model": f"{net}:Net", "objective": "mixupe-exact", "epochs": EPOCHS, "batch_size": 96,
        "lr": 0.05, "eta": 0.1, "validation": 100, "crop_padding": 2, "flip": True,
        "check_every": 0.5, "check_samples": 16, "log_samples": 60, "checkpoint_steps": 4,
        "out": Path(out), **changes,
    }  # fmt: skip
    return Config(**settings)


def test_the_run_leaves_what_it_promises(net, whole):
    log, checks = read_lines(whole / "log.jsonl"), read_lines(whole / "checks.jsonl")
    assert [line["epoch"] for line in log] == [1, 2, 3]
    assert [line["step"] for line in log] == [14, 28, 42]
    assert [line["epoch"] for line in checks] == [0, 0.5, 1, 1.5, 2, 2.5, 3]
    assert not (whole / "checkpoints").exists()
    recipe = json.loads((whole / "recipe.json").read_text())
    assert set(recipe) == {field.name for field in fields(Recipe)} | {"recipe", "data_dir"}
    result = json.loads((whole / "result.json").read_text())
    assert result["recipe"] == recipe
    assert result["last"] == log[-1]
    for part in ("validation", "test"):
        assert result[f"best_on_{part}"] == min(log, key=lambda line: line[f"{part}_error"])
    assert result["examples"] == {"train": 1337, "validation": 100, "test": 360}
    assert "chosen on the test set" in summary(whole)


def test_logged_numbers_are_those_of_the_saved_network(net, whole):
    """Last line and last check, computed anew from weights.safetensors."""
    data = load_images("digits")
    model = model_from_file(f"{net}:Net", num_classes=10)
    model.load_state_dict(load_file(whole / "weights.safetensors"))
    held_out, kept = in_proportion(data.y_train, 100, seed=0)
    assert not set(held_out.tolist()) & set(kept.tolist())
    last = read_lines(whole / "log.jsonl")[-1]
    for name, x, y in (
        ("test", data.x_test, data.y_test),
        ("validation", data.x_train[held_out], data.y_train[held_out]),
        ("train", data.x_train[kept][:60], data.y_train[kept][:60]),
    ):
        found = evaluate(model, x, y)
        assert last[f"{name}_loss"] == pytest.approx(found.loss, rel=1e-6)
        assert last[f"{name}_error"] == pytest.approx(found.error)
    x, y = data.x_train[kept], data.y_train[kept]
    chosen, _ = in_proportion(y, 16, seed=0)
    found = measure_probe(model, x[chosen], as_targets(y[chosen], 10), x.mean(0))
    check = read_lines(whole / "checks.jsonl")[-1]
    assert check["relative_error"]["value"] == pytest.approx(found["relative_error"]["value"], 1e-5)
    assert check["alignment"]["cosine_q"] == pytest.approx(found["alignment"]["cosine_q"], rel=1e-4)


def test_killed_again_and_again_and_resumed_it_is_the_same_run(net, whole, tmp_path):
    """SIGKILL at random moments: while loading, training, checking, logging or saving."""
    out, moments, kills = tmp_path / "run", random.Random(0), 0
    while not (out / "result.json").exists():
        process = start(net, out, "--resume")
        seen = len(list((out / "checkpoints").glob("*")))
        until = time.monotonic() + 60
        while process.poll() is None and time.monotonic() < until:
            begun = len(list((out / "checkpoints").glob("*"))) > seen if kills else out.exists()
            if begun and kills < 4:
                time.sleep(moments.uniform(0, 0.5))
                process.kill()
                kills += 1
                break
            time.sleep(0.02)
        _, errors = process.communicate(timeout=120)
        assert process.returncode in (0, -signal.SIGKILL), errors
    assert kills >= 2
    assert same(whole, out)


@pytest.mark.parametrize(("number", "code"), [(signal.SIGTERM, 143), (signal.SIGINT, 130)])
def test_a_signal_writes_a_checkpoint_and_ends_the_process(net, whole, tmp_path, number, code):
    process = start(net, tmp_path / "run", "--checkpoint-steps", "1000")
    log = tmp_path / "run" / "log.jsonl"
    while not (log.exists() and log.stat().st_size):
        assert process.poll() is None, process.communicate()[1]
        time.sleep(0.02)
    process.send_signal(number)
    _, errors = process.communicate(timeout=60)
    assert process.returncode == code
    assert errors.startswith("stopped: go on with the same command and --resume")
    assert len(list((tmp_path / "run" / "checkpoints").iterdir())) == 1
    assert main(flags(net, tmp_path / "run", "--checkpoint-steps", "1000", "--resume")) == 0
    assert same(whole, tmp_path / "run")


@pytest.fixture(scope="module")
def stopped(net, tmp_path_factory):
    """A folder of a run that was stopped after its first epoch, with three checkpoints."""
    out = tmp_path_factory.mktemp("stopped") / "run"
    assert interrupted(net, out) == 143
    assert sorted(int(path.name) for path in (out / "checkpoints").iterdir()) == [8, 12, 15]
    return out


@pytest.mark.parametrize("name", ["weights.safetensors", "state.pt", "SHA256SUMS"])
@pytest.mark.parametrize("damage", ["truncated", "garbled", "missing"])
def test_a_damaged_checkpoint_is_passed_over(net, whole, stopped, tmp_path, capsys, name, damage):
    out = shutil.copytree(stopped, tmp_path / "run")
    path = out / "checkpoints" / "15" / name
    content = bytearray(path.read_bytes())
    if damage == "truncated":
        path.write_bytes(content[: len(content) // 2])
    elif damage == "garbled":
        content[len(content) // 2] ^= 255
        path.write_bytes(content)
    else:
        path.unlink()
    train(config_for(net, out, resume=True))
    told = capsys.readouterr().err
    assert told.startswith("checkpoint of step 15 is passed over: ")
    assert told.count("\n") == 1
    assert same(whole, out)


def test_a_checkpoint_half_written_at_a_kill_is_ignored(net, whole, stopped, tmp_path):
    out = shutil.copytree(stopped, tmp_path / "run")
    shutil.copytree(out / "checkpoints" / "15", out / "checkpoints" / ".99")
    (out / "checkpoints" / ".99" / "state.pt").unlink()
    train(config_for(net, out, resume=True))
    assert same(whole, out)


def test_no_usable_checkpoint_is_told(net, stopped, tmp_path, capsys):
    out = shutil.copytree(stopped, tmp_path / "run")
    for path in (out / "checkpoints").iterdir():
        (path / "state.pt").write_bytes(b"nothing")
    assert main(flags(net, out, "--resume")) == 2
    *passed, last = capsys.readouterr().err.splitlines()
    assert len(passed) == 3
    assert last.startswith("error: none of the 3 checkpoints")


def test_a_log_that_lost_lines_is_told(net, stopped, tmp_path, capsys):
    out = shutil.copytree(stopped, tmp_path / "run")
    (out / "log.jsonl").write_text("")
    assert main(flags(net, out, "--resume")) == 2
    assert "log.jsonl has lost lines since the checkpoint" in capsys.readouterr().err


def test_a_finished_run_is_left_alone(net, whole, tmp_path):
    out = shutil.copytree(whole, tmp_path / "run")
    times = {path: path.stat().st_mtime_ns for path in out.iterdir()}
    assert main(flags(net, out, "--resume")) == 0
    assert {path: path.stat().st_mtime_ns for path in out.iterdir()} == times


def test_changed_settings_are_listed_and_forced(net, whole, stopped, tmp_path, capsys):
    out = shutil.copytree(stopped, tmp_path / "run")
    changes = ("--resume", "--lr", "0.01", "--weight-decay", "0.01")
    assert main(flags(net, out, *changes)) == 2
    told = capsys.readouterr().err
    assert "lr was 0.05, is 0.01; weight_decay was 0.0001, is 0.01" in told
    assert told.count("\n") == 1
    assert main(flags(net, out, *changes, "--force")) == 0
    assert json.loads((out / "recipe.json").read_text())["lr"] == 0.01
    assert not same(whole, out)
    assert main(flags(net, out, "--resume")) == 2
    assert "has ended (lr was 0.01, is 0.05" in capsys.readouterr().err


def test_settings_that_are_forced_and_refused_change_nothing(net, stopped, tmp_path, capsys):
    out = shutil.copytree(stopped, tmp_path / "run")
    before = {path: path.read_bytes() for path in out.rglob("*") if path.is_file()}
    assert main(flags(net, out, "--resume", "--force", "--alpha", "-1")) == 2
    assert "alpha is -1" in capsys.readouterr().err
    assert {path: path.read_bytes() for path in out.rglob("*") if path.is_file()} == before


def test_fewer_epochs_than_are_done_cannot_be_forced(net, stopped, tmp_path, capsys):
    out = shutil.copytree(stopped, tmp_path / "run")  # of 14 steps an epoch
    before = {path: path.read_bytes() for path in out.rglob("*") if path.is_file()}
    assert main(flags(net, out, "--resume", "--force", "--epochs", "1")) == 2
    told = capsys.readouterr().err
    assert "15 steps are done, and --epochs 1 has only 14: ask for more epochs" in told
    assert told.count("\n") == 1
    assert {path: path.read_bytes() for path in out.rglob("*") if path.is_file()} == before


def test_what_the_saved_state_depends_on_cannot_be_forced(net, stopped, capsys):
    assert main(flags(net, stopped, "--resume", "--force", "--optimizer", "adamw")) == 2
    assert "cannot go on so (optimizer was sgd, is adamw)" in capsys.readouterr().err


def test_a_diverging_loss_ends_the_run_and_keeps_its_checkpoints(net, tmp_path, capsys):
    assert main(flags(net, tmp_path / "run", "--lr", "1e30", "--checkpoint-steps", "1")) == 2
    told = capsys.readouterr().err
    assert "lower the learning rate" in told
    assert told.count("\n") == 1
    assert (tmp_path / "run" / "checkpoints").is_dir()
    assert not (tmp_path / "run" / "result.json").exists()


def test_every_recipe_is_read_and_flags_win_over_it(tmp_path):
    import tomllib

    for name in tomllib.loads(BUILT_IN.read_text()):
        config = config_of_recipe(name)
        config.check()
        for key, value in recipe_settings(name).items():
            found = getattr(config, key)
            assert found == (tuple(value) if isinstance(value, list) else value)
    own = tmp_path / "own.toml"
    own.write_text('base = "quick-digits"\nlr = 0.03\nmilestones = [1, 2.5]\nflip = true\n')
    config = config_of_recipe(str(own))
    assert (config.lr, config.milestones, config.flip) == (0.03, (1.0, 2.5), True)
    assert config.width == recipe_settings("quick-digits")["width"]
    arguments = ["--recipe", str(own), "--lr", "0.5", "--epochs", "0"]
    assert main([*arguments, "--out", str(tmp_path / "run")]) == 2  # the flag, 0 epochs, was read


def test_flags_of_settings_are_what_a_user_types():
    settings = {"lr": 0.1, "flip": True, "compile": False, "milestones": [1, 2]}
    assert as_flags(settings) == [
        "--lr", "0.1", "--flip", "--no-compile", "--milestones", "1", "2",
    ]  # fmt: skip


BAD = {
    "unknown recipe": (["--recipe", "preact50-cifar"], "unknown recipe 'preact50-cifar': did you"),
    "no name": (["--recipe"], "--recipe"),
    "alpha": (["--alpha", "0"], "alpha is 0"),
    "eta": (["--eta", "-1"], "eta is -1"),
    "epochs": (["--epochs", "0"], "epochs is 0: there is nothing to train"),
    "batch of one": (["--batch-size", "1"], "batch_size is 1: training needs at least 2"),
    "milestones": (["--milestones", "3", "1"], "must be positive and rising"),
    "too much validation": (["--validation", "5000"], "5000 examples are asked for"),
    "negative crop": (["--crop-padding", "-1"], "crop_padding is -1"),
    "check_every": (["--check-every", "-1"], "check_every is -1"),
    "keep": (["--keep", "0"], "keep is 0"),
    "negative seed": (["--seed", "-1"], "seed is -1: it must be at least 0 and below 2^32"),
    "large seed": (["--seed", str(2**32)], "seed is 4294967296: it must be"),
    "force alone": (["--force"], "--force is for --resume"),
    "loss": (["--loss", "bce-softmax"], "is for erm, mixup and manifold_mixup"),
    "objective": (["--objective", "mixupe"], "mixupe-paper"),
    "device": (["--device", "cuda:77"], "--device cuda:77 cannot be used"),
    "width": (["--width", "4"], "width is for networks of the registry"),
    "data": (["--data", "imagenet"], "unknown data set"),
}


@pytest.mark.parametrize("case", BAD)
def test_bad_input_is_one_line_and_leaves_no_result(net, tmp_path, capsys, case):
    more, message = BAD[case]
    assert main(flags(net, tmp_path / "run", *more)) == 2
    told = capsys.readouterr().err
    assert message in told
    assert told.startswith("error: ")
    assert told.count("\n") == 1
    left = {path.name for path in (tmp_path / "run").glob("*")}
    assert left <= {"lock"}


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("lrr = 0.1", "unknown key 'lrr': did you mean lr? choose one of base, "),
        ('lr = "fast"', "lr"),
        ('base = "own"', "base 'own' is no built-in recipe"),
        ("lr = ", "is no TOML"),
    ],
)
def test_bad_recipes_are_one_line(tmp_path, capsys, text, message):
    path = tmp_path / "own.toml"
    path.write_text(text)
    assert main(["--recipe", str(path), "--out", str(tmp_path / "run")]) == 2
    told = capsys.readouterr().err
    assert told.startswith(f"error: recipe {path}")
    assert message in told
    assert told.count("\n") == 1
    assert not (tmp_path / "run").exists()


def test_a_recipe_s_own_network_does_not_take_the_width_of_its_base(tmp_path):
    path = tmp_path / "own.toml"
    path.write_text('base = "quick-digits"\nmodel = "net.py:factory"\n')
    assert recipe_settings("quick-digits")["width"] == 8
    assert "width" not in recipe_settings(str(path))
    path.write_text('base = "quick-digits"\nepochs = 2\n')
    assert recipe_settings(str(path))["width"] == 8
    path.write_text('base = "quick-digits"\nmodel = "wrn28-10"\nwidth = 1\n')
    assert recipe_settings(str(path))["width"] == 1


def test_networks_that_do_not_fit_are_one_line(net, tmp_path, capsys):
    out = tmp_path / "run"
    assert main(flags(net, out, "--model", f"{net}:wrong_size")) == 2
    assert "the model cannot take a batch of shape (2, 3, 32, 32)" in capsys.readouterr().err
    save_file({"head.weight": torch.zeros(10, 3)}, tmp_path / "other.safetensors")
    more = ("--checkpoint", str(tmp_path / "other.safetensors"))
    assert main(flags(net, tmp_path / "second", *more)) == 2
    assert "is of another model" in capsys.readouterr().err


def test_a_class_of_one_example_is_no_obstacle_to_validation(tmp_path, monkeypatch):
    labels = torch.tensor([0] * 20 + [1] * 19 + [2])
    data = Examples(
        name="mini", x_train=torch.randn(40, 3), y_train=labels, x_test=torch.randn(4, 3),
        y_test=labels[:4], num_classes=3, source="made here",
    )  # fmt: skip
    monkeypatch.setattr(deep.training, "load_examples", lambda name, folder: data)
    out = ["--out", str(tmp_path / "run"), "--epochs", "1", "--batch-size", "8"]
    assert main(["--model", "mlp", "--width", "4", "--validation", "10", *out]) == 0
    result = json.loads((tmp_path / "run" / "result.json").read_text())
    assert result["examples"] == {"train": 30, "validation": 10, "test": 4}


def test_labels_outside_the_classes_are_refused():
    with pytest.raises(InputError, match="outside 0…2"):
        as_targets(torch.tensor([0, 3]), 3)


def test_a_folder_that_holds_a_run_is_not_overwritten(net, whole, capsys):
    assert main(flags(net, whole)) == 2
    assert "holds a run: add --resume" in capsys.readouterr().err


def test_networks_that_batch_norm_alone_couples_are_built_for_every_objective():
    """The quick recipe's network takes every objective: none asks for what it has not."""
    from deep.models import build_model
    from deep.objective import OBJECTIVES

    model = build_model("preact18", width=2)
    x, targets = torch.randn(4, 3, 32, 32), torch.eye(10)[:4]
    for name in OBJECTIVES:
        generator = torch.Generator().manual_seed(0)
        objective = build_objective(name, model, mean=x.mean(0), generator=generator)
        objective(x, targets).backward()
        assert all(p.grad is not None for p in model.parameters())


def test_a_run_refused_at_its_start_leaves_the_folder_to_the_corrected_command(net, tmp_path):
    out = tmp_path / "run"
    assert main(flags(net, out, "--model", f"{net}:wrong_size")) == 2
    assert main(flags(net, out, "--epochs", "1", "--objective", "erm")) == 0


def test_a_recipes_width_is_that_of_its_own_network(net, tmp_path):
    shared = ["--recipe", "quick-digits", "--epochs", "0.05", "--check-every", "0"]
    assert main([*shared, "--model", f"{net}:Net", "--out", str(tmp_path / "own")]) == 0
    assert json.loads((tmp_path / "own" / "recipe.json").read_text())["width"] is None
    assert not read_lines(tmp_path / "own" / "checks.jsonl")
    assert main([*shared, "--model", "mlp", "--width", "3", "--out", str(tmp_path / "mlp")]) == 0
    assert json.loads((tmp_path / "mlp" / "recipe.json").read_text())["width"] == 3
