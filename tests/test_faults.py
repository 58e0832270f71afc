"""Full disks, read-only folders, many writers: one line, the last good file stays, nothing lost."""

import json
import subprocess
import sys
from contextlib import suppress
from pathlib import Path

import pytest
import torch
from matplotlib.figure import Figure
from readers import write_report, write_runs
from torch import nn

import deep.table
from deep.checkpoint import save_weights
from deep.resume import Checkpoints
from deep.run_folder import CHECKS, LOG, RESULT, Log, is_locked, locked, read_lines
from deep.runner import RUNS, gather
from deep.table import RECORD
from deep.train import main as train_main
from figures import page
from figures.__main__ import main as figures_main
from figures.drawing import Drawing, save
from theory import check_approx, read_reports
from theory.errors import InputError
from theory.record import json_line, write_json
from toy.__main__ import main as toy_main

ROOT = Path(__file__).resolve().parents[1]
SIZE = 256  # KiB of the small disk


@pytest.fixture
def disk(tmp_path):
    """A small disk of its own."""
    folder = tmp_path / "disk"
    folder.mkdir()
    command = ["mount", "-t", "tmpfs", "-o", f"size={SIZE}k", "none", str(folder)]
    try:
        done = subprocess.run(command, capture_output=True, text=True)
    except OSError as error:
        pytest.skip(f"no mount here ({error})")
    if done.returncode:
        pytest.skip(f"mounting a small disk is refused ({done.stderr.strip()})")
    yield folder
    subprocess.run(["umount", "--lazy", str(folder)], check=True)


def fill(disk):
    """Takes what is left, to the last page."""
    with (disk / "filler").open("wb", buffering=0) as file, suppress(OSError):
        while True:
            file.write(bytes(1024))


def freeze(disk):
    subprocess.run(["mount", "-o", "remount,ro", str(disk)], check=True)


def network(size):
    torch.manual_seed(0)
    return nn.Linear(size, 50)


def reports(folder):
    folder.mkdir(exist_ok=True)
    write_report(folder)
    found = read_reports(folder / "report.json")
    for report in found:
        report.training["epoch"] = 0.0
    return found


def line_of(name, size):
    return {"job": name, "settings": {}, "filler": "x" * size}


def finish(folder, name, size):
    """What a finished run leaves."""
    own = folder / name
    own.mkdir(exist_ok=True)
    recipe = {"objective": "erm", "seed": 0, "filler": "x" * size}
    (own / RESULT).write_text(json.dumps({"recipe": recipe}))
    for file in (LOG, CHECKS):
        (own / file).write_text("")


def gathered(folder, size):
    """The run is finished elsewhere: what is tried is to write it into the record."""
    runs = folder.parent / "elsewhere"
    runs.mkdir(exist_ok=True)
    finish(runs, f"run{size}", size)
    if not (folder / f"run{size}").is_symlink():
        (folder / f"run{size}").symlink_to(runs / f"run{size}")
    gather(folder, ["run1", f"run{size}"])


def logged(folder, size):
    log = Log(folder / "log.jsonl")
    log.cut((folder / "log.jsonl").stat().st_size if (folder / "log.jsonl").exists() else 0)
    log.append(line_of("a", size))


def drawn(kind):
    def draw(folder, size):
        figure = Figure()
        figure.subplots().plot(torch.randn(max(2, size)).numpy(), rasterized=False)
        save(folder, {"f": Drawing("", lambda: figure)}, (kind,))

    return draw


def html(folder, size):
    found = reports(folder.parent / "report")
    page.save(folder, found, "x" * size)


def checked(folder, size):
    """report.json and samples.csv."""
    found = reports(folder.parent / "report")
    found[0].settings["filler"] = "x" * size
    check_approx.save(folder, found)


# Name -> what writes a file of about so many bytes, and the file.
WRITERS = {
    "json": (lambda f, size: write_json(f / "a.json", "x" * size), "a.json"),
    "report and samples": (checked, "report.json"),
    "report.html": (html, "report.html"),
    "weights": (lambda f, size: save_weights(network(1 + size // 200), f / "w"), "w"),
    "checkpoint": (
        lambda f, size: Checkpoints(f / "c").save(size, network(1 + size // 200), {"index": 1}),
        "c/1/weights.safetensors",
    ),
    "record.jsonl": (
        lambda f, size: deep.table.append(f / RECORD, line_of(str(size), size)),
        RECORD,
    ),
    "log.jsonl": (logged, "log.jsonl"),
    "runs.jsonl": (gathered, RUNS),
    "png": (drawn("png"), "f.png"),
    "pdf": (drawn("pdf"), "f.pdf"),
}


@pytest.mark.parametrize("fault", [fill, freeze])
@pytest.mark.parametrize("name", WRITERS)
def test_a_full_or_read_only_disk_is_one_line_and_leaves_the_last_good_file(name, fault, disk):
    write, file = WRITERS[name]
    write(disk, 1)
    if name == "runs.jsonl":  # the link to the second run takes no page
        (disk / f"run{2**19}").symlink_to(disk.parent / "elsewhere" / f"run{2**19}")
    before = (disk / file).read_bytes()
    fault(disk)
    names = {path for path in disk.rglob("*") if path.is_file()}
    with pytest.raises(InputError) as caught:
        write(disk, 2**19)
    line = str(caught.value)
    assert "No space left" in line if fault is fill else "Read-only file system" in line
    assert str(disk) in line
    after = (disk / file).read_bytes()
    if file.endswith(".jsonl"):  # lines are added in place: a torn one is no line
        assert after.startswith(before)
        assert [json.loads(text) for text in before.splitlines()] == read_lines(disk / file)
    else:
        assert after == before
    assert {path for path in disk.rglob("*") if path.is_file()} == names


def test_a_record_that_met_a_full_disk_goes_on_when_there_is_room(disk):
    path = disk / RECORD
    deep.table.append(path, line_of("a", 10))
    with pytest.raises(InputError, match="No space left"):
        deep.table.append(path, line_of("b", 2**20))
    deep.table.append(path, line_of("c", 10))
    assert [line["job"] for line in read_lines(path)] == ["a", "c"]


COMMANDS = {
    "toy": (toy_main, ["descent", "--steps", "200"]),
    "figures": (figures_main, []),
    "deep.train": (train_main, ["--recipe", "quick-digits", "--model", "mlp", "--width", "64",
                                "--epochs", "1", "--check-every", "0"]),
}  # fmt: skip


@pytest.mark.parametrize("fault", [fill, freeze])
@pytest.mark.parametrize("name", COMMANDS)
def test_commands_meet_a_full_or_read_only_disk_with_one_line_and_exit_2(name, fault, disk, capsys):
    main, flags = COMMANDS[name]
    if name == "figures":
        write_runs(disk.parent)
        flags = [str(disk.parent / RUNS)]
    fault(disk)
    assert main([*flags, "--out", str(disk / "out" if fault is freeze else disk)]) == 2
    errors = capsys.readouterr().err.strip().splitlines()
    assert errors[-1].startswith("error: ")
    assert str(disk) in errors[-1]
    assert len([line for line in errors if not line.isspace()]) == 1
    left = {path.name for path in disk.rglob("*") if path.is_file()} - {"filler", "lock"}
    assert not any(name.startswith(".") for name in left)


def test_a_run_in_a_read_only_folder_is_not_said_to_go_on(disk):
    with locked(disk):
        assert is_locked(disk)
    freeze(disk)
    assert not is_locked(disk)


# --- several writers ------------------------------------------------------------------------------


def together(code, *arguments):
    """Four processes that run it at a time, as variable k tells them apart."""
    commands = [[sys.executable, "-c", f"k = {k}\n{code}", *arguments] for k in range(4)]
    return [subprocess.Popen(command, cwd=ROOT) for command in commands]


GATHERING = """
import json, sys
from pathlib import Path
from deep.runner import gather
folder = Path(sys.argv[1])
names = [f"run{i}-{j}" for i in range(4) for j in range(8)]
for name in names[8 * k : 8 * k + 8]:
    (folder / name).mkdir()
    (folder / name / "log.jsonl").write_text("")
    (folder / name / "checks.jsonl").write_text("")
    (folder / name / "part").write_text(json.dumps({"recipe": {"seed": k, "filler": "x" * 1000}}))
    (folder / name / "part").rename(folder / name / "result.json")
    gather(folder, names)
"""


def test_processes_that_gather_into_one_record_lose_nothing(tmp_path):
    assert [process.wait() for process in together(GATHERING, str(tmp_path))] == [0] * 4
    names = {f"run{i}-{j}" for i in range(4) for j in range(8)}
    assert {line["name"] for line in read_lines(tmp_path / RUNS)} == names
    assert not list(tmp_path.glob(".*"))


WRITING = """
import sys
from theory.record import write_json
for _ in range(20):
    write_json(sys.argv[1], [k] * 20_000)
"""


def test_a_file_that_many_write_is_always_whole(tmp_path):
    path = tmp_path / "a.json"
    write_json(path, [0] * 20_000)
    processes = together(WRITING, str(path))
    while any(process.poll() is None for process in processes):
        content = json.loads(path.read_text())
        assert len(content) == 20_000
        assert len(set(content)) == 1
    assert [process.returncode for process in processes] == [0] * 4
    assert [file.name for file in tmp_path.iterdir()] == ["a.json"]


def test_a_torn_line_of_another_process_is_left_out(tmp_path):
    (tmp_path / RUNS).write_text(json_line({"recipe": {}, "name": "a"}) + '{"recipe": {')
    assert list(gather(tmp_path, ["a"])) == ["a"]
