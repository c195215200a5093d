"""A range test for people: how far it is, its curves, and the bounds that it found."""

from __future__ import annotations

from collections.abc import Sequence

from search_spaces.range_tests.analysis import corner_label, in_rate
from service.cli.views.output import say, table
from service.range_tests.schemas import BoundsView, RangeTestView
from service.states import StudyState
from service.wording.values import one_line

_WIDTH = 36
"""Columns of a curve."""
_LEVELS = " .:-=+*#%@"
"""Ten heights of a loss, the lowest first."""


def progress_line(test: RangeTestView) -> str:
    """How far a range test is."""
    swept = sum(bool(corner.curve) for corner in test.corners)
    line = f"range test {test.name} {test.state}: {swept} of {len(test.corners)} corners swept"
    return f"{line} ({one_line(test.reason)})" if test.ended else line


def show_range_test(test: RangeTestView, server: str) -> None:
    """Writes what a range test found to stdout."""
    say("")
    table(
        ("corner", "steepest", "lowest", "diverged", "train loss, from the lowest rate to the highest"),
        [
            (
                corner_label(corner.values),
                _rate(corner.steepest),
                _rate(corner.minimum),
                _rate(corner.divergence),
                sketch([point.smoothed for point in corner.curve]) if corner.curve else corner.note,
            )
            for corner in test.corners
        ],
        empty="No corners.",
    )
    say("", *(one_line(note) for note in test.notes[:1]))
    if test.state != StudyState.COMPLETED:
        say(f"Range test {test.name} {test.state}: {one_line(test.reason)}")
    if test.bounds is not None:
        say("", "To search within these bounds, write in the study:", f"  {study_line(test.bounds)}")
    say("", f"The curves: {server}{test.dashboard_path or '/dashboard'}")


def study_line(bounds: BoundsView) -> str:
    """The line of a study's space, as YAML 1.1 reads numbers: with a dot before the exponent."""
    low, high = (f"{bound:.2e}" for bound in (bounds.min, bounds.max))
    return f"learning_rate: {{min: {low}, max: {high}, scale: log}}"


def sketch(levels: Sequence[float]) -> str:
    """A curve in one line of ASCII: the darker, the higher. What is above the start is as dark as can be."""
    ceiling, low = levels[0], min(levels)
    span = ceiling - low
    width = min(_WIDTH, len(levels))
    columns = [levels[column * len(levels) // width] for column in range(width)]
    if span <= 0:
        return _LEVELS[-1] * width
    top = len(_LEVELS) - 1
    return "".join(_LEVELS[min(top, int((level - low) / span * top + 0.5))] for level in columns)


def _rate(rate: float | None) -> str:
    return "-" if rate is None else in_rate(rate)
