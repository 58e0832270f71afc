"""The benchmarks' command and the shape of what they print; costs themselves are not asserted."""

import json
import subprocess
import sys
from pathlib import Path

import pytest

import benchmarks.__main__ as command
from benchmarks.timing import emit, interleaved

ROOT = Path(__file__).resolve().parent.parent


def test_ratio_is_the_median_of_ratios_within_a_round(capsys):
    seconds = {"a": [2.0, 9.0, 4.0], "b": [1.0, 3.0, 4.0]}
    emit("name", seconds, "a", "b", 2.5, "note")
    figure = json.loads(capsys.readouterr().out)
    assert figure == {
        "name": "name", "ratio": 2.0, "goal": 2.5, "baseline": "b",
        "seconds": [2.0, 4.0, 9.0], "note": "note",
    }  # fmt: skip


def test_contestants_take_turns_and_the_first_round_does_not_count():
    calls = []
    seconds = interleaved({"a": lambda: calls.append("a"), "b": lambda: calls.append("b")}, 3)
    assert calls == ["a", "b"] * 4
    assert len(seconds["a"]) == len(seconds["b"]) == 3


@pytest.mark.parametrize("flags", [[], ["nothing"]])
def test_unknown_benchmarks_are_refused_with_the_choices(flags):
    done = subprocess.run(
        [sys.executable, "-m", "benchmarks", *flags], capture_output=True, text=True, cwd=ROOT
    )
    assert done.returncode == 2
    assert "choose from expectation, first_order" in done.stderr


def test_a_record_starts_with_how_it_was_made(monkeypatch, capsys):
    monkeypatch.setattr("sys.argv", ["benchmarks", "toy"])
    monkeypatch.setattr("benchmarks.toy.main", lambda: emit("a", {"a": [1.0]}, "a", "a", None))
    assert command.main() == 0
    run, figure = map(json.loads, capsys.readouterr().out.splitlines())
    assert run["command"] == "python -m benchmarks toy"
    assert run["versions"]["torch"]
    assert figure["name"] == "a"
