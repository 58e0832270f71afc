"""What starting costs: importing the library, and the commands' --help, over `import torch`.

Whole processes with the interpreter's own start. The goals are in seconds, which depend on the
machine, so they stand in the notes; the ratios say what is added to PyTorch's own.
"""

import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

from benchmarks.timing import emit, interleaved

ROOT = Path(__file__).resolve().parent.parent
TORCH = "import torch"
# What is typed after `python`, and the goal in seconds.
COMMANDS = {
    "import theory": (("-c", "import theory"), 2.5),
    "toy --help": (("-m", "toy", "--help"), 3.0),
    "deep.train --help": (("-m", "deep.train", "--help"), 3.0),
}


def main(rounds: int = 5) -> None:
    """Prints the figures."""
    contestants = {name: _process(*arguments) for name, (arguments, _) in COMMANDS.items()}
    seconds = interleaved({TORCH: _process("-c", TORCH), **contestants}, rounds)
    for name, (_, goal) in COMMANDS.items():
        note = f"goal: under {goal:g} s; {TORCH} takes {min(seconds[TORCH]):.2f} s"
        emit(name, seconds, name, TORCH, None, note)


def _process(*arguments: str) -> Callable[[], object]:
    """A run of the interpreter with these arguments, in the checkout."""
    return lambda: subprocess.run(
        [sys.executable, *arguments], cwd=ROOT, check=True, stdout=subprocess.DEVNULL
    )
