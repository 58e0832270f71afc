"""The command: plan, record, resume after a kill, render; with jobs that train nothing."""

import json
import multiprocessing
from dataclasses import dataclass
from typing import ClassVar

import pytest

from deep.table import RECORD, append, main, read_record, run
from deep.tables.jobs import Job, TableConfig
from theory.errors import InputError

ERRORS = {"erm": (0.10, 0.12), "mixup": (0.09, 0.11), "mixupe-paper": (0.08, 0.11)}


class Made(Job):
    """A job with a given outcome that counts how often it runs."""

    def __init__(self, row, ran, fault=None, width=8, method=None, alpha=None, source="made"):
        self.row, self.name = row, row if method is None else f"{row} {method}"
        self.runs, self.settings = 6, {"width": width, "method": method, "alpha": alpha}
        self._ran, self._fault, self._source = ran, fault, source

    def seconds(self):
        if isinstance(self._fault, InputError):
            raise self._fault
        return 30.0

    def source(self):
        return self._source

    def run(self, progress):
        self._ran.append(self.name)
        if self._fault:
            raise self._fault
        progress(1.0)
        results = [
            {"method": method, "split": split, "error": error}
            for method, errors in ERRORS.items()
            for split, error in enumerate(errors)
        ]
        return {"data": {"source": self._source, "train": 60, "test": 20}, "results": results}


@dataclass(frozen=True, kw_only=True)
class Config(TableConfig):
    number: ClassVar[int] = 4
    made: tuple[Job, ...] = ()

    def jobs(self):
        return list(self.made)


def test_record_and_tables(tmp_path, capsys):
    ran = []
    config = Config(out=tmp_path, made=(Made("iris", ran), Made("cmc", ran)))
    assert run(config) == 0
    record = read_record(tmp_path / RECORD)
    assert [line["job"] for line in record] == ["iris", "cmc"]
    assert record[0]["environment"]["versions"]["torch"]
    assert {"command", "finished", "seconds", "settings", "data"} <= record[0].keys()
    assert "| Iris | 9.06 ± 7.01 | 11.00 ± 1.41 |" in (tmp_path / "table.md").read_text()
    assert {"table.tex", "cells.csv", "gains.csv"} <= {path.name for path in tmp_path.iterdir()}
    assert "to train: 12 networks" in capsys.readouterr().out


def test_finished_jobs_are_never_redone_also_after_a_kill(tmp_path):
    ran = []
    killed = Config(out=tmp_path, made=(Made("iris", ran), Made("cmc", ran, KeyboardInterrupt())))
    with pytest.raises(KeyboardInterrupt):
        run(killed)
    with (tmp_path / RECORD).open("a") as file:
        file.write('{"job": "cmc", "resu')  # torn while it was being written
    assert run(Config(out=tmp_path, made=(Made("iris", ran), Made("cmc", ran)))) == 0
    assert ran == ["iris", "cmc", "cmc"]
    lines = (tmp_path / RECORD).read_text().splitlines()
    assert [json.loads(line)["job"] for line in lines] == ["iris", "cmc"]


def test_a_job_without_data_is_said_and_the_others_run(tmp_path, capsys):
    ran = []
    missing = Made("volkert", ran, InputError("no volkert here: name --data-dir"))
    assert run(Config(out=tmp_path, made=(missing, Made("iris", ran)))) == 1
    said = capsys.readouterr()
    assert "volkert: not run: no volkert here" in said.err
    assert [line["job"] for line in read_record(tmp_path / RECORD)] == ["iris"]
    assert "not run: " in (tmp_path / "table.md").read_text()


def test_plan_trains_nothing(tmp_path, capsys):
    ran = []
    missing = Made("volkert", ran, InputError("no volkert here: name --data-dir"))
    made = (Made("iris", ran), Made("iris", ran), missing)
    assert run(Config(out=tmp_path, plan=True, made=made)) == 0
    assert not ran
    said = capsys.readouterr().out
    assert "12 networks  about 60 s" in said
    assert "6 networks  cannot run: no volkert here" in said
    assert "in all about 60 s" in said


def test_other_settings_in_one_folder_are_refused(tmp_path):
    run(Config(out=tmp_path, made=(Made("iris", []),)))
    with pytest.raises(InputError, match=r"width was 8, is 16.*name another --out"):
        run(Config(out=tmp_path, made=(Made("iris", [], width=16),)))


def test_jobs_of_a_row_that_could_not_be_compared_are_refused(tmp_path):
    """Methods of a row differ in what is their own, and in nothing else."""

    def again(method, **settings):
        return run(Config(out=tmp_path, made=(Made("iris", [], method=method, **settings),)))

    assert again("erm") == 0
    assert again("mixup", alpha=1.0) == 0  # which ERM has not
    with pytest.raises(InputError, match=r"holds iris mixup with .*\(alpha was 1.0, is 0.5\)"):
        again("mixupe-paper", alpha=0.5)
    with pytest.raises(InputError, match="width was 8, is 16"):
        again("mixupe-paper", alpha=1.0, width=16)
    assert run(Config(out=tmp_path, made=(Made("cmc", [], method="erm", width=16),))) == 0


def test_jobs_of_a_row_on_other_data_are_refused(tmp_path, capsys):
    """Before they are trained: the numbers of splits mean other examples there."""
    ran = []
    for method, source in (("erm", "one"), ("mixup", "another")):
        code = run(Config(out=tmp_path, made=(Made("iris", ran, method=method, source=source),)))
        assert code == (0 if method == "erm" else 1)
    assert ran == ["iris erm"]
    assert "iris erm on other data (one, here another)" in capsys.readouterr().err


def test_minutes_end_a_call_between_jobs(tmp_path, capsys):
    ran = []
    config = Config(out=tmp_path, minutes=1e-9, made=(Made("iris", ran), Made("cmc", ran)))
    assert run(config) == 0
    assert not ran
    assert "call again" in capsys.readouterr().out


def _add_many(path, name):
    for k in range(30):
        append(path, {"job": f"{name}-{k}", "filler": "x" * 20_000})


def test_processes_that_share_a_record_lose_nothing(tmp_path):
    context = multiprocessing.get_context("spawn")
    path = tmp_path / RECORD
    workers = [context.Process(target=_add_many, args=(path, name)) for name in "abc"]
    for worker in workers:
        worker.start()
    for worker in workers:
        worker.join()
    assert {line["job"] for line in read_record(path)} == {
        f"{name}-{k}" for name in "abc" for k in range(30)
    }


def test_another_record_is_refused(tmp_path):
    (tmp_path / RECORD).write_text('{"recipe": 1}\n')
    with pytest.raises(InputError, match="no record of a table"):
        run(Config(out=tmp_path, made=(Made("iris", []),)))


@pytest.mark.parametrize(
    ("flags", "said"),
    [
        (["4", "--rows", "irsi"], "irsi"),
        (["6", "--rows", "iris"], "iris"),
        (["5", "--minutes", "-1"], "--minutes is -1"),
        (["7"], "7"),
    ],
)
def test_bad_input_is_one_line_and_exit_2(flags, said, capsys, tmp_path):
    assert main([*flags, *([] if flags == ["7"] else ["--out", str(tmp_path)])]) == 2
    error = capsys.readouterr().err
    assert error.startswith("error: ")
    assert said in error
    assert error.count("\n") == 1
