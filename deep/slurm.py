"""Training runs as one job array of SLURM, by submitit; they survive preemption and time limits.

When SLURM is about to take a job's processor (a higher job preempts it, its time is up), it sends
SIGUSR2; the run then writes a checkpoint, and its job goes back into the queue to go on from it.
"""

import os
import subprocess
from collections.abc import Sequence
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from deep.run_folder import read_object
from deep.runner import Cell, outcome
from theory.errors import InputError
from theory.record import reason, write_json

JOB = "slurm.json"


@dataclass(frozen=True, kw_only=True)
class Slurm:
    """How SLURM is asked for each cell."""

    slurm: bool = False
    """Hand the cells to SLURM as one job array, in place of training them on this machine"""
    slurm_partition: str | None = None
    """Partition; the cluster's default if not given"""
    slurm_minutes: int = 240
    """Time limit of a job; one that reaches it writes a checkpoint and queues again"""
    slurm_cpus: int = 1
    """Processors and threads of a job"""
    slurm_gpus: int = 0
    """GPUs of a job"""
    slurm_memory_gb: float | None = None
    """Memory of a job; the cluster's default if not given"""
    slurm_at_once: int = 256
    """Jobs of the array that run at the same time, at most"""
    slurm_turns: int = 10
    """How often a job may reach its time limit before it counts as failed"""
    slurm_signal_seconds: int = 90
    """How long before the limit it is told to write its checkpoint"""


class Task:
    """One cell as a job. Called by submitit on the node; `checkpoint` when the node is wanted.

    Args:
        cell: What is trained.
        folder: The grid's.
        threads: Of the run.
    """

    def __init__(self, cell: Cell, folder: Path, threads: int) -> None:
        self._cell, self._folder, self._threads = cell, folder, threads
        self._process: subprocess.Popen | None = None

    def __call__(self) -> str:
        """Trains; raises RuntimeError with the reason if that failed, so that SLURM knows."""
        self._process = self._cell.start(self._folder, self._threads)
        told = outcome(self._folder / self._cell.name, self._process.wait())
        if told != "done":
            raise RuntimeError(told)
        return told

    def checkpoint(self) -> Any:
        """Stops the run after a checkpoint; what to queue in its place."""
        from submitit.helpers import DelayedSubmission

        if self._process is not None:
            self._process.terminate()
            # Called by a signal in the midst of the wait above, whose lock a second wait would
            # never get.
            with suppress(ChildProcessError):
                os.waitid(os.P_PID, self._process.pid, os.WEXITED | os.WNOWAIT)
        return DelayedSubmission(Task(self._cell, self._folder, self._threads))


def submit(folder: Path, cells: Sequence[Cell], options: Slurm) -> str:
    """Puts cells into SLURM's queue.

    Args:
        folder: The grid's, on a disk that the nodes share.
        cells: What is to be trained.
        options: How.

    Returns:
        Number of the job array.

    Raises:
        InputError: If submitit or SLURM is not there, or SLURM refuses.
    """
    try:
        import submitit
        from submitit.core.utils import FailedJobError
    except ImportError as error:
        raise InputError("--slurm needs submitit: pip install submitit") from error
    try:
        executor = submitit.SlurmExecutor(
            folder=folder.resolve() / "slurm", max_num_timeout=options.slurm_turns
        )
        wanted: dict[str, Any] = {
            "job_name": "mixup-theory", "time": options.slurm_minutes,
            "cpus_per_task": options.slurm_cpus, "array_parallelism": options.slurm_at_once,
            "signal_delay_s": options.slurm_signal_seconds,
        }  # fmt: skip
        if options.slurm_partition is not None:
            wanted["partition"] = options.slurm_partition
        if options.slurm_gpus:
            wanted["gpus_per_node"] = options.slurm_gpus
        if options.slurm_memory_gb is not None:
            wanted["mem"] = f"{options.slurm_memory_gb:g}GB"
        executor.update_parameters(**wanted)
        tasks = [Task(cell, folder.resolve(), options.slurm_cpus) for cell in cells]
        jobs = executor.submit_array(tasks)
    except (RuntimeError, OSError, FailedJobError, subprocess.SubprocessError) as error:
        raise InputError(f"SLURM did not take the jobs ({error}): see sinfo") from error
    for cell, job in zip(cells, jobs, strict=True):
        write_json(folder / cell.name / JOB, {"job": job.job_id})
    return str(jobs[0].job_id).partition("_")[0]


def queued(folder: Path, cells: Sequence[Cell]) -> set[str]:
    """Names of the cells whose jobs SLURM has in its queue, waiting or running.

    Raises:
        InputError: If SLURM is there and does not say: a cell that it has could be queued twice.
    """
    jobs = {
        str(read_object(folder / cell.name / JOB).get("job")): cell.name
        for cell in cells
        if (folder / cell.name / JOB).exists()
    }
    if not jobs:
        return set()
    command = ["squeue", "--noheader", "--array", "--format=%i"]
    try:
        listed = subprocess.run(command, capture_output=True, text=True, timeout=60, check=True)
    except FileNotFoundError:
        return set()  # no SLURM here: the folder was moved to where that queue cannot be seen
    except (OSError, subprocess.SubprocessError) as error:
        said = error.stderr if isinstance(error, subprocess.CalledProcessError) else ""
        said = said.strip() or reason(error)
        raise InputError(f"squeue does not tell SLURM's queue ({said}): try again") from error
    return {jobs[job] for job in listed.stdout.split() if job in jobs}
