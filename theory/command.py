"""The shape that all commands share: a typed dataclass of flags, one-line errors, exit codes.

0 the command did its work, whatever it found; 1 a bound that the user set was broken; 2 bad input;
141 the reader of its output went away, as `head` does.
"""

import contextlib
import io
import os
import signal
import sys
import traceback
from collections.abc import Callable, Sequence
from typing import Any, TypeVar

import tyro

from theory.errors import InputError

Config = TypeVar("Config")


def parse_flags(
    config_type: type[Config],
    argv: Sequence[str] | None,
    *,
    prog: str,
    default: Config | None = None,
) -> Config:
    """A configuration from flags.

    Args:
        config_type: Frozen dataclass of flags, or a union of such for subcommands.
        argv: Flags; the process's own where not given.
        prog: The command as the user types it.
        default: What holds where a flag is not given; the dataclass's own defaults if None.

    Raises:
        InputError: If the flags cannot be read.
        SystemExit: With code 0, after --help.
    """
    complaint = io.StringIO()
    given: dict[str, Any] = {} if default is None else {"default": default}
    try:
        with contextlib.redirect_stderr(complaint):
            return tyro.cli(config_type, prog=prog, args=argv, use_underscores=False, **given)
    except SystemExit as end:
        if not end.code:
            raise
        raise InputError(f"{_one_line(complaint.getvalue())} (see {prog} --help)") from end


def run_command(
    config_type: type[Config],
    run: Callable[[Config], int],
    *,
    prog: str,
    argv: Sequence[str] | None = None,
    default: Callable[[], Config | None] = lambda: None,
) -> int:
    """Parses flags, runs, and turns bad input into one line on stderr.

    Args:
        config_type: Frozen dataclass of flags, or a union of such for subcommands. If an instance
            has a true `debug` attribute, bad input shows its traceback.
        run: Does the work; returns the exit code.
        prog: The command as the user types it.
        argv: Flags; the process's own where not given.
        default: Makes what holds where a flag is not given, see `parse_flags`.

    Returns:
        The exit code.
    """
    config = None
    try:
        config = parse_flags(config_type, argv, prog=prog, default=default())
        code = run(config)
        sys.stdout.flush()
        return code
    except InputError as error:
        if getattr(config, "debug", False):
            traceback.print_exc()
        print(f"error: {error}", file=sys.stderr)
        return 2
    except SystemExit as end:  # after --help
        return int(end.code or 0)
    except KeyboardInterrupt:
        print("interrupted", file=sys.stderr)
        return 130
    except BrokenPipeError:  # the reader of a pipe, such as `head`, has seen enough
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return 128 + signal.SIGPIPE


def _one_line(box: str) -> str:
    """What is said inside the box that tyro draws around an error, its hints as bare names."""
    sections: list[list[str]] = [[]]
    for line in (line.strip("│| \n") for line in box.splitlines()[1:]):
        if not line.strip("╭╮╰╯─-+"):  # a rule, or the frame itself
            sections.append([])
        else:
            sections[-1].append(line)
    told = []
    for lines in sections:
        text = " ".join(" ".join(lines).split()).rstrip(".")
        if text.startswith("Perhaps you meant:"):
            names = [line.split()[0] for line in lines if line.startswith("--")]
            told.append(f"perhaps you meant {' or '.join(names)}")
        elif text and not text.startswith("For full helptext"):
            told.append(text)
    told.sort(key=lambda text: not text.startswith("Unrecognized"))  # explains what is missing
    return "; ".join(told) or "these flags cannot be read"
