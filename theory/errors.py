"""The one exception that stands for bad input, and its commonest forms."""

import difflib
import math
from collections.abc import Iterable

_LONGEST = 2000  # characters of a message


class InputError(ValueError):
    """Input that cannot be used; the message is one line naming the fault and the remedy.

    Commands print the message and exit with status 2; library callers catch it as a `ValueError`.
    A message quotes what others wrote: names of files, words in them. So whatever is not printable
    (line breaks, terminal codes) becomes a blank, and what is too long loses its middle.
    """

    def __init__(self, message: str) -> None:
        words = "".join(c if c.isprintable() else " " for c in message).split()
        line = " ".join(words)
        if len(line) > _LONGEST:
            line = f"{line[: _LONGEST // 2]} … {line[-_LONGEST // 2 :]}"
        super().__init__(line)


def check_positive(name: str, value: float) -> None:
    """Raises InputError unless a setting is positive and finite."""
    if not 0 < value < math.inf:
        raise InputError(f"{name} is {value}: it must be positive and finite")


def unknown(what: str, name: object, known: Iterable[str], more: str = "") -> InputError:
    """The error of a name that is none of those known; it suggests the nearest one.

    Args:
        what: What has such a name.
        name: The unknown one.
        known: Those that may be chosen.
        more: What may be given besides.
    """
    by_lower = {choice.lower(): choice for choice in known}
    close = difflib.get_close_matches(str(name).lower(), by_lower, n=1)
    hint = f"did you mean {by_lower[close[0]]}? " if close else ""
    choices = ", ".join([*by_lower.values(), *([f"or {more}"] if more else [])])
    return InputError(f"unknown {what} {name!r}: {hint}choose one of {choices}")
