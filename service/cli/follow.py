"""Following a study until it ends: a live table on a terminal, a line per change elsewhere."""

from __future__ import annotations

import time
from collections.abc import Callable
from contextlib import ExitStack
from datetime import UTC, datetime
from typing import Protocol, TypeVar

from rich.console import Console
from rich.live import Live
from rich.text import Text

from service.cli.news import News
from service.cli.views.changes import changes
from service.cli.views.live_table import render
from service.client import AWAY, Client, RefusedError, UnreachableError
from service.wording.standing import StudySnapshot

_POLL_SECONDS = 1.0


class Ending(Protocol):
    """What goes on for a while and then has ended."""

    @property
    def ended(self) -> bool: ...


T = TypeVar("T", bound=Ending)


class Display(Protocol):
    """Shows a study's snapshots, and that the server does not answer."""

    def show(self, snapshot: StudySnapshot) -> None: ...

    def trouble(self, message: str) -> None: ...


class LiveTable:
    """Redraws the table in place."""

    def __init__(self, live: Live) -> None:
        self._live = live
        self._last: StudySnapshot | None = None

    def show(self, snapshot: StudySnapshot, message: str = "") -> None:
        self._last = snapshot
        height = self._live.console.size.height
        self._live.update(
            render(snapshot.study, snapshot.trials, datetime.now(UTC), height, message=message), refresh=True
        )

    def trouble(self, message: str) -> None:
        if self._last is not None:
            self.show(self._last, message)
        else:
            self._live.update(Text(message), refresh=True)


class Lines:
    """Prints each change once, with no control codes."""

    def __init__(self, console: Console) -> None:
        self._console = console
        self._last: StudySnapshot | None = None
        self._in_trouble = False

    def show(self, snapshot: StudySnapshot) -> None:
        if self._in_trouble:
            self._in_trouble = False
            self._print("the server answers again")
        for line in changes(self._last, snapshot):
            self._print(line)
        self._last = snapshot

    def trouble(self, message: str) -> None:
        if not self._in_trouble:
            self._in_trouble = True
            self._print(message)

    def _print(self, line: str) -> None:
        self._console.print(line, soft_wrap=True)
        self._console.file.flush()


def follow(
    client: Client,
    study: str,
    console: Console,
    *,
    give_up_after: float | None = None,
    sleep: Callable[[float], None] = time.sleep,
    clock: Callable[[], float] = time.monotonic,
) -> StudySnapshot:
    """Shows the study on `console` until it ends, and returns how it ended.

    It is looked at when something has happened in it (`News`), and at most once a second.

    A server that does not answer is asked again: it may be restarting, and the study goes on without it.

    Args:
        client: The server's client.
        study: Id or name.
        console: A terminal gets the live table, anything else lines.
        give_up_after: Seconds of silence to put up with; None for ever.
        sleep: Waits that many seconds.
        clock: Seconds, ever growing.

    Raises:
        RefusedError: The service said no, for example because the study is gone.
        UnreachableError: The silence lasted longer than `give_up_after`.
    """
    with ExitStack() as stack:
        news = News(client, study, sleep=sleep, clock=clock)
        stack.callback(news.close)
        display: Display
        if console.is_terminal and not console.is_dumb_terminal:
            display = LiveTable(stack.enter_context(Live(console=console, auto_refresh=False)))
        else:
            display = Lines(console)
        return poll(
            lambda: _look(client, study),
            display.show,
            display.trouble,
            give_up_after=give_up_after,
            sleep=news.wait,
            clock=clock,
        )


def poll(
    ask: Callable[[], T],
    show: Callable[[T], None],
    trouble: Callable[[str], None],
    *,
    give_up_after: float | None = None,
    sleep: Callable[[float], None] = time.sleep,
    clock: Callable[[], float] = time.monotonic,
) -> T:
    """Asks, shows the answer and sleeps a second, until one has ended; that one is returned.

    If the server does not answer, `trouble` is called, and it is asked again. For the rest see `follow`.
    """
    silent_since: float | None = None
    while True:
        try:
            found = ask()
        except (UnreachableError, RefusedError) as error:
            if isinstance(error, RefusedError) and error.status not in AWAY:
                raise
            silent_since = clock() if silent_since is None else silent_since
            if give_up_after is not None and clock() - silent_since > give_up_after:
                raise
            trouble(f"trying again: {error}")
        else:
            silent_since = None
            show(found)
            if found.ended:
                return found
        sleep(_POLL_SECONDS)


def _look(client: Client, study: str) -> StudySnapshot:
    """The study and its trials now. The study is read first, so a study that ended has all its ends."""
    found = client.study(study)
    return StudySnapshot(study=found, trials=client.trials(found.id))
