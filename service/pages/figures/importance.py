"""Which hyperparameters mattered, as bars. Pure."""

from __future__ import annotations

from service.pages.figures.style import Figure, layout, short, text
from service.reports.schemas import ImportanceView
from service.wording.values import share


def importance_figure(importance: ImportanceView) -> Figure | None:
    """A bar for each hyperparameter, hatched where it is no more than chance; None where nothing is known."""
    known = [
        (p.name, p.importance, bool(p.above_chance))
        for p in importance.parameters
        if p.importance is not None
    ]
    if not known:
        return None
    data = []
    for above, name, pattern, colour in (
        (True, "more than chance", "", "--completed"),
        (False, "no more than chance", "/", "--cancelled"),
    ):
        part = [(parameter, value) for parameter, value, is_above in known if is_above is above]
        if part:
            data.append(
                {
                    "type": "bar",
                    "orientation": "h",
                    "name": name,
                    "y": [text(parameter) for parameter, _ in part],
                    "x": [short(value) for _, value in part],
                    "text": [share(value) for _, value in part],
                    "textposition": "outside",
                    "cliponaxis": False,
                    "hoverinfo": "text",
                    "marker": {"color": colour, "pattern": {"shape": pattern, "fillmode": "replace"}},
                }
            )
    order = [text(parameter) for parameter, _, _ in known]
    most = max(value for _, value, _ in known)
    return Figure(
        id="importance",
        title="Importance of hyperparameters",
        label="Bar chart of importance: "
        + ", ".join(f"{name} {share(value)}" for name, value, _ in known)
        + ".",
        plot={
            "data": data,
            "layout": layout(
                {
                    "title": "share of the importance",
                    "tickformat": ".0%",
                    "range": [0, short(1.15 * most or 1)],
                },
                {"categoryorder": "array", "categoryarray": order[::-1], "showgrid": False},
                barmode="overlay",
            ),
        },
        table=None,  # the part it stands in has it
        height=140 + 34 * len(known),
    )
