"""The one exception that stands for bad input."""

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
