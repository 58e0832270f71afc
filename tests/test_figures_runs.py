"""Runs are read alike from a run's folder, a folder of runs and a campaign's record."""

import json
import math

import pytest

from figures.runs import name_of, number, read_runs
from theory.errors import InputError
from theory.record import json_line


def run_of(seed):
    return {
        "label": "mixup",
        "recipe": {
            "model": "preact18",
            "width": 8,
            "data": "digits",
            "objective": "mixup",
            "seed": seed,
        },
        "result": {"seconds": 1.5},
        "log": [{"epoch": 1.0, "loss": 2.0 + seed}],
        "checks": [{"epoch": 0.0, "pearson": None, "name": "line\u2028separator"}],
    }


def write_folder(folder, run):
    folder.mkdir(parents=True)
    for name in ("recipe", "result"):
        (folder / f"{name}.json").write_text(json.dumps(run[name]))
    for name in ("log", "checks"):
        (folder / f"{name}.jsonl").write_text("".join(map(json_line, run[name])))


def test_every_layout_gives_the_same_runs(tmp_path):
    runs = [run_of(0), run_of(1)]
    for run in runs:
        write_folder(tmp_path / "runs" / f"seed{run['recipe']['seed']}", run)
    record = tmp_path / "campaign" / "runs.jsonl"
    record.parent.mkdir()
    record.write_text("".join(map(json_line, runs)))
    assert read_runs(tmp_path / "runs") == runs
    assert read_runs(record) == runs
    assert read_runs(record.parent) == runs
    assert read_runs(tmp_path / "runs" / "seed1") == runs[1:]


def test_runs_that_differ_in_more_than_their_seeds_are_named_by_it(tmp_path):
    for alpha in (0.5, 1.0):
        run = run_of(0)
        run["recipe"] |= {"alpha": alpha, "recipe": f"sweep-{alpha}"}
        write_folder(tmp_path / f"alpha{alpha}", run)
    assert [run["label"] for run in read_runs(tmp_path)] == ["mixup, alpha 0.5", "mixup, alpha 1.0"]


def test_a_run_that_goes_on_is_read_as_far_as_it_is_written(tmp_path):
    write_folder(tmp_path / "run", run_of(0))
    (tmp_path / "run" / "result.json").unlink()
    (tmp_path / "run" / "checks.jsonl").unlink()
    with (tmp_path / "run" / "log.jsonl").open("a") as log:
        log.write('{"epoch": 2.0, "lo')
    (run,) = read_runs(tmp_path / "run")
    assert run == run_of(0) | {"result": None, "checks": []}


@pytest.mark.parametrize(
    ("name", "text", "complaint"),
    [
        ("runs.jsonl", "", "no record of runs"),
        ("runs.jsonl", '{"epoch": 1}\n', "no record of runs"),
        ("runs.jsonl", "epoch\n", "no JSON"),
        ("recipe.json", "[1]", "no record or settings"),
        ("notes.txt", "", "no run"),
    ],
)
def test_other_files_are_refused(tmp_path, name, text, complaint):
    (tmp_path / name).write_text(text)
    with pytest.raises(InputError, match=complaint):
        read_runs(tmp_path)


def test_a_missing_path_is_refused(tmp_path):
    with pytest.raises(InputError, match="cannot read"):
        read_runs(tmp_path / "none.jsonl")


def test_numbers_that_json_cannot_hold_come_back():
    written = json.loads(json_line({"a": math.nan, "b": -math.inf, "c": 2}))
    assert math.isnan(number(written["a"]))
    assert (number(written["b"]), number(written["c"])) == (-math.inf, 2.0)


def test_runs_are_named_by_network_and_data():
    assert name_of(run_of(0)) == "preact18, width 8 on digits"
