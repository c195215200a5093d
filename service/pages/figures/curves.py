"""The curves of a study's trials, by outcome. Pure."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from service.pages.figures.style import (
    TABLE_ROWS,
    Figure,
    Look,
    layout,
    left_out,
    legend_place,
    look,
    scaled,
    short,
    text,
    words,
)
from service.wording.report_sections import Grid
from service.wording.values import number

MOST_CURVES = 150
MOST_POINTS = 60
"""Of one curve; of more, evenly spread ones."""
_MARKED = 40
"""Curves up to which every evaluation has a mark."""


@dataclass(frozen=True, kw_only=True)
class TrialCurve:
    """A trial's values at its rungs."""

    number: int
    state: str
    """Its outcome, or `repeat`."""
    points: Sequence[tuple[int, float]]
    """Training examples and value, ascending."""


def curves_figure(curves: Sequence[TrialCurve], metric: str, best: int | None) -> Figure | None:
    """Every trial's values against examples seen; None before the first.

    Args:
        curves: the most worth showing first.
        metric: what the values are.
        best: the number of the best trial.
    """
    drawn = [curve for curve in curves if curve.points]
    if not drawn:
        return None
    shown = drawn[:MOST_CURVES]
    states = sorted({curve.state for curve in shown}, key=legend_place)
    data = [
        _trace([c for c in shown if c.state == state and c.number != best], words(state), look(state), metric)
        for state in states
    ]
    winner = [curve for curve in shown if curve.number == best]
    if winner:
        line = Look(colour="--best", symbol="star")
        data.append(_trace(winner, f"trial {best}, the best", line, metric, width=4))
    if len(shown) > _MARKED:
        for trace in data:
            trace["mode"] = "lines"
    calm = [value for c in shown if c.state != "diverged" for _, value in c.points]
    levels = calm or [value for c in shown for _, value in c.points]
    y: dict[str, Any] = {"title": metric, **scaled(levels)}
    notes = [left_out(len(shown), len(drawn), "curves", "the best, those that run, and the latest")]
    if y["type"] == "linear" and len(calm) < sum(len(c.points) for c in shown) and calm:
        low, high = min(calm), max(calm)
        room = 0.05 * (high - low) or 1.0
        y["range"] = [short(low - room), short(high + room)]
        notes.append("Diverged trials leave the plot where their values are far from those of the others.")
    return Figure(
        id="curves",
        title=f"{metric} during training",
        label=f"Line plot of {metric} against training examples seen, one line for each of"
        f" {len(shown)} trials.",
        plot={
            "data": [trace for trace in data if trace["x"]],
            "layout": layout({"title": "training examples seen"}, y),
        },
        table=_table(shown, metric),
        note=" ".join(note for note in notes if note),
        height=420,
    )


def _trace(
    curves: Sequence[TrialCurve], name: str, style: Look, metric: str, *, width: float = 1.5
) -> dict[str, Any]:
    """One trace for all trials of an outcome: a gap stands between two of them."""
    x: list[int | None] = []
    y: list[float | None] = []
    hover: list[str] = []
    for curve in curves:
        for examples, value in thinned(curve.points):
            x.append(examples)
            y.append(short(value))
            hover.append(
                f"trial {curve.number}, {words(curve.state)}: {number(value)} at {examples:,} examples"
            )
        x.append(None)
        y.append(None)
        hover.append("")
    return {
        "type": "scatter",
        "mode": "lines+markers",
        "name": text(name),
        "x": x,
        "y": y,
        "text": hover,
        "hoverinfo": "text",
        "line": {"color": style.colour, "dash": style.dash, "width": width},
        "marker": {"color": style.colour, "symbol": style.symbol, "size": 6},
        "opacity": 1.0 if len(curves) <= _MARKED else 0.6,
    }


def thinned(points: Sequence[tuple[int, float]]) -> list[tuple[int, float]]:
    """At most `MOST_POINTS` of them, evenly spread, with the first and the last."""
    if len(points) <= MOST_POINTS:
        return list(points)
    step = (len(points) - 1) / (MOST_POINTS - 1)
    return [points[round(place * step)] for place in range(MOST_POINTS)]


def _table(curves: Sequence[TrialCurve], metric: str) -> Grid:
    rows: list[Sequence[object]] = []
    for curve in curves[:TABLE_ROWS]:
        lowest = min(value for _, value in curve.points)
        highest = max(value for _, value in curve.points)
        last, value = curve.points[-1]
        rows.append(
            (
                curve.number,
                words(curve.state),
                len(curve.points),
                number(lowest),
                number(highest),
                f"{number(value)} at {last:,} examples",
            )
        )
    columns = ("trial", "outcome", "evaluations", f"lowest {metric}", f"highest {metric}", "last")
    return Grid(columns=columns, rows=rows)


def by_interest(curves: Sequence[TrialCurve], ranking: Mapping[int, int]) -> list[TrialCurve]:
    """The order in which curves are worth showing: the best third, those that run, then the latest.

    Args:
        curves: all.
        ranking: number -> place among the completed ones, 0 for the best.
    """
    leading = {number for number, place in ranking.items() if place < MOST_CURVES // 3}

    def place(curve: TrialCurve) -> tuple[bool, int, bool, int]:
        leads = curve.number in leading
        return (
            not leads,
            ranking[curve.number] if leads else 0,
            curve.state not in ("running", "repeat"),
            -curve.number,
        )

    return sorted(curves, key=place)
