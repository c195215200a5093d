"""Hyperparameters side by side: one axis for each, one line for each trial. Pure.

Drawn as lines of a plain plot, not with Plotly's own parallel coordinates: those need WebGL, know one colour
scale and no dashes, and print as a picture of the screen.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from search_spaces.parameters.choices import Choice
from search_spaces.parameters.ranges import Float, Int
from service.pages.figures.style import (
    TABLE_ROWS,
    Figure,
    Look,
    layout,
    left_out,
    look,
    short,
    text,
    words,
)
from service.wording.report_sections import Grid
from service.wording.values import number, setting

MOST_AXES = 10
MOST_LINES = 300
_BEST_SHARE = 0.1
_FEWEST_BEST = 3
_MOST_TICKS = 6
_SHORT = 11
"""Characters of a name that has a line."""
_AXIS_WIDTH = 92
"""Pixels that an axis needs for its name and values."""


@dataclass(frozen=True, kw_only=True)
class TrialPoint:
    """A trial's hyperparameters and what came of them."""

    number: int
    state: str
    params: Mapping[str, Any]
    value: float | None


@dataclass(frozen=True, kw_only=True)
class _Axis:
    """Where values stand on an axis from 0 to 1."""

    name: str
    low: float
    high: float
    log: bool = False
    choices: Sequence[Any] | None = None

    def place(self, value: Any) -> float | None:
        if self.choices is not None:
            if value not in self.choices:
                return None
            return list(self.choices).index(value) / max(1, len(self.choices) - 1)
        if not isinstance(value, int | float) or (self.log and value <= 0):
            return None
        at, low, high = (math.log(v) if self.log else float(v) for v in (value, self.low, self.high))
        return 0.5 if high <= low else min(1.0, max(0.0, (at - low) / (high - low)))

    def ticks(self) -> list[tuple[float, str]]:
        if self.choices is not None:
            every = math.ceil(len(self.choices) / _MOST_TICKS)
            return [(self.place(choice) or 0.0, setting(choice)) for choice in self.choices[::every]]
        middle = math.sqrt(self.low * self.high) if self.log else (self.low + self.high) / 2
        values = (self.low, middle, self.high) if self.high > self.low else (self.low,)
        return [(self.place(value) or 0.0, f"{value:.3g}") for value in values]


def parallel_figure(
    trials: Sequence[TrialPoint],
    parameters: Mapping[str, Float | Int | Choice],
    metric: str,
    *,
    minimize: bool,
) -> Figure | None:
    """Every trial's hyperparameters as a line; None where there is nothing to compare.

    Args:
        trials: the search's, the best first, those without a value last.
        parameters: the space's, in its order.
        metric: the objective.
        minimize: whether less is better.
    """
    names = list(parameters)[:MOST_AXES]
    if len(trials) < 2 or not names:
        return None
    shown = trials[:MOST_LINES]
    axes = [_axis(name, parameters[name], [t.params.get(name) for t in shown]) for name in names]
    values = [trial.value for trial in shown if trial.value is not None]
    if values:
        axes.append(_Axis(name=metric, low=min(values), high=max(values)))
    count = max(_FEWEST_BEST, math.ceil(_BEST_SHARE * len(values)))
    data = []
    for name, style, width, members in _groups(shown, count):
        data.append(_lines(members, axes, name, style, width))
    notes = [
        f"Each line is a trial; bold ones are the best {min(count, len(values))} of {len(values)} completed."
        if values
        else "Each line is a trial; none has completed.",
        f"Of {metric}, {'low' if minimize else 'high'} is good." if values else "",
        left_out(len(shown), len(trials), "trials", "the best first"),
        left_out(len(names), len(parameters), "hyperparameters", "the first of the search space"),
    ]
    return Figure(
        id="parallel",
        title="Hyperparameters of all trials",
        label=f"Parallel coordinates of {len(shown)} trials: {', '.join(a.name for a in axes)}.",
        plot={"data": data, "layout": _layout(axes)},
        table=_table(shown, names, metric),
        note=" ".join(note for note in notes if note),
        height=420,
        min_width=_AXIS_WIDTH * len(axes),
    )


def _axis(name: str, parameter: Float | Int | Choice, values: Sequence[Any]) -> _Axis:
    if isinstance(parameter, Choice):
        choices = [list(c) if isinstance(c, tuple) else c for c in parameter.choices]
        numbers = all(isinstance(c, int | float) and not isinstance(c, bool) for c in choices)
        return _Axis(name=name, low=0, high=1, choices=sorted(choices) if numbers else choices)
    # Bounds that a range test has moved may lie outside the definition's.
    found = [float(value) for value in values if isinstance(value, int | float)]
    low, high = min([float(parameter.min), *found]), max([float(parameter.max), *found])
    return _Axis(name=name, low=low, high=high, log=parameter.scale == "log")


def _groups(trials: Sequence[TrialPoint], best: int) -> list[tuple[str, Look, float, Sequence[TrialPoint]]]:
    """Name, look and width of line of each group, those in front last."""
    completed = [trial for trial in trials if trial.value is not None]
    others: dict[str, list[TrialPoint]] = {}
    for trial in trials:
        if trial.value is None:
            others.setdefault(trial.state, []).append(trial)
    groups = [(words(state), look(state), 1.0, found) for state, found in others.items()]
    found = [
        *groups,
        ("completed", look("completed"), 1.2, completed[best:]),
        (f"best {len(completed[:best])}", Look(colour="--best"), 3.0, completed[:best]),
    ]
    return [group for group in found if group[3]]


def _lines(
    trials: Sequence[TrialPoint], axes: Sequence[_Axis], name: str, style: Look, width: float
) -> dict[str, Any]:
    x: list[int | None] = []
    y: list[float | None] = []
    hover: list[str] = []
    for trial in trials:
        values = [
            *(trial.params.get(axis.name) for axis in axes[:-1]),
            trial.params.get(axes[-1].name, trial.value),
        ]
        said = f"trial {trial.number}, {words(trial.state)}"
        for place, (one, value) in enumerate(zip(axes, values, strict=True)):
            at = None if value is None else one.place(value)
            x.append(place)
            y.append(None if at is None else short(at))
            hover.append(
                text(f"{said}: {one.name} {number(value) if isinstance(value, float) else setting(value)}")
            )
        x.append(None)
        y.append(None)
        hover.append("")
    return {
        "type": "scatter",
        "mode": "lines",
        "name": text(name),
        "x": x,
        "y": y,
        "text": hover,
        "hoverinfo": "text",
        "line": {"color": style.colour, "dash": style.dash, "width": width},
        "opacity": 1.0 if width > 2 else 0.55,
    }


def _layout(axes: Sequence[_Axis]) -> dict[str, Any]:
    places = list(range(len(axes)))
    labels = [
        {
            "x": place,
            "y": at,
            "text": text(label, 12),
            "showarrow": False,
            "xanchor": "left",
            "xshift": 4,
            "font": {"size": 11, "color": "--ink"},
            "bgcolor": "--veil",
            "borderpad": 1,
        }
        for place, one in enumerate(axes)
        for at, label in one.ticks()
    ]
    names = [_folded(text(one.name, 40)) for one in axes]
    rules = [
        {
            "type": "line",
            "x0": p,
            "x1": p,
            "y0": 0,
            "y1": 1,
            "line": {"color": "--muted", "width": 1},
            "layer": "below",
        }
        for p in places
    ]
    x = {
        "tickvals": places,
        "ticktext": names,
        "tickangle": 0,
        "range": [-0.4, len(axes) - 0.4],
        "showgrid": False,
        "zeroline": False,
        "fixedrange": True,
    }
    return layout(x, {"visible": False, "range": [-0.04, 1.04]}, annotations=labels, shapes=rules)


def _folded(name: str) -> str:
    """A long name in two lines."""
    if len(name) <= _SHORT:
        return name
    breaks = [at for at, char in enumerate(name) if char == "_"]
    place = min(breaks, key=lambda at: abs(2 * at - len(name)), default=len(name))
    return f"{name[: place + 1]}<br>{name[place + 1 :]}"


def _table(trials: Sequence[TrialPoint], names: Sequence[str], metric: str) -> Grid:
    rows = [
        (
            trial.number,
            words(trial.state),
            number(trial.value),
            *(setting(trial.params[name]) if name in trial.params else "-" for name in names),
        )
        for trial in trials[:TABLE_ROWS]
    ]
    return Grid(columns=("trial", "outcome", metric, *names), rows=rows)
