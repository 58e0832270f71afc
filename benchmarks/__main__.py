"""Command: `python -m benchmarks NAME` prints one JSON line for each figure of that benchmark.

A line before them says by which command, versions and commit they were measured.
"""

import json
import sys
from importlib import import_module
from pathlib import Path

from theory.record import command_line, environment

NAMES = sorted(
    path.stem for path in Path(__file__).parent.glob("*.py") if not path.stem.startswith("_")
)
NAMES.remove("timing")


def main() -> int:
    """Runs the benchmarks named on the command line."""
    chosen = sys.argv[1:]
    unknown = [name for name in chosen if name not in NAMES]
    if unknown or not chosen:
        named = f"unknown benchmark {unknown[0]!r}" if unknown else "no benchmark named"
        print(f"error: {named}: choose from {', '.join(NAMES)}", file=sys.stderr)
        return 2
    run = {"command": command_line("benchmarks"), **environment()}
    print(json.dumps(run, ensure_ascii=False), flush=True)
    for name in chosen:
        import_module(f"benchmarks.{name}").main()
    return 0


if __name__ == "__main__":
    sys.exit(main())
