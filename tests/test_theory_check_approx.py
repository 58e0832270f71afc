"""The command: real runs of it as a user starts it, and every bad input it must name."""

import json
import math
import signal
import subprocess
import sys
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
import torch
from graph_cases import drawn_graphs, text_of
from safetensors.torch import save_file

from deep.data.examples import in_proportion
from deep.data.graphs import load_graph_examples
from deep.data.images import load_images
from deep.models import build_model
from deep.models.from_file import model_from_file
from theory import read_reports
from theory.check_approx import Config, main, measure

ROOT = Path(__file__).resolve().parent.parent
NET = """
import torch
from torch import nn

class Net(nn.Module):
    def __init__(self, num_classes):
        super().__init__()
        self.conv = nn.Conv2d(3, 4, 5, stride=4)
        self.norm = nn.BatchNorm2d(4)
        self.head = nn.Linear(4 * 7 * 7, num_classes)

    def forward(self, x):
        return self.head(torch.nn.functional.gelu(self.norm(self.conv(x))).flatten(1))

def net(num_classes):
    return Net(num_classes)

def one_logit():
    return nn.Sequential(nn.Flatten(), nn.Linear(3072, 1))

def wrong_size():
    return nn.Sequential(nn.Flatten(), nn.Linear(99, 10))

def no_module():
    return "net"

def not_a_number():
    model = Net(10)
    with torch.no_grad():
        model.head.bias[0] = float("nan")
    return model

class Rounding(torch.autograd.Function):
    @staticmethod
    def forward(ctx, x):
        return x.round()

class Rounded(Net):
    def forward(self, x):
        return super().forward(Rounding.apply(x))

class Fixed(nn.Module):
    def forward(self, x):
        return x.mean(1).flatten(1)[:, ::103]

def fixed():
    return Fixed()

def rounded():
    return Rounded(10)
"""
QUICK = ("--samples", "12", "--pair-samples", "3", "--batch-size", "64")


@pytest.fixture
def net(tmp_path):
    path = tmp_path / "net.py"
    path.write_text(NET)
    return path


def as_user(*flags, cwd):
    return subprocess.run(
        [sys.executable, "-m", "theory.check_approx", *map(str, flags)],
        capture_output=True, text=True, cwd=cwd, timeout=300, env=None,
    )  # fmt: skip


def test_command_trains_checks_and_writes_everything(net, tmp_path):
    """A user's own network, from a shell: exit 0, the table, and files that agree with it."""
    out = tmp_path / "out"
    done = as_user(
        "--model", f"{net}:net", *QUICK, "--epochs", "1", "--check-every", "0.5", "--out", out,
        cwd=ROOT,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    assert "Traceback" not in done.stderr
    assert done.stdout.count("error of q̂") == 3
    assert done.stdout.count("clean loss") == 3
    for name in ("forwards", "q̂ + last layer's bias", "difference quotient", "exact q"):
        assert name in done.stdout
    for claim in ("L_mix = L_std + R", "q̂ ≈ q", "q̂ trains as q does", "Derivatives are right"):
        assert claim in done.stdout

    reports = read_reports(out / "report.json")
    assert [r.training["epoch"] for r in reports] == pytest.approx([0, 12 / 23, 1], abs=1e-5)
    assert reports[0].claims["self_check"].verdict == "HOLDS"
    content = json.loads((out / "report.json").read_text())
    assert content["command"].startswith("python -m theory.check_approx --model")

    samples = pd.read_csv(out / "samples.csv")
    assert list(samples.columns[:2]) == ["epoch", "sample"]
    for report, (_, rows) in zip(reports, samples.groupby("epoch"), strict=True):
        np.testing.assert_allclose(rows["q"], report.samples["q"], rtol=1e-12)
        error = np.linalg.norm(rows["q"] - rows["q_hat"]) / np.linalg.norm(rows["q"])
        assert report.claims["q_hat"].value == pytest.approx(error)
    for name in ("q", "gaps", "attribution", "errors", "agreement", "overview"):
        assert (out / f"{name}.png").read_bytes().startswith(b"\x89PNG")
    assert not [path for path in out.iterdir() if path.name.startswith(".")]


def test_q_equals_explicit_jacobians_on_the_probe(net):
    """The whole pipeline against jacrev of the same network on the same images."""
    config = Config(
        model=f"{net}:net", epochs=0, samples=12, pair_samples=2, seed=3, dtype="float64"
    )
    (report,) = measure(config)
    torch.manual_seed(3)
    model = model_from_file(f"{net}:net", num_classes=10).double().eval().requires_grad_(False)
    images = load_images("digits")
    mean = images.x_train.mean(0).double()
    found = 0
    for x, y in zip(images.x_train.double(), images.y_train, strict=True):
        f = model(x[None])[0]
        loss = float(torch.nn.functional.cross_entropy(f, y))
        row = report.samples.index[np.isclose(report.samples["loss"], loss, rtol=1e-10)]
        if len(row) == 0:
            continue
        found += 1
        jacobian = torch.func.jacrev(lambda z: model(z[None])[0])(x).flatten(1)
        residual = f.softmax(0) - torch.nn.functional.one_hot(y, 10)
        q = float(residual @ jacobian @ (mean - x).flatten())
        assert report.samples["q"][row[0]] == pytest.approx(q, rel=1e-6)
    assert found == 12


def test_equal_seeds_give_equal_reports_and_others_differ(net):
    def samples(seed):
        config = Config(
            model=f"{net}:net", epochs=0.2, samples=12, pair_samples=2, gradients=False, seed=seed
        )
        return measure(config)[-1].samples

    pd.testing.assert_frame_equal(samples(0), samples(0))
    assert not np.allclose(samples(0), samples(1))


@pytest.mark.parametrize("objective", ["erm", "mixup", "mixupe-paper", "mixupe-exact"])
def test_every_objective_lowers_the_loss(net, objective):
    config = Config(
        model=f"{net}:net", objective=objective, epochs=1, check_every=1, samples=20,
        pair_samples=2, gradients=False,
    )  # fmt: skip
    reports = measure(config)
    assert reports[-1].samples["loss"].mean() < 0.7 * reports[0].samples["loss"].mean()


def test_checkpoint_is_what_is_checked(net, tmp_path):
    model = model_from_file(f"{net}:net", num_classes=10)
    with torch.no_grad():
        model.head.weight.zero_()
        model.head.bias.zero_()
    save_file(model.state_dict(), tmp_path / "zero.safetensors")
    config = Config(
        model=f"{net}:net", epochs=0, samples=10, pair_samples=2,
        checkpoint=tmp_path / "zero.safetensors", gradients=False,
    )  # fmt: skip
    (report,) = measure(config)
    np.testing.assert_allclose(report.samples["loss"], math.log(10), rtol=1e-6)
    assert (report.samples["q_hat"] == 0).all()


@pytest.mark.parametrize("flags", [["--batch-norm", "batch"], ["--head", "sigmoid"],
                                   ["--order", "2"], ["--dtype", "float64"],
                                   ["--alpha", "0.2", "--beta", "3"],
                                   ["--tolerance", "0.5"]])  # fmt: skip
def test_every_option_runs(net, tmp_path, flags, capsys):
    code = main(
        ["--model", f"{net}:net", *QUICK, "--epochs", "0", *flags, "--out", str(tmp_path / "o")]
    )
    assert code == 0
    assert "FAILS" in capsys.readouterr().out


def test_single_logit_needs_and_takes_the_sigmoid_head(net, tmp_path, capsys):
    """Digits have ten classes, so a single logit is refused with the reason."""
    code = main(["--model", f"{net}:one_logit", "--head", "sigmoid", "--out", str(tmp_path / "o")])
    assert code == 2
    assert "outside 0…1: the model has 1 logits" in capsys.readouterr().err


def test_fail_on_sets_the_exit_code(net, tmp_path, capsys):
    flags = ["--model", f"{net}:net", *QUICK, "--epochs", "0", "--no-gradients",
             "--out", str(tmp_path / "o")]  # fmt: skip
    assert main([*flags, "--fail-on", "q_hat>1e6", "pearson<-2"]) == 0
    capsys.readouterr()
    assert main([*flags, "--fail-on", "q_hat>1e6", "q_hat>0"]) == 1
    assert capsys.readouterr().err.startswith("failed on q_hat>0 (q_hat is ")


def truncated(folder):
    path = folder / "t.safetensors"
    save_file({"head.weight": torch.ones(10, 196)}, path)
    path.write_bytes(path.read_bytes()[:100])
    return path


def other_model(folder):
    path = folder / "o.safetensors"
    save_file({"weight": torch.ones(2, 2)}, path)
    return path


def a_file(folder):
    path = folder / "file"
    path.write_text("")
    return path


BAD = {
    "no model": (["--samples", "3"], "--model"),
    "unknown flag": (["--model", "lenet", "--foo", "3"], "--foo"),
    "misspelled flag": (["--model", "lenet", "--sampls", "3"], "perhaps you meant --samples"),
    "misspelled, then missing": (["--modle", "lenet"], "error: Unrecognized options: --modle"),
    "unknown choice": (["--model", "lenet", "--head", "tanh"], "--head"),
    "no number": (["--model", "lenet", "--alpha", "x"], "--alpha"),
    "unknown model": (["--model", "preact5"], "did you mean preact50"),
    "missing model file": (["--model", "{dir}/no.py:net"], "does not exist"),
    "missing factory": (["--model", "{net}:nothing"], "defines no factory"),
    "factory returns no module": (["--model", "{net}:no_module"], "must return a torch.nn.Module"),
    "wrong input size": (["--model", "{net}:wrong_size"], "cannot take a batch of shape"),
    "nan in weights": (["--model", "{net}:not_a_number"], "head.bias holds NaN"),
    "no derivative rule": (["--model", "{net}:rounded"], "no derivative rule"),
    "missing checkpoint": (["--model", "{net}:net", "--checkpoint", "{dir}/no"], "no"),
    "truncated checkpoint": (["--model", "{net}:net", "--checkpoint", truncated], "checkpoint"),
    "other checkpoint": (["--model", "{net}:net", "--checkpoint", other_model], "checkpoint"),
    "alpha zero": (["--model", "lenet", "--alpha", "0"], "alpha is 0"),
    "beta negative": (["--model", "lenet", "--beta", "-1"], "beta is -1"),
    "no samples": (["--model", "lenet", "--samples", "0"], "--samples is 0"),
    "too many samples": (["--model", "lenet", "--samples", "99999"], "1437 training examples"),
    "epochs negative": (["--model", "lenet", "--epochs", "-1"], "--epochs is -1"),
    "epochs nan": (["--model", "lenet", "--epochs", "nan"], "--epochs is nan"),
    "check-every zero": (["--model", "lenet", "--check-every", "0"], "--check-every is 0"),
    "order zero": (["--model", "lenet", "--order", "0"], "--order is 0"),
    "order 2 in batch mode": (
        ["--model", "{net}:net", "--order", "2", "--batch-norm", "batch"],
        "refused",
    ),
    "device": (["--model", "lenet", "--device", "cuda:99"], "--device cuda:99"),
    "unknown device": (["--model", "lenet", "--device", "toaster"], "--device toaster"),
    "unknown data": (
        ["--model", "lenet", "--data", "mnist1"],
        "unknown data set 'mnist1': did you mean mnist?",
    ),
    "missing data folder": (
        ["--model", "lenet", "--data", "cifar10", "--data-dir", "{dir}/no"],
        "{dir}/no",
    ),
    "negative seed": (["--model", "lenet", "--seed", "-1"], "seed is -1: it must be at least 0"),
    "large seed": (["--model", "lenet", "--seed", str(2**32)], "below 2^32"),
    "nodes zero": (["--model", "lenet", "--nodes", "0"], "--nodes is 0"),
    "pair-samples zero": (["--model", "lenet", "--pair-samples", "0"], "--pair-samples is 0"),
    "pair-seconds": (["--model", "lenet", "--pair-seconds", "-1"], "--pair-seconds is -1"),
    "tolerance zero": (["--model", "lenet", "--tolerance", "0"], "--tolerance is 0"),
    "tolerance nan": (["--model", "lenet", "--tolerance", "nan"], "--tolerance is nan"),
    "bad condition": (["--model", "lenet", "--fail-on", "qhat>1"], "did you mean q_hat?"),
    "diverging": (["--model", "{net}:net", "--lr", "1e30", "--no-gradients"], "learning rate"),
}


@pytest.mark.parametrize("case", BAD)
def test_bad_input_is_one_line_and_exit_2(case, net, tmp_path, capsys):
    flags, message = BAD[case]
    known = {"net": net, "dir": tmp_path}
    flags = [str(f(tmp_path)) if callable(f) else f.format(**known) for f in flags]
    out = tmp_path / "out"
    extra = () if "samples" in case else ("--samples", "12")
    extra = extra if "pair" in case else (*extra, "--pair-samples", "2")
    code = main([*flags, *extra, "--out", str(out)])
    captured = capsys.readouterr()
    assert code == 2
    lines = captured.err.strip().splitlines()
    assert len(lines) == 1
    assert lines[0].startswith("error: ")
    assert "──" not in lines[0]
    assert "---" not in lines[0]
    assert message.format(**known) in lines[0]
    if case != "diverging":  # whose check before training was finished, and is kept
        assert not out.exists()


def test_a_network_without_parameters_is_checked_but_not_trained(net, tmp_path, capsys):
    flags = ["--model", f"{net}:fixed", *QUICK, "--no-gradients", "--out"]
    assert main([*flags, str(tmp_path / "checked"), "--epochs", "0"]) == 0
    capsys.readouterr()
    assert main([*flags, str(tmp_path / "trained"), "--epochs", "1"]) == 2
    err = capsys.readouterr().err
    assert "no parameter of the network requires a gradient" in err
    assert err.count("\n") == 1
    assert not (tmp_path / "trained").exists()


def test_an_unwritable_folder_is_named_before_any_work(net, tmp_path, capsys):
    path = a_file(tmp_path) / "out"
    assert main(["--model", f"{net}:net", "--out", str(path)]) == 2
    captured = capsys.readouterr()
    assert captured.out == ""
    assert captured.err.count("\n") == 1
    assert "cannot write to" in captured.err
    assert str(path) in captured.err


def test_what_was_checked_before_a_fault_is_kept(net, tmp_path, capsys):
    out = tmp_path / "out"
    flags = ["--model", f"{net}:net", *QUICK, "--lr", "1e30", "--no-gradients", "--out", str(out)]
    assert main(flags) == 2
    assert [r.training["epoch"] for r in read_reports(out / "report.json")] == [0]


def test_nothing_of_an_earlier_check_passes_for_this_ones(net, tmp_path):
    out = tmp_path / "out"
    flags = ["--model", f"{net}:net", *QUICK, "--epochs", "0", "--no-gradients", "--out", str(out)]
    assert main([*flags, "--order", "2", "--html"]) == 0
    (out / "mine.png").write_bytes(b"")
    first = {path.name for path in out.iterdir()}
    assert {"report.html", "orders.png"} <= first
    assert main(flags) == 0
    left = {path.name for path in out.iterdir()}
    assert not {"report.html", "orders.png"} & left
    assert {"report.json", "samples.csv", "overview.png", "mine.png"} <= left


def test_each_checkpoint_has_a_folder_of_its_own(net, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    state = model_from_file(f"{net}:net", num_classes=10).state_dict()
    for name in ("a.safetensors", "b.safetensors"):
        save_file(state, name)
        flags = ["--model", f"{net}:net", *QUICK, "--epochs", "0", "--no-gradients"]
        assert main([*flags, "--checkpoint", name]) == 0
    folders = sorted(path.name for path in Path("runs/check_approx").iterdir())
    assert [folder[-13:] for folder in folders] == ["a.safetensors", "b.safetensors"]


def test_interrupt_says_what_is_kept_and_where(net, tmp_path):
    """SIGINT in the middle of training: exit 130, one line, and the first check stays readable."""
    out = tmp_path / "out"
    command = [sys.executable, "-m", "theory.check_approx", "--model", f"{net}:net", *QUICK,
               "--epochs", "1000", "--check-every", "1000", "--out", str(out)]  # fmt: skip
    process = subprocess.Popen(
        command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True,
        # A shell's background jobs ignore the signal, and so would what they start.
        preexec_fn=lambda: signal.signal(signal.SIGINT, signal.default_int_handler),
    )  # fmt: skip
    process.stdout.readline()  # the first check is done
    process.send_signal(signal.SIGINT)
    _, err = process.communicate(timeout=120)
    assert process.returncode == 130
    assert err == f"interrupted: 1 finished checks are in {out}\n"
    assert len(read_reports(out / "report.json")) == 1


def test_debug_shows_the_traceback_and_still_exits_2(capsys):
    assert main(["--model", "nothing", "--debug"]) == 2
    assert "Traceback" in capsys.readouterr().err


def test_help_describes_every_flag(capsys):
    assert main(["--help"]) == 0
    text = capsys.readouterr().out
    for flag in ("model", "checkpoint", "data-dir", "objective", "epochs", "check-every", "order",
                 "alpha", "batch-norm", "fail-on", "threshold.q-hat"):  # fmt: skip
        assert f"--{flag}" in text


@pytest.fixture
def molecules(tmp_path):
    """A folder with a miniature MUTAG."""
    (tmp_path / "MUTAG.txt").write_text(text_of(drawn_graphs(count=60)))
    return tmp_path


@pytest.mark.parametrize("name", ["gin", "gin-bias-free"])
def test_graphs_are_checked_from_their_embeddings_on(name, molecules):
    """q = (g − y)ᵀ W (z̄ − z) by the network's own matrices, and (g − y)ᵀ b the homogeneity gap."""
    config = Config(
        model=name, data="mutag", data_dir=molecules, epochs=0, samples=12, pair_samples=3,
        dtype="float64", seed=3,
    )  # fmt: skip
    (report,) = measure(config)
    torch.manual_seed(3)
    data = load_graph_examples("MUTAG", molecules)
    model = build_model(name, num_classes=2, in_channels=3).eval()
    chosen, _ = in_proportion(data.y_train, 12, 3)
    with torch.no_grad():
        z, mean = model.embed(data.x_train[chosen]).double(), model.embed(data.x_train).mean(0)
        w = torch.cat([layer.weight for layer in model.head.layers], 1).double()
        b = sum(layer.bias for layer in model.head.layers) if name == "gin" else torch.zeros(2)
    residual = (z @ w.T + b).softmax(1) - torch.eye(2)[data.y_train[chosen]]
    expected = (residual * ((mean - z) @ w.T)).sum(1)
    np.testing.assert_allclose(report.samples["q"], expected, rtol=1e-5, atol=1e-6)
    gap = residual @ b.double()
    np.testing.assert_allclose(report.samples["homogeneity_gap"], gap, rtol=1e-5, atol=1e-7)
    assert report.claims["self_check"].verdict == "HOLDS"
    assert report.claims["identity"].verdict == "HOLDS"


def test_command_trains_on_graphs_and_checks_as_it_goes(molecules, tmp_path, capsys):
    out = tmp_path / "out"
    flags = ["--model", "gin", "--data", "MUTAG", "--data-dir", str(molecules), "--lr", "0.001"]
    flags += ["--samples", "12", "--pair-samples", "3", "--batch-size", "16", "--out", str(out)]
    assert main([*flags, "--epochs", "2", "--check-every", "1"]) == 0
    first, *_, last = read_reports(out / "report.json")
    assert last.training["epoch"] == 2
    assert not np.allclose(first.samples["q"], last.samples["q"])
    assert "MUTAG.txt" in last.settings["source"]
    assert capsys.readouterr().out.count("error of q̂") == 3


@pytest.mark.parametrize(("model", "data"), [("mlp", "MUTAG"), ("gin", "digits")])
def test_graphs_need_a_network_for_graphs_and_nothing_else_does(model, data, molecules, capsys):
    flags = ["--model", model, "--data", data, "--epochs", "0"]
    flags += ["--data-dir", str(molecules)] if data == "MUTAG" else []
    assert main(flags) == 2
    message = capsys.readouterr().err
    assert "do not go together" in message
    assert message.count("\n") == 1
