"""Truncated power series through ordinary PyTorch code.

Inside `with SeriesMode(terms, RULES)`, a model applied to a `Series` returns the series of its
result. `theory.taylor` is the interface to it.
"""

from theory.series import functions, linear, norms, pieces, products  # noqa: F401 - fill RULES
from theory.series.mode import NESTED_MOST, Series, SeriesMode
from theory.series.operands import RULES
from theory.series.recurrences import compiled

__all__ = ["NESTED_MOST", "RULES", "Series", "SeriesMode", "compiled"]
