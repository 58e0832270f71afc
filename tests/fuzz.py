"""Every reader of files on damaged files: a sound result, or an InputError of one line.

`PYTHONPATH=. python tests/fuzz.py --inputs 100000` tries so many in all and prints the outcomes.
An input is known by its reader and number alone: `--reader NAME --number 17` tries that one again
and shows the traceback. The exit code is 1 if any input failed.
"""

import argparse
import os
import random
import resource
import signal
import sys
import tempfile
import traceback
import warnings
from collections import Counter
from pathlib import Path

os.environ.setdefault("OMP_NUM_THREADS", "1")
import conftest  # noqa: F401  # shapes and types are checked in every call
import torch
from readers import READERS

from theory.errors import InputError

SECONDS = 5  # of the processor, for one input
MEMORY = 2**28  # bytes that one input may add to what the process has held before


class Hang(BaseException):
    """An input took too long. No reader may catch it, so it is no Exception."""


def held():
    """Most bytes of memory that the process has had so far."""
    return 1024 * resource.getrusage(resource.RUSAGE_SELF).ru_maxrss


def prepare(name, folder):
    """Writes the valid folder, reads it, keeps its contents."""
    reader = READERS[name]
    folder.mkdir()
    reader.write(folder)
    reader.contents = {file: (folder / file).read_bytes() for file in reader.files}
    reader.read(folder)


def attempt(name, number, folder):
    """Damages one file and reads; "read" or "refused". Whatever else comes out is a failure."""
    reader, rng = READERS[name], random.Random(f"{name} {number}")
    file = rng.choice(reader.files)
    content = rng.choice(reader.changes)(reader.contents[file], rng)
    (folder / file).write_bytes(content)
    reader.finish(folder)
    before = held()
    signal.setitimer(signal.ITIMER_PROF, SECONDS)
    try:
        reader.read(folder)
        outcome = "read"
    except InputError as error:
        outcome = "refused"
        judge(error, (*reader.files, folder.name))
    finally:
        signal.setitimer(signal.ITIMER_PROF, 0)
    (folder / file).write_bytes(reader.contents[file])
    assert held() - before < MEMORY, f"it took {(held() - before) / 2**20:.0f} MiB"
    return outcome


def judge(error, names):
    """A refusal is a line that names the file, and is not for want of memory."""
    line = str(error)
    assert line.isprintable(), line
    assert len(line) < 2500, line
    assert any(name in line for name in names), line
    assert not isinstance(error.__cause__, MemoryError), "it asked for more memory than allowed"


def limit():
    """Stops what takes too long or too much memory; warnings are errors."""

    def hang(number, frame):
        raise Hang(f"more than {SECONDS} s")

    signal.signal(signal.SIGPROF, hang)
    warnings.simplefilter("error")
    pages = int(Path("/proc/self/statm").read_text().split()[0])
    most = pages * resource.getpagesize() + 2**31
    resource.setrlimit(resource.RLIMIT_AS, (most, most))


def main():
    parser = argparse.ArgumentParser()
    parser.add_argument("--inputs", type=int, default=10_000, help="in all")
    parser.add_argument("--first", type=int, default=0, help="number of each reader's first input")
    parser.add_argument("--reader", choices=READERS, nargs="+", default=list(READERS))
    parser.add_argument("--number", type=int, help="try this one alone")
    flags = parser.parse_args()
    torch.set_num_threads(1)
    whole = sum(READERS[name].share for name in flags.reader)
    total = Counter()
    print(f"{'reader':<14}{'inputs':>8}{'read':>8}{'refused':>9}{'failed':>8}", flush=True)
    with tempfile.TemporaryDirectory() as root:
        for name in flags.reader:
            prepare(name, Path(root) / name)
        limit()
        for name in flags.reader:
            count = -int(-flags.inputs * READERS[name].share / whole // 1)
            numbers = range(flags.first, flags.first + count)
            outcomes = Counter()
            for number in numbers if flags.number is None else [flags.number]:
                try:
                    outcomes[attempt(name, number, Path(root) / name)] += 1
                except (Exception, Hang) as error:
                    outcomes["failed"] += 1
                    line = " ".join(f"{type(error).__name__}: {error}".split())[:300]
                    print(f"  {name} {number}: {line}", flush=True)
                    if flags.number is not None:
                        traceback.print_exc(file=sys.stdout)
                    prepare_again(name, Path(root) / name)
            show(name, outcomes)
            total += outcomes
    show("all", total)
    return 1 if total["failed"] else 0


def prepare_again(name, folder):
    for file, content in READERS[name].contents.items():
        (folder / file).write_bytes(content)


def show(name, outcomes):
    counts = (outcomes.total(), *(outcomes[kind] for kind in ("read", "refused", "failed")))
    print(f"{name:<14}{counts[0]:>8}{counts[1]:>8}{counts[2]:>9}{counts[3]:>8}", flush=True)


if __name__ == "__main__":
    sys.exit(main())
