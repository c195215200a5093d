"""How a schedule's sweeps went, night after night. Pure."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from datetime import datetime
from typing import Any

from search_spaces.wording import counted
from service.pages.figures.style import Figure, instant, layout, scaled, short, text
from service.wording.values import number


@dataclass(frozen=True, kw_only=True)
class Sweep:
    """A study that a schedule made."""

    name: str
    at: datetime
    """What it was made for."""
    state: str
    value: float | None
    """The objective of its best trial."""
    changed: Sequence[str]
    """Of its data and model, what differs by content from the sweep before: `data.train`, `model`, ..."""


@dataclass(frozen=True, kw_only=True)
class Missed:
    """A firing that made no sweep."""

    at: datetime
    why: str


def trend_figure(sweeps: Sequence[Sweep], missed: Sequence[Missed], metric: str) -> Figure | None:
    """The best value of each sweep, oldest first; None before there is one.

    The line breaks where data or model have changed: values before and after are not of the same thing.
    """
    measured = [sweep for sweep in sweeps if sweep.value is not None]
    if not measured:
        return None
    x: list[str | None] = []
    y: list[float | None] = []
    hover: list[str] = []
    for sweep in sweeps:
        if sweep.changed and x:
            x.append(None)
            y.append(None)
            hover.append("")
        if sweep.value is not None:
            x.append(instant(sweep.at))
            y.append(short(sweep.value))
            hover.append(text(f"{sweep.name}: {metric} {number(sweep.value)}"))
    values = [sweep.value for sweep in measured if sweep.value is not None]
    data: list[dict[str, Any]] = [
        {
            "type": "scatter",
            "mode": "lines+markers",
            "name": "best of a sweep",
            "x": x,
            "y": y,
            "text": hover,
            "hoverinfo": "text",
            "line": {"color": "--best", "width": 2},
            "marker": {"color": "--best", "size": 9},
        }
    ]
    without = [(s.at, text(f"{s.name}: {s.state}, without a result")) for s in sweeps if s.value is None]
    skipped = [(one.at, f"no sweep: {text(one.why, 120)}") for one in missed]
    for name, symbol, colour, marks in (
        ("sweep without a result", "x", "--failed", without),
        ("no sweep", "line-ns-open", "--pruned", skipped),
    ):
        if marks:
            data.append(_row(name, symbol, colour, marks))
    changes = [sweep for sweep in sweeps[1:] if sweep.changed]
    return Figure(
        id="trend",
        title=f"Best {metric} of each sweep",
        label=f"Line plot of the best {metric} of {counted(len(measured), 'sweep')};"
        f" {counted(len(changes), 'change')} of data or model.",
        plot={
            "data": data,
            "layout": layout(
                {"type": "date", "title": "fired for (UTC)", "anchor": "y2"},
                {"title": metric, **scaled(values), "domain": [0.1, 1]},
                yaxis2={"visible": False, "domain": [0, 0.08], "range": [-1, 1], "fixedrange": True},
                **_breaks(changes),
            ),
        },
        table=None,
        note="The line breaks where data or model have changed by content: values across it do not compare."
        if changes
        else "",
    )


def _row(name: str, symbol: str, colour: str, marks: Sequence[tuple[datetime, str]]) -> dict[str, Any]:
    """Marks in a row of their own below the values."""
    return {
        "type": "scatter",
        "mode": "markers",
        "name": name,
        "x": [instant(at) for at, _ in marks],
        "y": [0] * len(marks),
        "yaxis": "y2",
        "text": [said for _, said in marks],
        "hoverinfo": "text",
        "marker": {"symbol": symbol, "size": 12, "color": colour, "line": {"color": colour, "width": 2}},
    }


def _breaks(changes: Sequence[Sweep]) -> dict[str, Any]:
    """A dotted line with what changed, at the first sweep after each change."""
    return {
        "shapes": [
            {
                "type": "line",
                "x0": instant(sweep.at),
                "x1": instant(sweep.at),
                "y0": 0,
                "y1": 1,
                "yref": "paper",
                "line": {"color": "--pruned", "dash": "dot", "width": 2},
            }
            for sweep in changes
        ],
        "annotations": [
            {
                "x": instant(sweep.at),
                "y": 1,
                "yref": "paper",
                "yanchor": "top",
                "xanchor": "right",
                "text": text(f"{' and '.join(sweep.changed)} changed", 60),
                "showarrow": False,
                "textangle": -90,
                "font": {"size": 11, "color": "--ink"},
            }
            for sweep in changes
        ],
    }
