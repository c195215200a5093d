"""The command range-test: sweep the learning rate, and say which bounds to search."""

from __future__ import annotations

import sys
import time
from collections.abc import Callable
from typing import Annotated

import typer
from rich.console import Console

from service.cli.errors import INTERRUPTED, REFUSED
from service.cli.follow import poll
from service.cli.options import Json, Server, StudyFile, connect
from service.cli.study_file import read_study_file
from service.cli.views.output import console, say, say_json, say_note
from service.cli.views.range_tests import progress_line, show_range_test
from service.client import DEFAULT_SERVER, Client
from service.range_tests.schemas import RangeTestView


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
            show_range_test(test, client.server)
    if test.bounds is None:
        raise typer.Exit(REFUSED)


def wait(
    client: Client, test: RangeTestView, screen: Console, *, sleep: Callable[[float], None] = time.sleep
) -> RangeTestView:
    """Shows how far the range test is until it ends: one changing line on a terminal, else a line per change.

    A server that does not answer is asked again, as `watch` does.
    """
    terminal = screen.is_terminal and not screen.is_dumb_terminal
    with screen.status(progress_line(test)) if terminal else _Lines(screen) as display:
        display.update(progress_line(test))
        return poll(
            lambda: client.range_test(test.id),
            lambda found: display.update(progress_line(found)),
            display.update,
            sleep=sleep,
        )


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


def _address(client: Client, test: RangeTestView) -> str:
    return f"{client.server}/v1/range-tests/{test.name}"
