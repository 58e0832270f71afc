"""Table 4's protocol: splits, choice on the validation part, what is recorded."""

import json
import math
from dataclasses import replace

import numpy as np
import pandas as pd
import pytest
import torch

import deep.tables.tabular as tabular
from deep.data.tabular import TABLES, Table
from deep.stacked import METHODS, Run
from deep.tables.tabular import Outcome, TabularConfig, TabularJob
from theory.errors import InputError
from theory.record import json_line

CONFIG = TabularConfig(
    rows=("iris",), seeds=3, alphas=(8.0, 0.1), etas=(0.01, 5.0), width=8, epochs=2, least_steps=9
)


def three_blobs(rows=60):
    rng = np.random.default_rng(0)
    labels = np.arange(rows) % 3
    features = pd.DataFrame(rng.normal(size=(rows, 3)) + np.eye(3)[labels] * 2)
    return Table("iris", features, labels, ("a", "b", "c"), "here; SHA-256 0")


@pytest.fixture
def job(monkeypatch):
    monkeypatch.setattr(tabular, "load_table", lambda name, data_dir: three_blobs())
    monkeypatch.setattr(tabular, "table_size", lambda name: (60, 3, 3))
    return TabularJob("iris", CONFIG)


def test_one_job_a_table_with_all_its_runs():
    jobs = TabularConfig().jobs()
    assert [job.name for job in jobs] == [job.row for job in jobs] == list(TABLES)
    runs = {job.name: job.runs for job in jobs}
    # ERM once, mixup by 3 α, three MixupE by 3 α × 3 η.
    assert runs["iris"] == 20 * (1 + 3 + 3 * 9)
    assert runs["mnist"] == runs["volkert"] == 5 * 31
    assert [job.name for job in replace(TabularConfig(), rows=("cmc", "iris")).jobs()] == [
        "cmc",
        "iris",
    ]
    (twice,) = TabularConfig(rows=("iris", "iris"), methods=("erm", "erm")).jobs()
    assert twice.runs == 20


def test_small_tables_get_the_least_number_of_steps():
    (iris,) = TabularConfig(rows=("iris",)).jobs()
    (letter,) = TabularConfig(rows=("letter",)).jobs()
    assert iris.steps == 3  # 90 rows: 32, 32 and 26
    assert iris.optimization.epochs * 3 == pytest.approx(500)
    assert (letter.steps, letter.optimization.epochs) == (375, 30)


@pytest.mark.parametrize(
    ("change", "told"),
    [
        ({"rows": ("wine",)}, "unknown row 'wine'"),
        ({"seeds": 0}, "seeds is 0"),
        ({"methods": ()}, "methods is ()"),
        ({"alphas": (0.0,)}, "alpha is 0.0"),
        ({"etas": (-1.0,)}, "eta is -1.0"),
        ({"lr": math.nan}, "lr is nan"),
        ({"batch_size": 1}, "batch_size is 1"),
    ],
)
def test_flags_out_of_range_are_refused(change, told):
    with pytest.raises(InputError) as caught:
        replace(TabularConfig(), **change).jobs()
    assert told in str(caught.value)
    assert "\n" not in str(caught.value)


def test_a_job_records_every_method_and_split_as_json(job):
    seen = []
    record = job.run(seen.append)
    assert json.loads(json_line(record)) == json.loads(json.dumps(record))
    keys = [(entry["method"], entry["split"]) for entry in record["results"]]
    assert sorted(keys) == sorted((m, seed) for m in METHODS for seed in range(3))
    for entry in record["results"]:
        assert 0 <= entry["error"] <= 1
        # 12 rows in either part
        assert entry["error"] * 12 == pytest.approx(round(entry["error"] * 12), abs=1e-12)
        tuned = {"erm": set(), "mixup": {"alpha"}}.get(entry["method"], {"alpha", "eta"})
        assert entry["chosen"].keys() == tuned
        assert entry["diverged"] == 0
    sizes = {"train": 36, "validation": 12, "test": 12, "inputs": 3, "classes": 3}
    assert record["data"] == {"source": "here; SHA-256 0", **sizes}
    assert seen == sorted(seen)
    assert seen[-1] == 1


def test_the_same_record_comes_again_and_split_by_split(job):
    record = job.run(lambda _: None)
    assert job.run(lambda _: None) == record
    job.seeds_at_once = 1
    assert job.run(lambda _: None)["results"] == record["results"]


def test_test_rows_have_no_part_in_the_choice(job, monkeypatch):
    """With other test rows training, validation errors and choices stay as they are."""
    before = job.run(lambda _: None)["results"]

    def other_test_rows(table, seeds, prepared=tabular._prepared):
        train, validation, test = prepared(table, seeds)
        spoilt = {k: part._replace(labels=(part.labels + 1) % 3) for k, part in test.items()}
        return train, validation, spoilt

    monkeypatch.setattr(tabular, "_prepared", other_test_rows)
    after = job.run(lambda _: None)["results"]
    for one, two in zip(before, after, strict=True):
        assert {**one, "error": None} == {**two, "error": None}
    assert any(one["error"] != two["error"] for one, two in zip(before, after, strict=True))


def test_all_methods_get_the_same_parts(job, monkeypatch):
    """And each seed others, disjoint and of all rows."""
    calls = []

    def recorded(runs, data, *arguments, trained=tabular.trained, **options):
        calls.append((runs, data))
        return trained(runs, data, *arguments, **options)

    monkeypatch.setattr(tabular, "trained", recorded)
    job.run(lambda _: None)
    ((runs, data),) = calls
    for seed in range(3):
        assert {run.method for run in runs if run.seed == seed} == set(METHODS)
    parts = tabular._prepared(three_blobs(), range(3))
    assert all(torch.equal(parts[0][seed].x, data[seed].x) for seed in range(3))
    assert not torch.equal(data[0].x, data[1].x)


def test_the_best_is_chosen_by_error_then_loss_then_place():
    def best(*rows):
        grid = [
            Outcome(Run(0, "mixupe-paper", float(k + 1), 0.1), *row) for k, row in enumerate(rows)
        ]
        (entry,) = tabular._chosen("iris", grid)
        return entry

    first = best((0.2, 1.0, 0.5), (0.1, 2.0, 0.6), (0.3, 0.5, 0.1))
    assert first["chosen"] == {"alpha": 2.0, "eta": 0.1}
    assert (first["error"], first["validation_error"]) == (0.6, 0.1)
    assert best((0.2, 1.0, 0.5), (0.2, 0.9, 0.6), (0.2, 0.95, 0.1))["error"] == 0.6
    assert best((0.2, 1.0, 0.5), (0.2, 1.0, 0.6))["error"] == 0.5
    nan = math.nan
    spared = best((nan, nan, nan), (0.9, 3.0, 0.8), (0.0, nan, 0.0))
    assert (spared["error"], spared["diverged"]) == (0.8, 2)
    with pytest.raises(InputError, match=r"all 2 runs of mixupe-paper on iris, split 0, diverged"):
        best((nan, nan, nan), (nan, nan, nan))


def test_divergence_of_everything_is_one_line(job):
    wild = TabularJob("iris", replace(CONFIG, lr=1e30))
    with pytest.raises(InputError, match="lower --lr"):
        wild.run(lambda _: None)


def test_time_is_extrapolated_from_a_few_steps(job, monkeypatch):
    """With a clock that runs a second a training step, and a tenth for the rest."""
    clock = [0.0]
    monkeypatch.setattr(tabular.time, "perf_counter", lambda: clock[0])

    def ticking(runs, data, classes, settings, **options):
        clock[0] += 0.1 + settings.epochs * job.steps
        return iter(())

    monkeypatch.setattr(tabular, "trained", ticking)
    assert job.seconds() == pytest.approx(9 + 0.1 + tabular._TIMED_STEPS[0], abs=0.01)
