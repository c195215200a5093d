"""The command line. `main` handles Ctrl-C first and then imports the commands, which takes a while."""

from __future__ import annotations

import os
import signal
import sys
from types import FrameType

_INTERRUPTED = 130


def main() -> None:
    """The entry point of the `nightsweep` command."""
    # A shell lets its background jobs ignore Ctrl-C; then it stays ignored.
    heard = signal.getsignal(signal.SIGINT) is signal.default_int_handler
    if heard:
        signal.signal(signal.SIGINT, _interrupt)
    try:
        from service.cli.root import app

        app(prog_name="nightsweep")
    except KeyboardInterrupt:
        sys.exit(_INTERRUPTED)
    finally:
        if heard:
            signal.signal(signal.SIGINT, _end)


def _interrupt(number: int, frame: FrameType | None) -> None:
    """Raises `KeyboardInterrupt`; while a module is being imported, ends the process at once.

    An import may swallow the exception, turn it into another one or print it, and nothing is lost with it.
    """
    running = frame
    while running is not None:
        if running.f_code.co_filename == "<frozen importlib._bootstrap>":
            _end(number, frame)
        running = running.f_back
    raise KeyboardInterrupt


def _end(_number: int, _frame: FrameType | None) -> None:
    os._exit(_INTERRUPTED)
