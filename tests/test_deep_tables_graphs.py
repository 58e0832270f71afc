"""Table 6: folds, the two selections by hand, and jobs that run on a miniature."""

import json

import numpy as np
import pytest
import torch
from graph_cases import drawn_graphs, text_of

from deep.data.graphs import load_graphs
from deep.tables.graphs import COMMON, NESTED, ROWS, GraphsConfig, best_epoch, split
from theory.errors import InputError


@pytest.fixture
def folder(tmp_path):
    """A folder with a miniature MUTAG of 40 graphs."""
    (tmp_path / "MUTAG.txt").write_text(text_of(drawn_graphs(count=40)))
    return tmp_path


def test_folds_partition_the_graphs_with_classes_in_proportion():
    labels = torch.tensor([0] * 60 + [1] * 40)[torch.randperm(100)]
    folds = split(labels)
    assert len(folds) == 10
    assert sorted(torch.cat([fold.test for fold in folds]).tolist()) == list(range(100))
    for fold in folds:
        assert labels[fold.test].bincount().tolist() == [6, 4]
        assert sorted([*fold.train.tolist(), *fold.test.tolist()]) == list(range(100))
        inner = [*fold.nested.tolist(), *fold.validation.tolist()]
        assert sorted(inner) == sorted(fold.train.tolist())
        assert labels[fold.validation].bincount().tolist() == [6, 4]
    again = split(labels)
    for fold, other in zip(folds, again, strict=True):
        assert all(torch.equal(a, b) for a, b in zip(fold, other, strict=True))


def test_a_class_too_small_for_the_folds_is_refused():
    with pytest.raises(InputError, match="fewer than 10"):
        split(torch.tensor([0] * 30 + [1] * 9))


def test_best_epoch_by_hand():
    """Means 0.25, 0.15, 0.15, 0.2 over two folds: the last of the equal ones."""
    errors = np.array([[0.3, 0.2], [0.1, 0.2], [0.2, 0.1], [0.1, 0.3]])
    assert best_epoch(errors) == 2
    assert best_epoch(errors[:, :1]) == 3
    assert best_epoch(errors[:, 1:]) == 2


def test_a_job_gives_both_selections_of_each_fold_as_json(folder):
    (job,) = GraphsConfig(
        rows=("mutag",), methods=("mixupe-paper",), data_dir=folder, epochs=3, steps=4, width=4
    ).jobs()
    assert (job.name, job.row, job.runs) == ("MUTAG mixupe-paper", "MUTAG", 20)
    threads, parts = torch.get_num_threads(), []
    outcome = json.loads(json.dumps(job.run(parts.append)))
    assert torch.get_num_threads() == threads
    assert parts == pytest.approx([1 / 3, 2 / 3, 1])
    assert outcome["data"]["source"].startswith("MUTAG.txt; SHA-256 ")
    assert (outcome["data"]["train"], outcome["data"]["test"]) == (36, 4)
    results = outcome["results"]
    places = [(result["selection"], result["split"]) for result in results]
    assert places == [(way, fold) for way in (COMMON, NESTED) for fold in range(10)]

    common, nested = results[:10], results[10:]
    means = np.mean([result["test_errors"] for result in common], 0)
    assert len({result["epoch"] for result in common}) == 1
    for result in results:
        assert result["method"] == "mixupe-paper"
        assert result["error"] == pytest.approx(
            result["test_errors"][result["epoch"] - 1], abs=1e-4
        )
        assert result["error"] in (0, 0.25, 0.5, 0.75, 1)
    assert means[common[0]["epoch"] - 1] == pytest.approx(means.min())
    assert {result["train"] for result in common} == {36}
    assert {result["train"] for result in nested} == {32}
    for result in nested:
        errors = result["validation_errors"]
        assert len(errors) == len(result["test_errors"]) == 3
        assert errors[result["epoch"] - 1] == min(errors)
        assert all(error > min(errors) for error in errors[result["epoch"] :])


def test_a_job_gives_the_same_again_and_its_settings_say_what_decides(folder):
    def job(**options):
        config = GraphsConfig(
            rows=("MUTAG",),
            data_dir=folder,
            steps=4,
            width=4,
            **{"epochs": 2, "methods": ("erm",), **options},
        )
        return config.jobs()[0]

    first, second = job(), job()
    assert first.run(lambda part: None) == second.run(lambda part: None)
    assert first.settings == second.settings
    json.dumps(first.settings)
    for change, methods in (
        ({"epochs": 3}, ("erm", "mixup", "mixupe-paper")),
        ({"alpha": 2.0}, ("mixup", "mixupe-paper")),
        ({"eta": 0.1}, ("mixupe-paper",)),
    ):
        for method in ("erm", "mixup", "mixupe-paper"):
            settings = [job(methods=(method,), **options).settings for options in ({}, change)]
            assert (settings[0] != settings[1]) == (method in methods)


def test_time_is_estimated_from_a_few_steps(folder):
    config = {"rows": ("MUTAG",), "methods": ("erm",), "data_dir": folder, "steps": 4, "width": 4}
    assert 0 < GraphsConfig(**config, epochs=2).jobs()[0].seconds() < 120


def test_error_is_that_of_the_trained_network_on_its_fold(folder):
    """Trained alone on the fold's graphs with the fold's seed, it errs as the table says."""
    from deep.graph_training import GraphTraining, Schedule

    config = GraphsConfig(
        rows=("MUTAG",), methods=("mixup",), data_dir=folder, epochs=1, steps=4, width=4
    )
    results = config.jobs()[0].run(lambda part: None)["results"]
    graphs, labels, _ = load_graphs("MUTAG", folder)
    fold = split(labels)[7]
    for train, result in ((fold.train, results[7]), (fold.nested, results[17])):
        schedule = Schedule(method="mixup", alpha=1.0, eta=0.001, steps=4, width=4)
        alone = GraphTraining(graphs, labels, [train], [7], schedule)
        alone.epoch()
        (wrong,) = alone.evaluation([fold.test])()
        assert result["error"] == pytest.approx(float(wrong.double().mean()))


def test_all_rows_and_methods_make_a_job_each():
    jobs = GraphsConfig().jobs()
    assert [job.row for job in jobs] == [row for row in ROWS for _ in range(3)]
    assert len({job.name for job in jobs}) == 18
    twice = GraphsConfig(rows=("MUTAG", "mutag"), methods=("erm", "erm")).jobs()
    assert [job.name for job in twice] == ["MUTAG erm"]


@pytest.mark.parametrize(
    ("flags", "fault"),
    [
        ({"rows": ("DD",)}, "unknown row 'DD': choose one of MUTAG"),
        ({"epochs": 0}, "epochs is 0"),
        ({"width": 0}, "width is 0"),
        ({"steps": 0}, "steps is 0"),
        ({"alpha": -1.0}, "alpha"),
        ({"eta": float("nan")}, "eta is nan"),
    ],
)
def test_flags_out_of_range_are_refused_before_any_work(flags, fault):
    with pytest.raises(InputError, match=fault):
        GraphsConfig(**flags).jobs()
