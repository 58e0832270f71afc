"""Sweeps: their cells, resuming, and a real SLURM that preempts and loses jobs."""

import errno
import fcntl
import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
import slurm_cluster

from deep.grid import main, read_sweep, states
from deep.run_folder import is_locked, locked, read_lines
from deep.runner import FAILURE, RUNS, Cell, outcome
from deep.slurm import JOB, queued
from theory.errors import InputError

ROOT = Path(__file__).resolve().parents[1]
SWEEP = """
seeds = [0, 1]
[rows.erm]
{recipe}
objective = "erm"
[rows.mixup]
{recipe}
objective = "mixup"
"""
SMALL = 'recipe = "quick-digits"\nmodel = "mlp"\nwidth = 16\nepochs = {epochs}\ncheck_every = 0'


def sweep(folder, text=None, epochs=1):
    path = folder / "sweep.toml"
    path.write_text(text or SWEEP.format(recipe=SMALL.format(epochs=epochs)))
    return path


def names(path):
    return [cell.name for cell in read_sweep(path)]


def test_cells_are_rows_times_grid_times_seeds(tmp_path):
    grid = "seeds = [3, 4]\n[grid]\nalpha = [0.5, 1.0]\neta = [0.1]\n"
    rows = '[rows.a]\nrecipe = "quick-digits"\n[rows.b]\nobjective = "mixup"\n'
    cells = read_sweep(sweep(tmp_path, grid + rows))
    assert len(cells) == 2 * 2 * 2
    first = next(iter(cells))
    assert first.name.startswith("a-alpha=0.5-eta=0.1-seed3-")
    assert cells[first]["alpha"] == 0.5
    assert cells[first]["seed"] == 3
    assert len({cell.name for cell in cells}) == 8


def test_the_hash_is_of_what_decides_the_result(tmp_path):
    """Not of the row's name, nor of how the settings are written; but of each value."""

    def digest(row):
        text = f"[rows.x]\n{row}"
        return names(sweep(tmp_path, text))[0].rpartition("-")[2]

    default = digest('recipe = "quick-digits"')
    assert digest('recipe = "quick-digits"\nalpha = 1') == default
    assert digest('recipe = "quick-digits"\nalpha = 1.5') != default


def test_a_grown_sweep_keeps_what_is_finished(tmp_path, capsys):
    path = sweep(tmp_path)
    out = ["--out", str(tmp_path / "grid")]
    assert main(["run", str(path), *out, "--jobs", "2", "--threads", "1"]) == 0
    results = {p: p.stat().st_mtime_ns for p in (tmp_path / "grid").glob("*/result.json")}
    assert len(results) == 4
    path.write_text(path.read_text() + f"[rows.more]\n{SMALL.format(epochs=1)}\nalpha = 2.0\n")
    assert main(["status", str(path), *out]) == 0
    assert "4 of 6 cells are done" in capsys.readouterr().out
    assert main(["run", str(path), *out, "--jobs", "2", "--threads", "1"]) == 0
    assert all(p.stat().st_mtime_ns == at for p, at in results.items())
    lines = read_lines(tmp_path / "grid" / RUNS)
    assert [line["name"] for line in lines] == names(path)
    assert lines[0]["result"]["last"]["test_error"] < 0.9
    manifest = json.loads((tmp_path / "grid" / "grid.json").read_text())
    assert list(manifest["cells"]) == names(path)


def test_a_failed_cell_says_why_and_is_tried_again(tmp_path, capsys):
    small = SMALL.format(epochs=1)
    text = f'[rows.bad]\n{small}\ncheckpoint = "none.safetensors"\n[rows.good]\n{small}\n'
    path, out = sweep(tmp_path, text), ["--out", str(tmp_path / "grid")]
    assert main(["run", str(path), *out, "--threads", "1"]) == 1
    assert main(["status", str(path), *out]) == 1
    said = capsys.readouterr().out
    assert "failed: error: checkpoint none.safetensors does not exist" in said
    assert "1 of 2 cells are done" in said
    bad = tmp_path / "grid" / names(path)[0]
    assert (bad / FAILURE).exists()
    Cell(bad.name, ("--help",)).start(bad.parent, 1).wait()
    assert not (bad / FAILURE).exists()


def test_what_is_gathered_is_done_wherever_it_is_carried(tmp_path, capsys):
    """runs.jsonl alone goes to another machine, and another sweep shares its folder there."""
    path, out = sweep(tmp_path), tmp_path / "grid"
    recipe = {"objective": "erm", "seed": 0}
    lines = [
        {"name": name, "recipe": recipe, "result": None, "log": [], "checks": []}
        for name in [*names(path), "of-another-sweep"]
    ]
    out.mkdir()
    (out / RUNS).write_text("".join(json.dumps(line) + "\n" for line in lines))
    for command, said in (
        ("status", "4 of 4 cells are done"),
        ("run", "4 of 4 cells are done"),
        ("collect", "4 of 4 cells"),
    ):
        assert main([command, str(path), "--out", str(out)]) == 0
        assert said in capsys.readouterr().out
    assert main(["run", str(path), "--out", str(out), "--slurm"]) == 0
    assert "4 of 4 cells were done" in capsys.readouterr().out
    assert read_lines(out / RUNS) == lines
    assert not list(out.glob("*/"))


def test_a_renamed_row_keeps_what_it_has(tmp_path, capsys):
    """One cell gathered, one finished, one stopped, one new: each as before its row was renamed."""
    path, out = sweep(tmp_path), tmp_path / "grid"
    gathered, finished, stopped, new = names(path)
    recipe = {"objective": "erm", "seed": 0}
    line = {"name": gathered, "recipe": recipe, "result": {}, "log": [], "checks": []}
    (out / finished).mkdir(parents=True)
    (out / RUNS).write_text(json.dumps(line) + "\n")
    (out / finished / "result.json").write_text(json.dumps({"recipe": recipe}))
    for name in ("log.jsonl", "checks.jsonl"):
        (out / finished / name).write_text("")
    (out / stopped / "checkpoints").mkdir(parents=True)
    path.write_text(path.read_text().replace("[rows.", "[rows.new-"))
    assert names(path) == [f"new-{name}" for name in (gathered, finished, stopped, new)]
    assert main(["status", str(path), "--out", str(out)]) == 0
    assert [row.split() for row in capsys.readouterr().out.splitlines()][2:-1] == [
        [gathered, "done"], [finished, "done"], [stopped, "stopped"], [f"new-{new}", "waiting"],
    ]  # fmt: skip
    assert main(["collect", str(path), "--out", str(out)]) == 0
    assert [line["name"] for line in read_lines(out / RUNS)] == [gathered, finished]
    assert main(["run", str(path), "--out", str(out), "--minutes", "1e-9"]) == 0
    assert list(json.loads((out / "grid.json").read_text())["cells"]) == [
        gathered, finished, stopped, f"new-{new}",
    ]  # fmt: skip


@pytest.mark.parametrize("minutes", ["0", "-1", "nan", "inf"])
def test_minutes_are_positive_and_finite(minutes, tmp_path, capsys):
    out = tmp_path / "grid"
    assert main(["run", str(sweep(tmp_path)), "--out", str(out), "--minutes", minutes]) == 2
    assert "it must be positive and finite" in capsys.readouterr().err
    assert not out.exists()


def test_states_are_read_from_the_files(tmp_path):
    cells = [Cell(name, ()) for name in ("done", "held", "cut", "new", "dead")]
    for cell in cells:
        (tmp_path / cell.name).mkdir()
    (tmp_path / "done" / "result.json").write_text("{}")
    (tmp_path / "cut" / "checkpoints").mkdir()
    assert outcome(tmp_path / "dead", -9) == "failed: killed by SIGKILL"
    with locked(tmp_path / "held"):
        assert states(tmp_path, cells) == {
            "done": "done", "held": "running", "cut": "stopped", "new": "waiting",
            "dead": "failed: killed by SIGKILL",
        }  # fmt: skip
    assert states(tmp_path, cells)["held"] == "waiting"


def test_two_processes_never_train_in_one_folder(tmp_path):
    code = "import sys, time; from pathlib import Path; from deep.run_folder import locked\n"
    code += f"with locked(Path({str(tmp_path)!r})): print('in', flush=True); time.sleep(60)"
    other = subprocess.Popen([sys.executable, "-c", code], stdout=subprocess.PIPE, cwd=ROOT)
    try:
        assert other.stdout.readline() == b"in\n"
        with pytest.raises(InputError, match="another process trains in"), locked(tmp_path):
            pass
    finally:
        other.kill()
        other.wait()
        other.stdout.close()
    with locked(tmp_path):  # a killed process holds nothing
        pass


def test_a_lock_is_seen_where_the_file_system_is_nfs(tmp_path, monkeypatch):
    """Linux grants an exclusive lock there on a file open for writing, a shared for reading."""
    real = fcntl.flock

    def nfs(file, operation):
        mode = fcntl.fcntl(file, fcntl.F_GETFL) & os.O_ACCMODE
        if mode == (os.O_RDONLY if operation & fcntl.LOCK_EX else os.O_WRONLY):
            raise OSError(errno.EBADF, os.strerror(errno.EBADF))
        real(file, operation)

    monkeypatch.setattr(fcntl, "flock", nfs)
    assert not is_locked(tmp_path)
    with locked(tmp_path):
        assert is_locked(tmp_path)
    assert not is_locked(tmp_path)


@pytest.mark.parametrize("number", [errno.ENOSYS, errno.ENOLCK, errno.EOPNOTSUPP])
def test_a_file_system_without_locks_is_one_line(tmp_path, monkeypatch, number):
    def refuse(file, operation):
        raise OSError(number, os.strerror(number))

    monkeypatch.setattr(fcntl, "flock", refuse)
    message = rf"cannot be locked .*{os.strerror(number)}.*: name an --out on another file system"
    with pytest.raises(InputError, match=message), locked(tmp_path):
        pass


def test_a_fault_while_the_folder_is_locked_is_no_fault_of_the_lock(tmp_path):
    with pytest.raises(OSError, match="full"), locked(tmp_path):
        raise OSError("full")


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("seeds = [0]\n", "no rows"),
        ('[rows.a]\nrecipe = "quik-digits"\n', "did you mean quick-digits"),
        ("[rows.a]\nalhpa = 1\n", "unknown key 'alhpa': did you mean alpha?"),
        ("[rows.a]\nalpha = -1\n[grid]\neta = 3\n", "eta in [grid] is no list"),
        ("[rows.a]\n[rows.b]\n", "twice"),
        ("rows = 3\n", "alone"),
        ("[runs.a]\n", "it has runs"),
        ("[rows.a\n", "is no TOML"),
        ('[rows.a]\nepochs = "many"\n', "epochs"),
        ("[rows.a]\nseed = 7\n", "name it in seeds"),
        ("[grid]\nseed = [1, 2]\n[rows.a]\n", "name it in seeds"),
    ],
)
def test_bad_sweeps_are_one_line_and_exit_2(text, said, tmp_path, capsys):
    assert main(["run", str(sweep(tmp_path, text)), "--out", str(tmp_path / "grid")]) == 2
    error = capsys.readouterr().err
    assert error.startswith("error: ")
    assert said in error
    assert error.count("\n") == 1
    assert not (tmp_path / "grid").exists()


def test_without_slurm_it_says_so(tmp_path, capsys, monkeypatch):
    monkeypatch.setenv("PATH", str(tmp_path))
    code = main(["run", str(sweep(tmp_path)), "--out", str(tmp_path / "grid"), "--slurm"])
    assert code == 2
    assert "SLURM did not take the jobs" in capsys.readouterr().err


def put_squeue(folder, monkeypatch, script):
    """A squeue of one's own, and nothing else of SLURM."""
    (folder / "bin").mkdir()
    if script is not None:
        (folder / "bin" / "squeue").write_text(f"#!/bin/sh\n{script}\n")
        (folder / "bin" / "squeue").chmod(0o755)
    monkeypatch.setenv("PATH", str(folder / "bin"))


def put_job(out, name):
    (out / name).mkdir(parents=True)
    (out / name / JOB).write_text('{"job": "7_0"}')


@pytest.mark.parametrize(("script", "found"), [("echo 6_0; echo 7_0", {"a"}), (None, set())])
def test_what_is_queued_is_what_squeue_lists(tmp_path, monkeypatch, script, found):
    put_squeue(tmp_path, monkeypatch, script)
    put_job(tmp_path, "a")
    assert queued(tmp_path, [Cell("a", ()), Cell("b", ())]) == found


@pytest.mark.parametrize(
    ("script", "said"),
    [
        ("echo 'slurm_load_jobs error: no contact' >&2; exit 1", "(slurm_load_jobs error: no "),
        ("exit 3", "non-zero exit status 3"),
    ],
)
def test_a_queue_that_cannot_be_read_is_no_empty_one(tmp_path, monkeypatch, capsys, script, said):
    """Or what is queued would be submitted a second time."""
    path, out = sweep(tmp_path), tmp_path / "grid"
    put_squeue(tmp_path, monkeypatch, script)
    put_job(out, names(path)[0])
    for command in (["status"], ["run", "--slurm"]):
        assert main([*command, str(path), "--out", str(out)]) == 2
        told = capsys.readouterr().err
        assert told.startswith("error: squeue does not tell SLURM's queue (")
        assert said in told
        assert told.endswith("): try again\n")
        assert told.count("\n") == 1


def test_a_queue_that_does_not_answer_is_no_empty_one(tmp_path, monkeypatch):
    def hang(command, timeout, **options):
        raise subprocess.TimeoutExpired(command, timeout, stderr=b"so far")

    put_job(tmp_path, "a")
    monkeypatch.setattr(subprocess, "run", hang)
    with pytest.raises(InputError, match=r"timed out after 60 seconds\): try again"):
        queued(tmp_path, [Cell("a", ())])


@pytest.mark.slurm
@pytest.mark.skipif(slurm_cluster.MISSING is not None, reason=f"needs {slurm_cluster.MISSING}")
def test_a_cluster_that_preempts_and_kills_still_gives_every_result(tmp_path_factory, capsys):
    """Eight runs; one gets SLURM's notice, one dies by SIGKILL; all end as undisturbed ones do."""
    folder = tmp_path_factory.mktemp("g")
    text = "".join(
        f'[rows.{name}]\n{SMALL.format(epochs=60)}\nobjective = "{name}"\n'
        for name in ("erm", "mixup", "mixupe-paper", "mixupe-official-v3")
    )
    path, out = sweep(folder, f"seeds = [0, 1]\n{text}"), folder / "grid"
    noticed, killed, *_ = names(path)
    flags = [str(path), "--out", str(out)]
    with slurm_cluster.cluster(folder / "s"):
        assert main(["run", *flags, "--slurm", "--slurm-minutes", "30"]) == 0
        blows = {noticed: _give_notice, killed: _kill}
        while blows:  # each as soon as its victim has trained for two epochs
            name = next((name for name in blows if _logged(out / name) >= 2), None)
            if name is not None:
                blows.pop(name)(out / name)
            time.sleep(0.05)
        _until(lambda: not _queue(), 900)  # seconds on quiet cores
        capsys.readouterr()
        assert main(["status", *flags]) == 1
        said = " ".join(capsys.readouterr().out.split())
        assert f"{killed} failed: killed by SIGKILL" in said
        assert main(["run", *flags, "--slurm"]) == 0
        assert "7 of 8 cells were done" in capsys.readouterr().out
        _until(lambda: not _queue(), 900)  # seconds on quiet cores
    assert "stopped: go on" in (out / noticed / "output.txt").read_text()
    assert main(["collect", *flags]) == 0
    disturbed = {line["name"]: line for line in read_lines(out / RUNS)}
    assert list(disturbed) == names(path)
    alone = folder / "alone"
    erm = text.partition("[rows.mixup]")[0]
    again = sweep(folder, f"seeds = [0]\n{erm}{erm.replace('erm', 'mixup')}")
    assert main(["run", str(again), "--out", str(alone), "--threads", "1"]) == 0
    undisturbed = {line["name"]: line for line in read_lines(alone / RUNS)}
    assert undisturbed.keys() == {noticed, killed}
    assert all(undisturbed[name]["log"] == disturbed[name]["log"] for name in undisturbed)


def _logged(folder):
    log = folder / "log.jsonl"
    return log.read_text().count("\n") if log.exists() else 0


def _queue():
    return subprocess.run(
        ["squeue", "--noheader"], capture_output=True, text=True, check=True
    ).stdout.strip()


def _give_notice(folder):
    """The signal that precedes preemption. scancel repeats it where the controller is slow."""
    job = json.loads((folder / "slurm.json").read_text())["job"]
    with subprocess.Popen(["scancel", "--signal=USR2", job]) as command:
        _until(lambda: "stopped: go on" in (folder / "output.txt").read_text())
        command.kill()


def _kill(folder):
    listed = subprocess.run(
        ["pgrep", "-f", f"deep.train .*--out {folder}"], capture_output=True, text=True, check=True
    )
    os.kill(int(listed.stdout.split()[0]), signal.SIGKILL)


def _until(condition, seconds=120):
    end = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < end, "the cluster took too long"
        time.sleep(0.1)
