"""The command range-test: sweep the learning rate, and say which bounds to search."""

from __future__ import annotations

import sys
import time
from collections.abc import Callable, Sequence
from typing import Annotated

import typer
from rich.console import Console

from search_spaces.range_tests.analysis import corner_label, in_rate
from service.cli.errors import INTERRUPTED, REFUSED
from service.cli.options import DEFAULT_SERVER, Json, Server, StudyFile, connect
from service.cli.study_file import read_study_file
from service.cli.views.output import console, one_line, say, say_json, say_note, table
from service.client import AWAY, Client, RefusedError, UnreachableError
from service.range_tests.schemas import BoundsView, RangeTestView
from service.states import StudyState

_POLL_SECONDS = 1.0
_WIDTH = 36
"""Columns of a curve."""
_LEVELS = " .:-=+*#%@"
"""Ten heights of a loss, the lowest first."""


def range_test(
    file: StudyFile,
    no_wait: Annotated[
        bool, typer.Option("--no-wait", help="Submit the range test and return at once.")
    ] = False,
    server: Server = DEFAULT_SERVER,
    as_json: Json = False,
) -> None:
    """Sweep the learning rate and propose bounds for it; exit 1 if none are found.

    The study itself is not submitted. With --json, progress goes to stderr and the result to stdout.
    """
    definition = read_study_file(file)
    with connect(server) as client:
        test = client.submit_range_test(definition)
        if no_wait:
            if as_json:
                say_json(test.document())
            else:
                say(f"Range test {test.name} submitted", f"See it at: {_address(client, test)}")
            return
        try:
            test = wait(client, test, console(sys.stderr if as_json else None))
        except KeyboardInterrupt:
            say_note(f"Stopped waiting; the range test {test.name} goes on: {_address(client, test)}")
            raise typer.Exit(INTERRUPTED) from None
        if as_json:
            say_json(test.document())
        else:
            _say(client, test)
    if test.bounds is None:
        raise typer.Exit(REFUSED)


def wait(
    client: Client, test: RangeTestView, screen: Console, *, sleep: Callable[[float], None] = time.sleep
) -> RangeTestView:
    """Shows how far the range test is until it ends: one changing line on a terminal, else a line per change.

    A server that does not answer is asked again, as `watch` does.
    """
    terminal = screen.is_terminal and not screen.is_dumb_terminal
    with screen.status(_progress(test)) if terminal else _Lines(screen) as display:
        while True:
            display.update(_progress(test))
            if test.ended:
                return test
            sleep(_POLL_SECONDS)
            try:
                test = client.range_test(test.id)
            except (UnreachableError, RefusedError) as error:
                if isinstance(error, RefusedError) and error.status not in AWAY:
                    raise
                display.update(f"trying again: {error}")


class _Lines:
    """Prints each line once."""

    def __init__(self, screen: Console) -> None:
        self._screen = screen
        self._last = ""

    def __enter__(self) -> _Lines:
        return self

    def __exit__(self, *_: object) -> None:
        pass

    def update(self, line: str) -> None:
        if line != self._last:
            self._last = line
            self._screen.print(line, soft_wrap=True)


def _progress(test: RangeTestView) -> str:
    swept = sum(bool(corner.curve) for corner in test.corners)
    line = f"range test {test.name} {test.state}: {swept} of {len(test.corners)} corners swept"
    return f"{line} ({one_line(test.reason)})" if test.ended else line


def _say(client: Client, test: RangeTestView) -> None:
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
    say("", f"The curves: {client.server}{test.dashboard_path or '/dashboard'}")


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


def _address(client: Client, test: RangeTestView) -> str:
    return f"{client.server}/v1/range-tests/{test.name}"
