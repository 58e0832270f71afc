"""What `python -m deep.table` asks of a table: jobs, each trained in one go and recorded whole."""

from abc import ABC, abstractmethod
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any, ClassVar

# Called now and then with the part of a job that is done, in [0, 1].
Progress = Callable[[float], None]


class Job(ABC):
    """Training runs that go into the record together, or not at all.

    Attributes:
        name: Unique in its table; what the record knows a finished job by.
        row: The table's row that it belongs to.
        runs: How many networks are trained in it.
        settings: All that decides its result but the data, as JSON can hold it.
    """

    name: str
    row: str
    runs: int
    settings: dict[str, Any]

    @abstractmethod
    def seconds(self) -> float:
        """About how long it takes on this machine, from a few steps of the real thing.

        Raises:
            InputError: If its data cannot be had.
        """

    @abstractmethod
    def source(self) -> str:
        """What the record says of its data, see `run`.

        Raises:
            InputError: If its data cannot be had.
        """

    @abstractmethod
    def run(self, progress: Progress) -> dict[str, Any]:
        """Trains, and returns what the record says of it, as JSON can hold it.

        `data`: `source` (files and SHA-256, in one line) and the sizes of the parts, `train` and
        `test` at least. `results`: a list of outcomes, each with `method`
        (of `deep.objective`), `split` (number of the repetition: seed or fold), `error` (share of
        test examples misclassified, in [0, 1]) and whatever else the table's protocol yields, such
        as `chosen` (hyper-parameters picked on the validation part), `selection`, or `train` where
        the network learned from fewer than all of the training part.

        Raises:
            InputError: If its data cannot be had, or training diverges.
        """


@dataclass(frozen=True, kw_only=True)
class TableConfig(ABC):
    """Flags that all tables share."""

    number: ClassVar[int]
    """The table's, in the talk"""

    rows: tuple[str, ...] = ()
    """Rows to run; all if not given"""
    data_dir: Path | None = None
    """Folder that holds the published files; without it they are downloaded and verified"""
    out: Path | None = None
    """Folder of the record and the rendered table; runs/table/<number> if not given"""
    minutes: float | None = None
    """Begin no further job after so many minutes; call again to go on"""
    plan: bool = False
    """Say how many runs there are and about how long they take, and stop"""
    debug: bool = False
    """Show the traceback of an error"""

    @property
    def resplit(self) -> bool:
        """Whether each repetition splits the data anew (else they share one split)."""
        return True

    @abstractmethod
    def jobs(self) -> list[Job]:
        """What is to be trained, in order.

        Raises:
            InputError: If a flag is out of range or a row unknown.
        """
