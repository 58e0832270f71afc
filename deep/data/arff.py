"""Reader of ARFF files, the format that most tables of the UCI repository are passed on in.

A header of `@attribute name type` lines, then `@data` and one comma-separated line an example. `%`
starts a comment line, `?` is a missing value, blanks around values mean nothing (some files align
their columns by them). Types read are numbers and lists of names, `{a, b, c}`.
"""

import csv
import re
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pandas as pd

from deep.data.files import reading

# Possessive, or a long word would be tried in all its divisions into name and type.
_ATTRIBUTE = re.compile(
    r"""@attribute\s++('[^']*+'|"[^"]*+"|[^\s{]++)\s*+(\{.*\}|\S++)\s*+$""", re.I
)
_MOST_CATEGORIES = 1000  # of a file in all; each is to become an input of a network
_NUMERIC = ("numeric", "real", "integer")
_MISSING = "?"

Lines = Iterator[tuple[int, str]]


def read_arff(path: Path) -> pd.DataFrame:
    """Return the table with a column an attribute: float64, or categories as declared.

    Missing values are NaN. Categories are those of the header, in its order, whether or not an
    example has them.

    Raises:
        InputError: The file is missing or no ARFF file, a line has too few or too many values, a
            number is none, or a category is not a declared one.
    """
    with reading(path):
        # Some of these files hold names in Latin-1, none of which matters.
        text = path.read_text(encoding="utf-8", errors="replace")
        lines = (
            (number, line.strip())
            for number, line in enumerate(text.splitlines(), 1)
            if line.strip() and not line.lstrip().startswith("%")
        )
        attributes = _header(lines)
        rows = _rows(lines, len(attributes))
        columns = zip(attributes.items(), rows.T, strict=True)
        return pd.DataFrame({name: _column(name, kind, v) for (name, kind), v in columns})


def _header(lines: Lines) -> dict[str, tuple[str, ...] | None]:
    """Attributes by name: their categories, or None for numbers."""
    attributes: dict[str, tuple[str, ...] | None] = {}
    for number, line in lines:
        if line.lower() == "@data":
            return attributes
        if line.lower().startswith("@relation"):
            continue
        match = _ATTRIBUTE.match(line)
        if match is None:
            raise ValueError(f"line {number} is no @attribute line: {line[:40]}")
        name, kind = match[1].strip("'\""), match[2]
        if name in attributes:
            raise ValueError(f"line {number} declares {name} once more")
        if kind.startswith("{"):
            attributes[name] = tuple(_values(kind[1:-1]))
            if sum(map(len, filter(None, attributes.values()))) > _MOST_CATEGORIES:
                raise ValueError(f"there are more than {_MOST_CATEGORIES} categories")
        elif kind.lower() in _NUMERIC:
            attributes[name] = None
        else:
            raise ValueError(f"line {number} declares values of type {kind}")
    raise ValueError("there is no @data line")


def _rows(lines: Lines, width: int) -> np.ndarray:
    rows = []
    for number, line in lines:
        values = _values(line)
        if len(values) != width:
            raise ValueError(f"line {number} has {len(values)} values, not {width}")
        rows.append(values)
    if not rows:
        raise ValueError("there are no examples")
    return np.array(rows, dtype=object)


def _values(line: str) -> list[str]:
    (values,) = csv.reader([line], quotechar="'", skipinitialspace=True)
    return [value.strip() for value in values]


def _column(name: str, categories: tuple[str, ...] | None, values: np.ndarray) -> pd.Series:
    present = values != _MISSING
    values = np.where(present, values, np.nan)
    if categories is None:
        numbers = values.astype(np.float64)
        if np.isinf(numbers).any():
            raise ValueError(f"{name} has an infinite value")
        return pd.Series(numbers)
    unknown = set(values[present]) - set(categories)
    if unknown:
        raise ValueError(f"{name} has the value {min(unknown)}, which is not declared")
    return pd.Series(pd.Categorical(values, categories=categories))
