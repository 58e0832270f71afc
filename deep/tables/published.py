"""The talk's tables as data: what was printed, of `published.toml`."""

import tomllib
from dataclasses import dataclass
from importlib import resources

# The published columns and the objectives that stand for them here.
METHODS = {"erm": "erm", "mixup": "mixup", "mixupe": "mixupe-paper"}


@dataclass(frozen=True)
class Row:
    """One row of a published table.

    Attributes:
        label: Its name in the talk.
        errors: Objective -> mean test error and its spread, both in per cent.
    """

    label: str
    errors: dict[str, tuple[float, float]]


@dataclass(frozen=True)
class Published:
    """A published table.

    Attributes:
        caption: What it is called, in one line.
        row: What each row is about.
        trials: Repetitions behind each number; None if the talk does not say.
        unit: What the printed spread is taken for.
        rows: The rows by the name that the commands know them by, in the talk's order.
    """

    caption: str
    row: str
    trials: int | None
    unit: str
    rows: dict[str, Row]


def published(number: int | str) -> Published:
    """The talk's table of that number (4, 5 or 6), or its table of "images", which has none."""
    text = resources.files("deep.tables").joinpath("published.toml").read_text(encoding="utf-8")
    content = tomllib.loads(text)[str(number)]
    return Published(
        content["caption"],
        content.get("row", "data set"),
        content.get("trials"),
        content["unit"],
        {
            name: Row(
                row["label"],
                {
                    ours: (row[theirs][0], row[theirs][1] * content["spread"])
                    for theirs, ours in METHODS.items()
                },
            )
            for name, row in content["rows"].items()
        },
    )
