"""The figure of losses shows the logs' numbers, and means where all seeds have one."""

import json

import numpy as np
import pytest
from matplotlib.figure import Figure

from figures.__main__ import main
from figures.losses import draw, plot, read
from theory.errors import InputError


def run(objective, seed, losses):
    log = [
        {"epoch": k + 1, "train_loss": v, "test_loss": 7.0, "test_error": v and v / 10}
        for k, v in enumerate(losses)
    ]  # fmt: skip
    recipe = {"objective": objective, "seed": seed, "model": "mlp", "width": 4, "data": "digits"}
    return {"recipe": recipe, "result": None, "log": log, "checks": []}


@pytest.fixture
def record(tmp_path):
    runs = [
        run("erm", 0, [1.0, 0.5, 0.2]), run("erm", 1, [2.0, 1.5]),
        run("mixup", 0, [3.0, 2.0, None]),
    ]  # fmt: skip
    path = tmp_path / "runs.jsonl"
    path.write_text("".join(json.dumps(r) + "\n" for r in runs))
    return path


def test_means_over_seeds_and_the_seeds_as_points(record):
    ax = Figure().add_subplot()
    draw(ax, read(record), "train_loss", 10)
    mean, *points = (line.get_xydata() for line in ax.lines[:3])
    np.testing.assert_allclose(mean, [[1, 15], [2, 10]])
    np.testing.assert_allclose(points[0], [[1, 10], [2, 5], [3, 2]])
    np.testing.assert_allclose(points[1][:2], [[1, 20], [2, 15]])
    assert [line.get_label() for line in (ax.lines[0], ax.lines[3])] == ["erm", "mixup"]
    np.testing.assert_allclose(ax.lines[3].get_xydata(), [[1, 30], [2, 20]])  # no number at 3


def test_three_panels_with_names_and_units(record):
    axes = plot(read(record)).axes
    assert [ax.get_title(loc="left") or ax.get_title() for ax in axes] == [
        "Clean training loss", "Test loss", "Test error",
    ]  # fmt: skip
    assert all(ax.get_xlabel() == "epoch" and "[" in ax.get_ylabel() for ax in axes)
    np.testing.assert_allclose(axes[2].lines[3].get_ydata(), [30, 20])


def test_a_sweep_over_networks_says_so_and_is_drawn_without_its_checks(tmp_path, capsys):
    """Checks of several networks are not to be averaged, which costs their figure alone."""
    runs = [run("erm", 0, [1.0, 0.5]), run("erm", 0, [1.5, 0.7])]
    runs[1]["recipe"]["model"] = "vgg11"
    for one in runs:
        one["checks"] = [{"epoch": 1}]
    path = tmp_path / "runs.jsonl"
    path.write_text("".join(json.dumps(r) + "\n" for r in runs))
    assert plot(read(path)).get_suptitle() == "mlp, width 4 on digits and 1 more; one seed each"
    assert main([str(path)]) == 0
    assert "training" not in capsys.readouterr().out
    assert "digits and 1 more" in (tmp_path / "losses.txt").read_text()


def test_the_command_draws_losses_also_without_checks(record, capsys):
    assert main([str(record)]) == 0
    drawn = [str(record.parent / f"losses.{suffix}") for suffix in ("png", "pdf", "txt")]
    assert capsys.readouterr().out.split() == drawn


def test_runs_without_an_epoch_are_named(tmp_path):
    (tmp_path / "runs.jsonl").write_text(json.dumps(run("erm", 0, [])) + "\n")
    with pytest.raises(InputError, match="holds no epoch that has ended"):
        read(tmp_path / "runs.jsonl")
