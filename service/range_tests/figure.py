"""The curves of a range test as a figure for the dashboard."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from search_spaces.range_tests.analysis import Corner, in_bounds

_COLOURS = ("#1f77b4", "#ff7f0e", "#2ca02c", "#d62728", "#9467bd", "#8c564b", "#e377c2", "#7f7f7f")


_UNITS = {"causal_lm": " (nats per token)", "seq2seq_lm": " (nats per token)"}
"""Of tasks whose loss has one; of others, such as a regression, it depends on the data."""


def draw(corners: Sequence[Corner], bounds: tuple[float, float] | None, title: str, task: str) -> Any:
    """A `plotly.graph_objects.Figure`: train loss against learning rate, raw and smoothed, bounds shaded."""
    import plotly.graph_objects as go  # takes a second, and only a range test's end needs it

    # Without plotly's template, which is most of a figure's text.
    figure = go.Figure(layout={"template": "none"})
    for index, corner in enumerate(corners):
        colour = _COLOURS[index % len(_COLOURS)]
        rates = [_short(point.learning_rate) for point in corner.points]
        raw = [_short(point.loss) for point in corner.points]
        smoothed = [_short(point.smoothed) for point in corner.points]
        faint = {"color": colour, "width": 1}
        figure.add_scatter(
            x=rates, y=raw, mode="lines", line=faint, opacity=0.3, showlegend=False, hoverinfo="skip"
        )
        figure.add_scatter(x=rates, y=smoothed, mode="lines", name=corner.label, line={"color": colour})
    if bounds is not None:
        figure.add_vrect(x0=bounds[0], x1=bounds[1], fillcolor="#2ca02c", opacity=0.12, line_width=0)
        title += f": {in_bounds(bounds)}"
    figure.update_layout(
        title=title,
        xaxis={"title": "learning rate", "type": "log", "exponentformat": "e"},
        yaxis={"title": f"train loss{_UNITS.get(task, '')}", "range": _loss_range(corners)},
    )
    return figure


def _loss_range(corners: Sequence[Corner]) -> list[float] | None:
    """From the lowest loss to a little above the start: what has diverged would hide all else."""
    levels = [point.smoothed for corner in corners for point in corner.points]
    starts = [corner.points[0].smoothed for corner in corners if corner.points]
    if not levels:
        return None
    low, start = min(levels), max(starts)
    return [_short(low - 0.05 * (start - low)), _short(start + 0.5 * (start - low))]


def _short(number: float) -> float:
    return float(f"{number:.5g}")
