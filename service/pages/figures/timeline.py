"""Which worker ran which attempt, and when: waits, losses and resumes. Pure."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from datetime import datetime
from typing import Any

from search_spaces.wording import counted
from service.pages.figures.style import (
    TABLE_ROWS,
    Figure,
    instant,
    layout,
    left_out,
    legend_place,
    look,
    text,
    words,
)
from service.wording.report_sections import Grid
from service.wording.values import duration, one_line

MOST_ATTEMPTS = 400
_LANE = 22
"""Pixels of a slot."""
_TALLEST = 1400
_NARROWEST = 600


@dataclass(frozen=True, kw_only=True)
class AttemptSpan:
    """One execution of a trial."""

    trial: int
    ordinal: int
    """1 for the trial's first."""
    worker: str
    device: str | None
    state: str
    reason: str
    sent: datetime
    started: datetime | None
    ended: datetime | None
    resumed_at: int
    """Training examples that its checkpoint had seen; 0: it began anew."""


@dataclass(frozen=True, kw_only=True)
class Placed:
    """An attempt in a slot of its worker."""

    span: AttemptSpan
    worker: int
    """1 for the first worker that was used."""
    slot: int
    """1 for the worker's first."""
    after: int | None
    """The trial that had the slot before; None: it was free from the beginning."""

    @property
    def lane(self) -> str:
        return f"worker {self.worker}, slot {self.slot}"

    @property
    def name(self) -> str:
        again = f", attempt {self.span.ordinal}" if self.span.ordinal > 1 else ""
        return f"trial {self.span.trial}{again}"


def place(attempts: Sequence[AttemptSpan], now: datetime) -> list[Placed]:
    """Attempts in slots, in the order in which they were sent: each takes its worker's first free slot."""
    workers: dict[str, int] = {}
    slots: dict[str, list[tuple[datetime, int]]] = {}
    placed = []
    for span in sorted(attempts, key=lambda each: (each.started or each.sent, each.trial, each.ordinal)):
        worker = workers.setdefault(span.worker, len(workers) + 1)
        taken = slots.setdefault(span.worker, [])
        begins, ends = span.started or span.sent, span.ended or now
        free = next((index for index, (until, _) in enumerate(taken) if until <= begins), None)
        after = None if free is None else taken[free][1]
        if free is None:
            free = len(taken)
            taken.append((ends, span.trial))
        taken[free] = (ends, span.trial)
        placed.append(Placed(span=span, worker=worker, slot=free + 1, after=after))
    return placed


def timeline_figure(attempts: Sequence[AttemptSpan], now: datetime) -> Figure | None:
    """A bar for each attempt, in the lane of its worker's slot; None before the first was sent."""
    if not attempts:
        return None
    placed = place(attempts, now)
    shown = placed[-MOST_ATTEMPTS:]
    lanes = sorted({(one.worker, one.slot) for one in shown})
    names = [f"worker {worker}, slot {slot}" for worker, slot in lanes]
    states = sorted({one.span.state for one in shown}, key=legend_place)
    data = [_bars([one for one in shown if one.span.state == state], state, now) for state in states]
    data += _waits(shown, now) + _marks(shown, now)
    workers = len({one.worker for one in placed})
    lost = sum(one.span.state == "lost" for one in placed)
    resumed = sum(one.span.resumed_at > 0 for one in placed)
    events = [
        counted(lost, "attempt was", "attempts were") + " lost" if lost else "",
        counted(resumed, "attempt") + " resumed from a checkpoint" if resumed else "",
    ]
    said = " and ".join(part for part in events if part)
    height = min(_TALLEST, 130 + _LANE * len(lanes))
    return Figure(
        id="timeline",
        title="Attempts by worker",
        label=f"Timeline of {counted(len(shown), 'attempt')} on {counted(workers, 'worker')}"
        + (f"; {said}." if said else "."),
        plot={
            "data": data,
            "layout": layout(
                {"type": "date", "title": "time (UTC)"},
                {
                    "type": "category",
                    "categoryorder": "array",
                    "categoryarray": names[::-1],
                    "showgrid": False,
                },
                barmode="overlay",
                bargap=0.25,
            ),
        },
        table=_table(shown),
        note=_note(placed, shown, said),
        height=height,
        min_width=_NARROWEST,
    )


def _note(placed: Sequence[Placed], shown: Sequence[Placed], said: str) -> str:
    parts = [
        "Trials that share a worker train in the same passes; a trial takes the slot that another has left.",
        f"{said[0].upper()}{said[1:]}." if said else "",
        left_out(len(shown), len(placed), "attempts", "the latest"),
    ]
    return " ".join(part for part in parts if part)


def _bars(placed: Sequence[Placed], state: str, now: datetime) -> dict[str, Any]:
    style = look(state)
    began = [one for one in placed if one.span.started is not None]
    return {
        "type": "bar",
        "orientation": "h",
        "name": text(words(state)),
        "y": [one.lane for one in began],
        "base": [instant(one.span.started) for one in began if one.span.started],
        "x": [_milliseconds(one.span.started, one.span.ended or now) for one in began],
        "text": [str(one.span.trial) for one in began],
        "textposition": "inside",
        "insidetextanchor": "middle",
        "textangle": 0,
        "insidetextfont": {"color": "--on-colour"},
        "constraintext": "inside",
        "hovertext": [_said(one, now) for one in began],
        "hoverinfo": "text",
        "marker": {
            "color": style.colour,
            "line": {"color": "--paper", "width": 1},
            "pattern": {
                "shape": style.pattern,
                "size": 6,
                "solidity": 0.25,
                "fillmode": "overlay",
                "fgcolor": "--on-colour",
            },
        },
    }


def _waits(placed: Sequence[Placed], now: datetime) -> list[dict[str, Any]]:
    """Times from the order to the first step: loading the base, or waiting for the slot."""
    waiting = [one for one in placed if _milliseconds(one.span.sent, _began(one, now)) >= 100]
    if not waiting:
        return []
    return [
        {
            "type": "bar",
            "orientation": "h",
            "name": "sent, not training yet",
            "y": [one.lane for one in waiting],
            "base": [instant(one.span.sent) for one in waiting],
            "x": [_milliseconds(one.span.sent, _began(one, now)) for one in waiting],
            "hovertext": [_said(one, now) for one in waiting],
            "hoverinfo": "text",
            "width": 0.25,
            "marker": {"color": "--muted", "line": {"width": 0}},
        }
    ]


def _marks(placed: Sequence[Placed], now: datetime) -> list[dict[str, Any]]:
    """Where attempts were lost, and where others went on from a checkpoint."""
    lost = [(one, one.span.ended or now) for one in placed if one.span.state == "lost"]
    resumed = [(one, _began(one, now)) for one in placed if one.span.resumed_at > 0]
    found = []
    for name, symbol, colour, marks in (
        ("lost", "x", "--failed", lost),
        ("resumed from a checkpoint", "triangle-right", "--ink", resumed),
    ):
        if marks:
            found.append(
                {
                    "type": "scatter",
                    "mode": "markers",
                    "name": name if name != "lost" else "worker lost",
                    "x": [instant(at) for _, at in marks],
                    "y": [one.lane for one, _ in marks],
                    "hovertext": [_said(one, now) for one, _ in marks],
                    "hoverinfo": "text",
                    "marker": {
                        "symbol": symbol,
                        "size": 12,
                        "color": colour,
                        "line": {"color": "--paper", "width": 1},
                    },
                }
            )
    return found


def _began(one: Placed, now: datetime) -> datetime:
    return one.span.started or one.span.ended or now


def _milliseconds(start: datetime | None, end: datetime) -> int:
    return 0 if start is None else max(0, round((end - start).total_seconds() * 1000))


def _said(one: Placed, now: datetime) -> str:
    span = one.span
    parts = [f"{one.name}, {words(span.state)}"]
    if span.started is not None:
        parts.append(f"trained {duration(((span.ended or now) - span.started).total_seconds())}")
    parts.append(_waited(one, now))
    if span.resumed_at:
        parts.append(f"resumed at {span.resumed_at:,} examples")
    if span.reason and span.state not in ("completed", "running"):
        parts.append(text(one_line(span.reason), 120))
    return "<br>".join(parts)


def _waited(one: Placed, now: datetime) -> str:
    seconds = (_began(one, now) - one.span.sent).total_seconds()
    after = "" if one.after is None else f", after trial {one.after} left the slot"
    return f"began {max(0.0, seconds):.1f} s after it was sent{after}"


def _table(shown: Sequence[Placed]) -> Grid:
    rows: list[Sequence[object]] = []
    for one in shown[-TABLE_ROWS:]:
        span = one.span
        wait = (
            "-" if span.started is None else f"{max(0.0, (span.started - span.sent).total_seconds()):.1f} s"
        )
        took = "-"
        if span.started is not None and span.ended is not None:
            took = duration((span.ended - span.started).total_seconds())
        rows.append(
            (
                one.name,
                one.lane,
                span.device or "-",
                wait,
                "-" if one.after is None else f"trial {one.after}",
                took,
                words(span.state),
                one_line(span.reason) or "-",
            )
        )
    return Grid(
        columns=("attempt", "where", "device", "waited", "slot left by", "trained", "outcome", "why"),
        rows=rows,
    )
