"""`torchrun`: the job's record, its end by a signal, and by the death of one process."""

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from deep.run_folder import read_lines

ROOT = Path(__file__).resolve().parent.parent
FLAGS = [
    "--recipe", "quick-digits", "--model", "mlp", "--width", "4", "--objective", "mixupe-paper",
    "--check-every", "0", "--log-samples", "50",
]  # fmt: skip


def job(out, *more):
    """Two processes on this machine, in a session of their own."""
    torchrun = [sys.executable, "-m", "torch.distributed.run", "--standalone"]
    command = [*torchrun, "--nproc-per-node", "2", "-m", "deep.train", *FLAGS, "--out", str(out)]
    return subprocess.Popen(
        [*command, *more], cwd=ROOT, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True,
        env={**os.environ, "OMP_NUM_THREADS": "1"}, start_new_session=True,
    )  # fmt: skip


def workers(process):
    """The process ids of the two that train, found as children of torchrun's agent."""
    path = Path(f"/proc/{process.pid}/task/{process.pid}/children")
    return [int(pid) for pid in path.read_text().split()]


def begun(process, out):
    """Waits until training is under way."""
    until = time.monotonic() + 120
    while not ((out / "log.jsonl").exists() and (out / "log.jsonl").stat().st_size):
        assert process.poll() is None, process.communicate()[0]
        assert time.monotonic() < until
        time.sleep(0.05)


def test_two_processes_leave_one_record(tmp_path):
    process = job(tmp_path / "run", "--epochs", "2")
    printed, _ = process.communicate(timeout=180)
    assert process.returncode == 0, printed
    assert printed.count("Written to") == 1
    assert [line["epoch"] for line in read_lines(tmp_path / "run" / "log.jsonl")] == [1, 2]
    result = json.loads((tmp_path / "run" / "result.json").read_text())
    assert result["processes"] == 2


@pytest.mark.skipif(not Path("/proc/self/task").exists(), reason="needs Linux's /proc")
def test_the_death_of_one_process_ends_the_job_with_an_error(tmp_path):
    out = tmp_path / "run"
    process = job(out, "--epochs", "10000")
    begun(process, out)
    os.kill(workers(process)[1], signal.SIGKILL)
    try:
        process.communicate(timeout=90)
    finally:
        if process.poll() is None:
            os.killpg(process.pid, signal.SIGKILL)
    assert process.returncode not in (0, None)
    assert not (out / "result.json").exists()


def test_a_signal_to_the_job_writes_a_checkpoint_from_which_it_goes_on(tmp_path):
    out = tmp_path / "run"
    process = job(out, "--epochs", "40")
    begun(process, out)
    process.send_signal(signal.SIGTERM)
    process.communicate(timeout=90)
    assert process.returncode != 0
    (checkpoint,) = (out / "checkpoints").iterdir()
    again = job(out, "--epochs", "40", "--resume")
    printed, _ = again.communicate(timeout=180)
    assert again.returncode == 0, printed
    epochs = [line["epoch"] for line in read_lines(out / "log.jsonl")]
    assert epochs == list(range(1, 41))
    assert int(checkpoint.name) < 40 * 25
