"""What all plots share: how outcomes look, axes, and text that Plotly shows as it is. Pure.

A colour is the name of a CSS property of the page, such as `--completed`: the page's script puts in its
value, so that plots follow the page into dark mode and onto paper. Outcomes differ by dash, symbol and
pattern as well.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from datetime import datetime
from html import escape
from typing import Any

from search_spaces.wording import shortened
from service.wording.report_sections import Grid

TABLE_ROWS = 50
"""Of the table below a plot. All numbers are in the REST API."""


@dataclass(frozen=True, kw_only=True)
class Figure:
    """A plot with what it says in words and in numbers."""

    id: str
    title: str
    label: str
    """What it shows, in a sentence: for those who do not see it."""
    plot: Mapping[str, Any]
    """`data` and `layout`, as `Plotly.newPlot` takes them."""
    table: Grid | None
    """None: its numbers stand beside it."""
    note: str = ""
    """How to read it, and what is left out."""
    height: int = 360
    """Pixels."""
    min_width: int = 0
    """Pixels below which it is scrolled sideways."""


@dataclass(frozen=True, kw_only=True)
class Look:
    """How an outcome is drawn."""

    colour: str
    dash: str = "solid"
    symbol: str = "circle"
    pattern: str = ""


LOOKS: Mapping[str, Look] = {
    "completed": Look(colour="--completed"),
    "pruned": Look(colour="--pruned", dash="dash", symbol="square", pattern="/"),
    "diverged": Look(colour="--diverged", dash="dot", symbol="triangle-up", pattern="x"),
    "out_of_memory": Look(colour="--failed", dash="dashdot", symbol="diamond", pattern="-"),
    "repeat": Look(colour="--running", dash="dot", symbol="circle-open"),
    "failed": Look(colour="--failed", dash="longdash", symbol="x", pattern="+"),
    "lost": Look(colour="--lost", dash="longdashdot", symbol="cross", pattern="."),
    "paused": Look(colour="--cancelled", dash="dot", symbol="square-open", pattern="|"),
    "cancelled": Look(colour="--cancelled", dash="dot", symbol="diamond-open", pattern="\\"),
    "running": Look(colour="--running", symbol="circle-open"),
    "dispatched": Look(colour="--cancelled", symbol="circle-open", pattern="|"),
}
"""By state of a trial or attempt, in the order of legends; `repeat` runs another trial's recipe again."""


def look(state: str) -> Look:
    return LOOKS.get(state, LOOKS["cancelled"])


def legend_place(state: str) -> int:
    """Where an outcome stands in a legend."""
    return list(LOOKS).index(state) if state in LOOKS else len(LOOKS)


def words(state: str) -> str:
    """A state as people read it."""
    return state.replace("_", " ")


def text(anything: object, limit: int = 80) -> str:
    """Text from anywhere, so that Plotly, which reads some HTML, shows it as it is."""
    return escape(shortened(str(anything), limit), quote=False)


def layout(x: Mapping[str, Any], y: Mapping[str, Any], **more: Any) -> dict[str, Any]:
    """A plot's layout.

    Args:
        x: the axis, with its title as text.
        y: likewise.
        more: whatever else it has.
    """
    return {
        "xaxis": axis(x),
        "yaxis": axis(y),
        "legend": {"orientation": "h", "y": 1.02, "yanchor": "bottom", "x": 0, "font": {"size": 12}},
        "margin": {"l": 12, "r": 12, "t": 12, "b": 12},
        "hovermode": "closest",
        "hoverlabel": {"align": "left"},
        "paper_bgcolor": "rgba(0,0,0,0)",
        "plot_bgcolor": "rgba(0,0,0,0)",
        "font": {"color": "--ink", "family": "system-ui, sans-serif", "size": 12},
        **more,
    }


def axis(given: Mapping[str, Any]) -> dict[str, Any]:
    """An axis in the page's colours."""
    title = given.get("title")
    plain = {"gridcolor": "--line", "linecolor": "--line", "zerolinecolor": "--line", "automargin": True}
    titled = {} if title is None else {"title": {"text": text(title), "standoff": 8}}
    return {**plain, **given, **titled}


def scaled(values: Sequence[float]) -> dict[str, Any]:
    """An axis for these values: logarithmic where they are positive and span more than a factor of thirty."""
    if not values or min(values) <= 0 or max(values) <= _LOG_FROM * min(values):
        return {"type": "linear"}
    return {"type": "log", **log_ticks(min(values), max(values))}


def log_ticks(low: float, high: float, words: Callable[[float], str] = "{:g}".format) -> dict[str, Any]:
    """Ticks with whole numbers: Plotly's own are `1`, `2`, `5`, whatever the decade."""
    first, last = math.floor(math.log10(low)), math.ceil(math.log10(high))
    digits = (1, 2, 5) if last - first <= _DECADES else (1,)
    step = max(1, (last - first) // (2 * _DECADES))
    ticks = [digit * 10.0**power for power in range(first, last + 1, step) for digit in digits]
    return {"tickvals": ticks, "ticktext": [words(float(f"{tick:.6g}")) for tick in ticks]}


_LOG_FROM = 30
"""How many times the smallest value the largest must be for a logarithmic axis."""
_DECADES = 3
"""Powers of ten up to which an axis has ticks between them."""


def instant(at: datetime) -> str:
    """A time as Plotly reads it, without a zone: UTC."""
    return at.strftime("%Y-%m-%dT%H:%M:%S.%f")[:-3]


def short(value: float) -> float:
    """Six significant digits: a plot has fewer pixels."""
    return float(f"{value:.6g}")


def left_out(shown: int, total: int, what: str, which: str) -> str:
    """A sentence about what a plot or table does not show; empty if it shows all."""
    return "" if shown >= total else f"{shown:,} of {total:,} {what} are shown: {which}."
