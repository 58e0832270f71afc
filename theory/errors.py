"""The one exception that stands for bad input."""


class InputError(ValueError):
    """Input that cannot be used; the message is one line naming the fault and the remedy.

    Commands print the message and exit with status 2; library callers catch it as a `ValueError`.
    """
