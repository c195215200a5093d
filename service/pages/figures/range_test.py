"""The curves of a learning-rate range test. Pure."""

from __future__ import annotations

from typing import Any

from search_spaces.range_tests.analysis import corner_label, in_bounds, in_rate
from service.pages.figures.style import Figure, layout, log_ticks, short, text
from service.range_tests.schemas import RangeTestView
from service.wording.report_sections import Grid

_LOOKS = (
    ("--completed", "solid"),
    ("--running", "dash"),
    ("--pruned", "dot"),
    ("--lost", "dashdot"),
    ("--diverged", "longdash"),
    ("--cancelled", "longdashdot"),
)
MOST_POINTS = 200


def range_test_figure(test: RangeTestView) -> Figure | None:
    """Train loss against learning rate, smoothed, with the bounds shaded; None before a corner is swept."""
    swept = [corner for corner in test.corners if corner.curve]
    if not swept:
        return None
    data: list[dict[str, Any]] = []
    for place, corner in enumerate(swept):
        colour, dash = _LOOKS[place % len(_LOOKS)]
        step = len(corner.curve) // MOST_POINTS + 1
        points = corner.curve[::step]
        data.append(
            {
                "type": "scatter",
                "mode": "lines",
                "name": text(corner_label(corner.values)),
                "x": [short(point.learning_rate) for point in points],
                "y": [short(point.smoothed) for point in points],
                "line": {"color": colour, "dash": dash, "width": 2},
            }
        )
    levels = [point.smoothed for corner in swept for point in corner.curve]
    rates = [point.learning_rate for corner in swept for point in corner.curve]
    low, start = min(levels), max(corner.curve[0].smoothed for corner in swept)
    room = start - low or 1.0
    shapes = []
    if test.bounds is not None:
        shapes.append(
            {
                "type": "rect",
                "x0": test.bounds.min,
                "x1": test.bounds.max,
                "y0": 0,
                "y1": 1,
                "yref": "paper",
                "fillcolor": "--completed",
                "opacity": 0.12,
                "line": {"width": 0},
                "layer": "below",
            }
        )
    return Figure(
        id="range-test",
        title="Learning-rate range test",
        label="Line plot of the smoothed train loss against the learning rate, one line for each corner"
        + (f"; the shaded band is {in_bounds((test.bounds.min, test.bounds.max))}." if test.bounds else "."),
        plot={
            "data": data,
            "layout": layout(
                {"title": "learning rate", "type": "log", **log_ticks(min(rates), max(rates), in_rate)},
                # What has diverged would hide all else.
                {"title": "train loss", "range": [short(low - 0.05 * room), short(start + 0.5 * room)]},
                shapes=shapes,
            ),
        },
        table=Grid(
            columns=("corner", "steepest", "lowest", "diverged", "note"),
            rows=[
                (
                    corner_label(c.values),
                    _rate(c.steepest),
                    _rate(c.minimum),
                    _rate(c.divergence),
                    c.note or "-",
                )
                for c in test.corners
            ],
        ),
        note="The shaded band is what the search was narrowed to." if test.bounds is not None else "",
    )


def _rate(rate: float | None) -> str:
    return "-" if rate is None else in_rate(rate)
