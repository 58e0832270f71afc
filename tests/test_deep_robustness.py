"""The command measures run folders, puts seeds together, and names bad input in one line."""

import json

import numpy as np
import pytest
import torch

from deep.checkpoint import save_weights
from deep.data.images import load_images
from deep.deformations import DEFORMATIONS, PUBLISHED, deform
from deep.models import build_model
from deep.robustness import main, summarise, table
from deep.run_folder import labels

RECIPE = {"model": "mlp", "width": 8, "data": "digits", "data_dir": None, "head": "softmax"}
FAST = ["--samples", "40", "--attack-steps", "2", "--device", "cpu"]


def make_run(folder, objective="erm", seed=0, **changes):
    folder.mkdir()
    torch.manual_seed(seed)
    model = build_model("mlp", num_classes=10, in_channels=3, image_size=32, width=8)
    save_weights(model, folder / "weights.safetensors")
    recipe = {**RECIPE, "objective": objective, "seed": seed, **changes}
    (folder / "recipe.json").write_text(json.dumps(recipe))
    return model


def record_of(folder):
    return json.loads((folder / "robustness.json").read_text())


def test_runs_are_measured_and_grouped_by_objective(tmp_path, capsys):
    for name, objective, seed in (("a", "erm", 0), ("b", "mixup", 0), ("c", "erm", 1)):
        make_run(tmp_path / name, objective, seed)
    folders = [str(tmp_path / name) for name in "abc"]
    assert main([*folders, "--out", str(tmp_path), "--curves", *FAST]) == 0
    out, record = capsys.readouterr().out, record_of(tmp_path)
    assert "erm (2)" in out
    assert "mixup (1)" in out
    assert "talk" not in out  # its numbers are CIFAR-100's
    erm, mixup = record["groups"]
    assert (erm["seeds"], mixup["seeds"]) == ([0, 1], [0])
    values = [record["runs"][k]["measures"]["rotation 40"]["accuracy"] for k in (0, 2)]
    assert erm["measures"]["rotation 40"]["accuracy"]["mean"] == pytest.approx(np.mean(values))
    assert mixup["measures"]["clean"]["accuracy"]["sd"] is None
    for run in record["runs"]:
        measures = run["measures"]
        assert measures["rotation=0"] == measures["shear=0"] == measures["zoom=1"]
        assert measures["zoom=0.6"] == measures["zoom in 60%"]
        assert measures["clean"]["nll"] < measures["FGSM"]["nll"]
        assert measures["zoom=1"] == measures["clean"]


def test_numbers_are_those_of_the_network_by_hand(tmp_path):
    """Deformed in pixel units, normalised, then the share of right answers, counted anew."""
    model, data = make_run(tmp_path / "a").eval(), load_images("digits")
    assert main([str(tmp_path / "a"), "--out", str(tmp_path), "--epsilon", "0", "--seed", "3"]) == 0
    measures = record_of(tmp_path)["runs"][0]["measures"]
    assert list(measures) == ["clean", *(law.name for law in DEFORMATIONS)]
    mean, std = (torch.tensor(v)[:, None, None] for v in (data.mean, data.std))
    n = len(data.x_test)
    for law in DEFORMATIONS:
        pixels = deform(data.x_test * std + mean, law, torch.arange(n), fill=torch.zeros(3), seed=3)
        with torch.no_grad():
            right = (model((pixels - mean) / std).argmax(1) == data.y_test).double().numpy()
        found = measures[law.name]
        assert found["accuracy"] == pytest.approx(right.mean(), abs=1.5 / n)  # a near tie may flip
        assert found["accuracy_se"] == pytest.approx(right.std() / n**0.5, abs=1e-3)


def test_fill_after_normalisation_is_the_mean_colour(tmp_path):
    make_run(tmp_path / "a")
    found = {}
    for fill in ("black", "mean"):
        out = tmp_path / fill
        assert main([str(tmp_path / "a"), "--out", str(out), "--fill", fill, *FAST]) == 0
        found[fill] = record_of(out)["runs"][0]["measures"]
    assert found["black"]["clean"] == found["mean"]["clean"]
    assert found["black"]["zoom out 140%"] != found["mean"]["zoom out 140%"]
    assert found["black"]["zoom in 60%"] == found["mean"]["zoom in 60%"]  # nothing is filled


def test_results_do_not_depend_on_the_batch_size(tmp_path):
    make_run(tmp_path / "a")
    found = []
    for size in ("7", "40"):
        out = tmp_path / size
        assert main([str(tmp_path / "a"), "--out", str(out), "--batch-size", size, *FAST]) == 0
        found.append(record_of(out)["runs"][0]["measures"])
    for name, numbers in found[0].items():
        assert numbers == pytest.approx(found[1][name], rel=1e-5, abs=1e-6)


def test_a_network_by_its_weights(tmp_path):
    make_run(tmp_path / "a")
    flags = ["--model", "mlp", "--width", "8", "--data", "digits",
             "--checkpoint", str(tmp_path / "a" / "weights.safetensors")]  # fmt: skip
    assert main([*flags, "--out", str(tmp_path / "x"), *FAST]) == 0
    assert main([str(tmp_path / "a"), "--out", str(tmp_path / "y"), *FAST]) == 0
    x, y = (record_of(tmp_path / name)["runs"][0]["measures"] for name in "xy")
    assert x == y


def test_data_by_a_name_in_any_case(tmp_path):
    """As deep.train takes it."""
    make_run(tmp_path / "a", data="Digits")
    make_run(tmp_path / "b", seed=1)
    folders = [str(tmp_path / name) for name in "ab"]
    assert main([*folders, "--out", str(tmp_path / "x"), *FAST]) == 0
    record = record_of(tmp_path / "x")
    assert record["data"] == "digits"
    assert [group["seeds"] for group in record["groups"]] == [[0, 1]]
    assert main([*folders, "--data", "DIGITS", "--out", str(tmp_path / "y"), *FAST]) == 0
    assert record_of(tmp_path / "y")["groups"] == record["groups"]


def test_labels_name_what_differs_besides_seeds():
    recipes = [
        {"objective": "erm", "seed": 0, "eta": 1, "check_every": 0},
        {"objective": "erm", "seed": 1, "eta": 1, "check_every": 2},
        {"objective": "mixup", "seed": 0, "eta": 1},
    ]
    assert labels(recipes) == ["erm", "erm", "mixup"]
    recipes[2]["eta"] = 0.1
    assert labels(recipes) == ["erm, eta 1", "erm, eta 1", "mixup, eta 0.1"]


def run_entry(label, seed, accuracy):
    one = {"accuracy": accuracy, "accuracy_se": 0.01, "nll": 1.0, "ece": 0.1}
    return {"label": label, "seed": seed, "measures": dict.fromkeys(["clean", *PUBLISHED], one)}


def test_spread_over_seeds_and_the_talks_columns():
    """0.5, 0.6, 0.7: mean 0.6, standard deviation 0.1."""
    groups = summarise([run_entry("erm", k, 0.5 + 0.1 * k) for k in range(3)])
    assert groups[0]["measures"]["clean"]["accuracy"] == pytest.approx(
        {"mean": 0.6, "sd": 0.1, "se": 0.01}
    )
    settings = {"fill": "black", "shear": "tangent", "epsilon": 0.03, "attack_steps": 10}
    published = {"source": "somewhere", "columns": ["Mixup", "Manifold Mixup", "Ours"],
                 "accuracy": PUBLISHED}  # fmt: skip
    text = table({"groups": groups, "published": published, "samples": 100, "data": "cifar100",
                  "settings": settings})  # fmt: skip
    line = next(line for line in text.splitlines() if line.startswith("shear 57.3"))
    assert line.split() == ["shear", "57.3", "60.00", "±", "10.00", "39.7", "44.27", "43.87"]
    assert "talk: somewhere" in text


@pytest.mark.parametrize(
    ("flags", "message"),
    [
        ([], "name run folders"),
        (["a", "--model", "mlp"], "two ways"),
        (["--model", "mlp", "--data", "digits"], "all of"),
        (["missing"], "cannot read"),
        (["a", "a"], "stands twice"),
        (["a", "same-seed"], "seed 0"),
        (["a", "svhn"], "compare one set"),
        (["unfinished"], "let its training end"),
        (["bare"], "lacks data, data_dir"),
        (["wide"], "checkpoint"),
        (["a", "--epsilon", "8"], "epsilon is 8.0"),
        (["a", "--samples", "361"], "361 examples"),
        (["a", "--samples", "0"], "samples is 0"),
        (["a", "--device", "nowhere"], "cannot be used"),
        (["a", "--fill", "white"], "fill"),
        (["a", "--seed", str(2**63)], "must be below 2^63"),
        (["typed"], "width is 'x'"),
    ],
)
def test_bad_input_is_one_line_and_writes_nothing(tmp_path, monkeypatch, capsys, flags, message):
    monkeypatch.chdir(tmp_path)
    make_run(tmp_path / "a")
    make_run(tmp_path / "same-seed")
    make_run(tmp_path / "svhn", data="svhn")
    make_run(tmp_path / "wide", width=9)
    make_run(tmp_path / "typed")
    typed = {**RECIPE, "objective": "erm", "seed": 0, "width": "x"}
    (tmp_path / "typed" / "recipe.json").write_text(json.dumps(typed))
    for name, recipe in (("unfinished", {**RECIPE, "objective": "erm", "seed": 0}), ("bare", {})):
        (tmp_path / name).mkdir()
        (tmp_path / name / "recipe.json").write_text(json.dumps(recipe))
    assert main([*flags, "--out", "out"]) == 2
    captured = capsys.readouterr()
    assert message in captured.err
    assert captured.err.count("\n") == 1
    assert not (tmp_path / "out" / "robustness.json").exists()
