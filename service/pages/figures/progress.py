"""The best value so far, against what was spent until then. Pure."""

from __future__ import annotations

import bisect
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from datetime import datetime
from typing import Any

from service.pages.figures.style import TABLE_ROWS, Figure, layout, left_out, look, scaled, short
from service.wording.report_sections import Grid
from service.wording.values import number

MOST_POINTS = 500


@dataclass(frozen=True, kw_only=True)
class Spent:
    """Something that grew evenly from a start to an end."""

    start: datetime
    end: datetime
    amount: float


@dataclass(frozen=True, kw_only=True)
class Ended:
    """A completed trial of the search that broke no constraint."""

    number: int
    at: datetime
    value: float


class Meter:
    """How much was spent up to a moment."""

    def __init__(self, spent: Iterable[Spent]) -> None:
        changes: dict[datetime, float] = {}
        for one in spent:
            seconds = (one.end - one.start).total_seconds()
            if seconds > 0:
                changes[one.start] = changes.get(one.start, 0.0) + one.amount / seconds
                changes[one.end] = changes.get(one.end, 0.0) - one.amount / seconds
        self._times = sorted(changes)
        self._totals: list[float] = []
        self._rates: list[float] = []
        total = rate = 0.0
        before: datetime | None = None
        for time in self._times:
            total += 0.0 if before is None else rate * (time - before).total_seconds()
            rate += changes[time]
            before = time
            self._totals.append(total)
            self._rates.append(rate)

    def until(self, moment: datetime) -> float:
        place = bisect.bisect_right(self._times, moment) - 1
        if place < 0:
            return 0.0
        since = (moment - self._times[place]).total_seconds()
        return max(0.0, self._totals[place] + self._rates[place] * since)


def progress_figure(
    ended: Sequence[Ended], meter: Meter, *, metric: str, minimize: bool, unit: str, key: str
) -> Figure | None:
    """The best value so far against what was spent; None before a trial has completed.

    Args:
        ended: in any order.
        meter: of what was spent.
        metric: the objective.
        minimize: whether less is better.
        unit: what was spent, such as `training examples`.
        key: of the figure.
    """
    if not ended:
        return None
    points: list[tuple[float, Ended, float, bool]] = []
    best: float | None = None
    for one in sorted(ended, key=lambda each: (each.at, each.number)):
        better = best is None or (one.value < best if minimize else one.value > best)
        best = one.value if best is None or better else best
        points.append((meter.until(one.at), one, best, better))
    improved = [point for point in points if point[3]]
    shown = _some(points)
    values = [point[1].value for point in shown]
    table = [
        (one.number, number(value), f"{spent:,.4g}" if spent < 1000 else f"{spent:,.0f}")
        for spent, one, value, _ in improved[-TABLE_ROWS:]
    ]
    note = left_out(len(shown), len(points), "completed trials", "every improvement, and others evenly")
    return Figure(
        id=key,
        title=f"Best so far, by {unit}",
        label=f"Line plot of the best {metric} so far against {unit}: {number(improved[0][2])} after the"
        f" first completed trial, {number(improved[-1][2])} after the last improvement.",
        plot={
            "data": [_dots(shown, metric, unit), _steps(improved, points[-1][0], metric)],
            "layout": layout({"title": unit, "rangemode": "tozero"}, {"title": metric, **scaled(values)}),
        },
        table=Grid(columns=("trial", f"best {metric}", unit), rows=table),
        note=note,
    )


def _some(points: Sequence[tuple[float, Ended, float, bool]]) -> list[tuple[float, Ended, float, bool]]:
    if len(points) <= MOST_POINTS:
        return list(points)
    every = len(points) // MOST_POINTS + 1
    return [point for place, point in enumerate(points) if point[3] or place % every == 0]


def _dots(points: Sequence[tuple[float, Ended, float, bool]], metric: str, unit: str) -> dict[str, Any]:
    style = look("completed")
    return {
        "type": "scatter",
        "mode": "markers",
        "name": "completed trials",
        "x": [short(spent) for spent, _, _, _ in points],
        "y": [short(one.value) for _, one, _, _ in points],
        "text": [f"trial {one.number}: {metric} {number(one.value)}" for _, one, _, _ in points],
        "hoverinfo": "text",
        "marker": {"color": style.colour, "symbol": "circle-open", "size": 7},
    }


def _steps(improved: Sequence[tuple[float, Ended, float, bool]], end: float, metric: str) -> dict[str, Any]:
    last = improved[-1]
    x = [short(point[0]) for point in improved] + [short(max(end, last[0]))]
    hover = [f"trial {one.number}: best {metric} so far {number(value)}" for _, one, value, _ in improved]
    return {
        "type": "scatter",
        "mode": "lines+markers",
        "name": "best so far",
        "x": x,
        "y": [short(point[2]) for point in improved] + [short(last[2])],
        "text": [*hover, f"best {metric} so far {number(last[2])}"],
        "hoverinfo": "text",
        "line": {"color": "--best", "shape": "hv", "width": 3},
        "marker": {"color": "--best", "symbol": "star", "size": [10] * len(improved) + [0]},
    }
