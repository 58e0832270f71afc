"""Interleaved timing: every round runs all contestants once, so drift hits them alike."""

import json
import statistics
import time
from collections.abc import Callable, Mapping


def interleaved(
    contestants: Mapping[str, Callable[[], object]], rounds: int = 15
) -> dict[str, list[float]]:
    """Seconds of each contestant in each round, after one round that is not counted."""
    seconds: dict[str, list[float]] = {name: [] for name in contestants}
    for k in range(rounds + 1):
        for name, run in contestants.items():
            start = time.perf_counter()
            run()
            if k:
                seconds[name].append(time.perf_counter() - start)
    return seconds


def emit(
    name: str,
    seconds: Mapping[str, list[float]],
    contestant: str,
    baseline: str,
    goal: float | None,
    note: str = "",
) -> None:
    """Prints one figure: the median over rounds of contestant / baseline within the round."""
    ratios = [a / b for a, b in zip(seconds[contestant], seconds[baseline], strict=True)]
    times = seconds[contestant]
    figure = {
        "name": name,
        "ratio": round(statistics.median(ratios), 3),
        "goal": goal,
        "baseline": baseline,
        "seconds": [round(t, 5) for t in (min(times), statistics.median(times), max(times))],
        "note": note,
    }
    print(json.dumps(figure, ensure_ascii=False), flush=True)
