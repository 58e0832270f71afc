"""Theorem 2's bound against sample size: its terms beside the measured gap, and both its sides."""

from collections.abc import Mapping
from typing import Any

import pandas as pd
from matplotlib.figure import Figure
from matplotlib.ticker import LogFormatterMathtext, NullFormatter

from figures.style import COLORS, legend_below, new_figure, style


def rows(record: Mapping[str, Any]) -> pd.DataFrame:
    """One row a sample size: n and the means over samples of terms and sides."""
    return pd.DataFrame([{"n": size["n"], **size["terms"]} for size in record["sizes"]])


def plot(record: Mapping[str, Any]) -> Figure:
    """Terms and gap on the left, log–log; what the bound must cover on the right."""
    table, settings = rows(record).sort_values("n"), record["settings"]
    with style():
        figure = new_figure(9.6, 4.2)
        left, right = figure.subplots(1, 2)
        terms = {
            "confidence": r"$B\sqrt{\log(1/\delta)/2n}$",
            "complexity": r"$2\hat\eta\eta L_A\gamma\mathcal{X}/(\sqrt{n}(1+L_A))$",
            "repaired_complexity": "complexity, repaired bound",
            "dropped": r"$\hat\eta\eta R$, missing in the bound",
        }
        sizes = table[[*terms, "gap"]].abs()
        sizes = sizes.where(sizes > 0)  # log axes have no place for zeros
        for (name, label), color in zip(terms.items(), COLORS, strict=False):
            left.plot(table["n"], sizes[name], "o-", ms=4, color=color, label=label)
        left.errorbar(
            table["n"], sizes["gap"], 1.96 * table["gap_sem"], fmt="s--", ms=4,
            color=COLORS[4], label="measured |gap| of $L_{mix}$",
        )  # fmt: skip
        left.set_xscale("log")
        if sizes.notna().any(axis=None):
            left.set_yscale("log")
        left.set(xlabel="n", ylabel="nats", title="Terms of the bound and the gap")
        left_side = table["left_objective"]
        spare = {
            "Theorem 2": table["bound"] - left_side,
            "repaired bound": table["repaired_bound"] - table["expected_l_mix"],
        }
        for (label, values), color in zip(spare.items(), COLORS, strict=False):
            right.plot(table["n"], values, "o-", ms=4, color=color, label=label)
        right.axhline(0, color="0.4", lw=0.8, ls="--", label="below: violated")
        right.set_xscale("log")
        values = pd.concat(spare.values())
        if values.abs().max() > 30 * values.abs().min():  # or a plain axis reads better
            right.set_yscale("symlog", linthresh=max(5 * float(values.abs().min()), 1e-9))
        right.set(xlabel="n", ylabel="bound − left side   [nats]", title="Does the bound cover?")
        for ax in (left, right):
            legend_below(ax)
            ax.set_xticks(table["n"])
            wide = table["n"].max() > 1e6 * table["n"].min()  # then neighbours are close
            ax.xaxis.set_major_formatter(LogFormatterMathtext() if wide else "{x:g}")
            ax.xaxis.set_minor_formatter(NullFormatter())
        figure.suptitle(
            f"Theorem 2, {settings['family']} on {settings['data']}, η = {settings['eta']:g}",
            x=0.01, ha="left", fontweight="bold",
        )  # fmt: skip
    return figure
