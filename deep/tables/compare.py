"""A table as published beside ours, in numbers, from its record.

Three parts. `cells`: each cell's published and measured error and their difference. `gains`: what
MixupE gains over ERM and over Mixup, by paired differences within each row, with a verdict on the
gain that the talk claims. `ranks`: the methods over all rows.
"""

import math
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from itertools import combinations
from typing import Any

import numpy as np
import pandas as pd

from deep.tables.published import METHODS, Published
from deep.tables.statistics import (
    Difference,
    critical_difference,
    friedman,
    holm,
    judge_gain,
    mean_ranks,
    paired_difference,
    welch_difference,
    wilcoxon,
)

MIXUPE = METHODS["mixupe"]
BASELINES = ("erm", "mixup")


@dataclass(frozen=True)
class Measured:
    """Errors of one row, in per cent.

    Attributes:
        errors: Method -> split -> test error.
        test_over_train: n_test/n_train where splits are drawn anew, 0 where all share one.
    """

    errors: dict[str, dict[int, float]]
    test_over_train: float

    def of(self, *methods: str) -> list[np.ndarray]:
        """Each method's errors, over the splits that all of them have."""
        shared = sorted(set.intersection(*(set(self.errors[method]) for method in methods)))
        return [np.array([self.errors[method][k] for k in shared]) for method in methods]


def selections(lines: Sequence[Mapping[str, Any]]) -> list[str | None]:
    """The ways in which the record's epochs were selected, one table each; [None] if there is one.

    Args:
        lines: Of the record.
    """
    found = {result.get("selection") for line in lines for result in line["results"]}
    return sorted(found, key=str) or [None]


def measured(lines: Sequence[Mapping[str, Any]], selection: str | None) -> dict[str, Measured]:
    """Row -> its errors under one selection.

    Args:
        lines: Of the record.
        selection: One of `selections`.
    """
    rows: dict[str, Measured] = {}
    for line in lines:
        chosen = [r for r in line["results"] if r.get("selection") == selection]
        if not chosen:
            continue
        # What is held out to select by is not learned from, whatever the data's own parts are.
        train = min(result.get("train", line["data"]["train"]) for result in chosen)
        ratio = line["data"]["test"] / train if line["resplit"] else 0.0
        row = rows.setdefault(line["row"], Measured({}, ratio))
        for result in chosen:
            row.errors.setdefault(result["method"], {})[result["split"]] = 100 * result["error"]
    return rows


def cells(table: Published, rows: Mapping[str, Measured]) -> pd.DataFrame:
    """A line a row and method: published, ours, and ours − published with its interval.

    Errors in per cent, differences in percentage points; the interval is Welch's for independent
    means. NaN where one of the two is missing, or the talk does not say how many trials it took.
    """
    lines = []
    for name, row in table.rows.items():
        found = rows.get(name, Measured({}, 0.0)).errors
        for method in dict.fromkeys([*row.errors, *found]):
            errors = np.array(list(found.get(method, {}).values()))
            n = len(errors)
            mean = float(errors.mean()) if n else math.nan
            sd = float(errors.std(ddof=1)) if n > 1 else math.nan
            talk, spread = row.errors.get(method, (math.nan, math.nan))
            apart = Difference(mean - talk, math.nan, math.nan, math.nan, n)
            if n > 1 and method in row.errors and table.trials is not None:
                apart = welch_difference((mean, sd, n), (talk, spread, table.trials))
            lines.append({
                "row": name, "label": row.label, "method": method, "published": talk,
                "published_sd": spread, "ours": mean, "sd": sd, "repetitions": n,
                "difference": apart.mean, "low": apart.low, "high": apart.high,
            })  # fmt: skip
    return pd.DataFrame(lines)


def gains(table: Published, rows: Mapping[str, Measured]) -> pd.DataFrame:
    """A line a row, MixupE variant and baseline: the paired difference in error, and a verdict.

    In percentage points, negative where MixupE is better. `p` is Holm's, over the rows of one
    comparison. Only the talk's own variant has a claim to judge.
    """
    lines: list[dict[str, Any]] = []
    variants = dict.fromkeys(
        m for row in rows.values() for m in row.errors if m.startswith("mixupe")
    )
    for variant in variants:
        for baseline in BASELINES:
            block: list[dict[str, Any]] = []
            for name, row in table.rows.items():
                if not {variant, baseline} <= rows.get(name, Measured({}, 0.0)).errors.keys():
                    continue
                ours, other = rows[name].of(variant, baseline)
                if not len(ours):
                    continue  # no split in common
                found = paired_difference(ours, other, rows[name].test_over_train)
                claimed = row.errors[MIXUPE][0] - row.errors[baseline][0]
                verdict = judge_gain(claimed, found) if variant == MIXUPE else ""
                block.append({
                    "row": name, "label": row.label, "method": variant, "baseline": baseline,
                    "claimed": claimed if variant == MIXUPE else math.nan,
                    "difference": found.mean, "low": found.low, "high": found.high,
                    "p": found.p, "repetitions": found.count, "verdict": verdict,
                })  # fmt: skip
            for line, p in zip(block, holm([line["p"] for line in block]), strict=True):
                line["p"] = p
            lines += block
    return pd.DataFrame(lines)


@dataclass(frozen=True)
class Ranks:
    """The methods over all rows that have each of them.

    Attributes:
        ranks: Method -> mean rank by error, 1 the best.
        rows: Number of rows.
        friedman: p-value of "all rank alike".
        critical_difference: Nemenyi's at 5 %.
        pairs: (method, method) -> p-value of Wilcoxon's signed-rank test, by Holm over the pairs.
    """

    ranks: dict[str, float]
    rows: int
    friedman: float
    critical_difference: float
    pairs: dict[tuple[str, str], float]


def ranks(rows: Mapping[str, Measured]) -> Ranks | None:
    """Ranks of the methods that most rows have, or None with fewer than two rows or methods."""
    found = Counter(method for row in rows.values() for method in row.errors)
    methods = [method for method, count in found.items() if 2 * count > len(rows)]
    complete = [row for row in rows.values() if set(methods) <= row.errors.keys()]
    if len(complete) < 2 or len(methods) < 2:
        return None
    means = [[errors.mean() for errors in row.of(*methods)] for row in complete]
    errors = np.array(means).round(9)  # equal means of many numbers differ by rounding
    pairs = list(combinations(range(len(methods)), 2))
    adjusted = holm([wilcoxon(errors[:, a], errors[:, b]) for a, b in pairs])
    return Ranks(
        dict(zip(methods, map(float, mean_ranks(errors)), strict=True)),
        len(complete),
        friedman(errors),
        critical_difference(len(methods), len(complete)),
        {(methods[a], methods[b]): p for (a, b), p in zip(pairs, adjusted, strict=True)},
    )
