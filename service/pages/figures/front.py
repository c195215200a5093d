"""The Pareto front: the objective against each cost. Pure."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from service.pages.figures.style import Figure, layout, left_out, look, scaled, short
from service.studies.schemas import ParetoPoint
from service.wording.values import number

MOST_COSTS = 3
MOST_POINTS = 500


@dataclass(frozen=True, kw_only=True)
class Costed:
    """A completed trial with its costs, in the order of the objective's."""

    number: int
    value: float
    costs: Sequence[float]


def front_figures(trials: Sequence[Costed], front: Sequence[ParetoPoint], metric: str) -> list[Figure]:
    """A plot for each cost: all completed trials, and the line of those that none beats.

    Args:
        trials: completed ones that break no constraint, the best first.
        front: those that no other one beats in everything.
        metric: the objective.
    """
    names = list(front[0].costs) if front else []
    return [_figure(place, names, trials, front, metric) for place in range(len(names[:MOST_COSTS]))]


def _figure(
    place: int, names: Sequence[str], trials: Sequence[Costed], front: Sequence[ParetoPoint], metric: str
) -> Figure:
    cost = names[place]
    shown = [trial for trial in trials if len(trial.costs) > place][:MOST_POINTS]
    edge = sorted(front, key=lambda point: (point.costs[cost], point.value))
    style = look("completed")
    notes = [
        left_out(len(shown), len(trials), "trials", "the best first"),
        left_out(MOST_COSTS, len(names), "costs", "the first of the objective") if place == 0 else "",
        "With several costs the line joins trials that are also good in the others."
        if len(names) > 1
        else "",
    ]
    return Figure(
        id=f"front-{place}",
        title=f"{metric} against {cost}",
        label=f"Scatter plot of {metric} against {cost}; {len(edge)} of {len(shown)} trials are on the"
        " Pareto front.",
        plot={
            "data": [
                {
                    "type": "scatter",
                    "mode": "markers",
                    "name": "completed trials",
                    "x": [short(trial.costs[place]) for trial in shown],
                    "y": [short(trial.value) for trial in shown],
                    "text": [
                        f"trial {t.number}: {number(t.value)}, {cost} {number(t.costs[place])}" for t in shown
                    ],
                    "hoverinfo": "text",
                    "marker": {"color": style.colour, "symbol": "circle-open", "size": 8},
                },
                {
                    "type": "scatter",
                    "mode": "lines+markers",
                    "name": "Pareto front",
                    "x": [short(point.costs[cost]) for point in edge],
                    "y": [short(point.value) for point in edge],
                    "text": [
                        f"trial {p.trial_number}: {number(p.value)}, {cost} {number(p.costs[cost])}"
                        for p in edge
                    ],
                    "hoverinfo": "text",
                    "line": {"color": "--best", "width": 2, "dash": "dot"},
                    "marker": {"color": "--best", "symbol": "star", "size": 12},
                },
            ],
            "layout": layout(
                {"title": cost, **scaled([trial.costs[place] for trial in shown])},
                {"title": metric, **scaled([trial.value for trial in shown])},
            ),
        },
        table=None,  # the part it stands in has it
        note=" ".join(note for note in notes if note),
    )
