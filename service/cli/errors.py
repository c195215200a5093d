"""Wrong usage, the exit codes, and how errors are explained.

CommandError           wrong usage, an unreadable file, a setting out of range
└── StudyFileError     a study file that is missing or is not a document
"""

from __future__ import annotations

import json
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import typer
from pydantic import ValidationError
from typer.core import TyperGroup

from search_spaces.errors import MANY_NAMES, Fault, adds_allowed
from search_spaces.faults import translate
from service.answers import ProblemFault
from service.cli.views.output import say_error
from service.client import ClientError, RefusedError, UnexpectedAnswerError, UnreachableError

REFUSED = 1
"""The service refused, or the study failed or was cancelled."""
WRONG_USAGE = 2
UNREACHABLE = 3
TIME_IS_OVER = 4
INTERRUPTED = 130


class CommandError(Exception):
    """Something that the user can correct; the message says how."""


class StudyFileError(CommandError):
    """A study file that cannot be read as a document."""


def fault_lines(faults: Sequence[Fault | ProblemFault]) -> Iterator[str]:
    """Each fault in one line: `path: message (got VALUE; allowed: ...; did you mean NEAREST?)`.

    A long list of names is left out where the one that was meant is known, and is said once for all faults.
    """
    lists: dict[str, str] = {}
    for fault in faults:
        where = fault.path or "the definition"
        hints = []
        # A key that is missing has no value to show, and some messages say a file's name already.
        if fault.value is not None and not (
            isinstance(fault.value, str) and f"{fault.value}:" in fault.message
        ):
            hints.append(f"got {json.dumps(fault.value, ensure_ascii=False)}")
        allowed = fault.allowed or ""
        if len(allowed) > MANY_NAMES:
            allowed = "" if fault.nearest else lists.get(allowed, allowed)
            lists.setdefault(allowed, f"the same as for {where}")
        if adds_allowed(fault.message, allowed):
            hints.append(f"allowed: {allowed}")
        if fault.nearest:
            hints.append(f"did you mean {fault.nearest}?")
        yield f"{where}: {fault.message}" + (f" ({'; '.join(hints)})" if hints else "")


def explain(error: ClientError) -> tuple[int, list[str]]:
    """The exit code for a client's error, and the lines that explain it."""
    if isinstance(error, RefusedError):
        lines = [f"{error.title} ({error.status})"]
        if error.detail:
            lines.append(error.detail)
        lines += [f"  {line}" for line in fault_lines(error.faults)]
        if error.status == 401:
            lines.append(
                "Set NIGHTSWEEP_API_KEY to your API key, or to the one that the server was started with."
            )
        return REFUSED, lines
    if isinstance(error, UnreachableError):
        return UNREACHABLE, [
            f"{error}.",
            "Start one with `nightsweep serve`, or name another with --server or NIGHTSWEEP_SERVER.",
        ]
    if isinstance(error, UnexpectedAnswerError):
        return UNREACHABLE, [f"{error}.", "Name the right one with --server or NIGHTSWEEP_SERVER."]
    raise error


@contextmanager
def errors_explained() -> Iterator[None]:
    """Turns wrong usage and a server's errors into sentences on stderr and an exit code."""
    try:
        yield
    except typer.BadParameter as error:
        if isinstance(error.__cause__, ValidationError):
            error.message = translate(error.__cause__)[0].message
        raise
    except CommandError as error:
        say_error(str(error))
        raise typer.Exit(WRONG_USAGE) from error
    except ClientError as error:
        code, lines = explain(error)
        say_error(*lines)
        raise typer.Exit(code) from error


class Commands(TyperGroup):
    """A group of commands that explains errors instead of showing a traceback."""

    def invoke(self, ctx: Any) -> Any:
        with errors_explained():
            return super().invoke(ctx)
