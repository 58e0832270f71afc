"""The figures of `python -m toy` and of `python -m theory.generalization`, by study."""

from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from matplotlib.figure import Figure

from figures import (
    boundary,
    generalization,
    implicit_bias,
    relu_margin,
    soft_minimiser,
    sweep,
)
from figures.drawing import Drawing
from figures.style import data_name
from theory.errors import InputError
from theory.record import parse_json, read_text

_BIAS = (
    "Linear logistic regression on separable data: norm of w, training loss, and the gaps of angle "
    "and margin to the max-margin direction"
)
_STUDIES: dict[str, tuple[str, Callable[[Mapping[str, Any]], Figure]]] = {
    "bias": (f"{_BIAS}, along gradient flow.", implicit_bias.plot),
    "descent": (f"{_BIAS}, by steps of each algorithm.", implicit_bias.plot),
    "soft": (
        "Mixup with soft labels has a finite minimiser: its norm and its angle to the max-margin "
        "direction, against α and against the margin.",
        soft_minimiser.plot,
    ),
    "sweep": (
        "Angle and margin gaps of ERM and of Mixup against the step, means over seeds and their "
        "standard errors, a column an α.",
        sweep.plot,
    ),
    "relu": ("Margins of a two-layer ReLU network trained by ERM and by Mixup.", relu_margin.plot),
    "boundary": (
        "P(y = 1 | x) of a small network in the plane after ERM, Mixup and MixupE; black: 1/2.",
        boundary.plot,
    ),
}


def drawings(record: Mapping[str, Any]) -> dict[str, Drawing]:
    """The figure of a record by name; none for a study that has no figure.

    Args:
        record: What `python -m toy` or `python -m theory.generalization` measured.
    """
    if "sizes" in record:
        caption = (
            "Theorem 2 on a generalised linear model: terms of the bound beside the measured gap, "
            "and by how much the bound and the repaired bound cover, against the sample size. "
            f"Data: {data_name(record['settings'])}."
        )
        return {"generalization": Drawing(caption, lambda: generalization.plot(record))}
    if record["study"] not in _STUDIES:
        return {}
    caption, plot = _STUDIES[record["study"]]
    about = f"{caption} Data: {data_name(record['settings'])}."
    return {record["study"]: Drawing(about, lambda: plot(record))}


def read(path: Path) -> dict[str, Any]:
    """A record of one of those commands.

    Raises:
        InputError: If the file cannot be read or is another record.
    """
    record = parse_json(read_text(path, "", "name a study's record"), path)
    known = isinstance(record, dict) and "settings" in record
    if not known or not {"study", "sizes"} & record.keys():
        raise InputError(f"{path} is no record that can be drawn: see python -m figures --help")
    return record
