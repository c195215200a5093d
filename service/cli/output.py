"""How commands write: documents to stdout as pure JSON, tables for people, errors to stderr."""

from __future__ import annotations

import json
import os
import sys
from collections.abc import Mapping, Sequence
from datetime import UTC, datetime
from typing import Any, TextIO

import typer
from rich.console import Console
from rich.table import Table
from rich.text import Text

_PIPE_WIDTH = 400
"""Columns for a table in a pipe or a file: wide enough that no cell is cut."""


def console(stream: TextIO | None = None) -> Console:
    """A console on `stream` (stdout by default) that writes control codes to terminals only."""
    stream = stream or sys.stdout
    terminal = stream.isatty()
    return Console(
        file=stream,
        # Said outright, because FORCE_COLOR in a build's environment would put codes into its log.
        force_terminal=terminal,
        width=None if terminal or "COLUMNS" in os.environ else _PIPE_WIDTH,
        highlight=False,
        markup=False,
        emoji=False,
        soft_wrap=False,
    )


def say(*lines: str) -> None:
    """Writes lines to stdout."""
    for line in lines:
        typer.echo(printable(line))


def say_error(*lines: str) -> None:
    """Writes lines to stderr, the first one marked as the error."""
    for number, line in enumerate(lines):
        typer.echo(printable(f"Error: {line}" if number == 0 else line), err=True)


def say_note(*lines: str) -> None:
    """Writes lines to stderr that are no error, where stdout is not the place for them."""
    for line in lines:
        typer.echo(printable(line), err=True)


def say_json(document: Any) -> None:
    """Writes one JSON document to stdout. ASCII, so that no terminal's encoding can spoil it."""
    typer.echo(json.dumps(document, indent=2))


def printable(text: str) -> str:
    """The text without control characters, which an error's quoted data could smuggle to a terminal."""
    return "".join(char if char.isprintable() or char in "\n\t" else " " for char in text)


def one_line(text: str) -> str:
    return " ".join(printable(text).split())


def table(columns: Sequence[str], rows: Sequence[Sequence[object]], *, empty: str) -> None:
    """Writes a table to stdout, or the sentence `empty` when there are no rows."""
    if not rows:
        say(empty)
        return
    grid = Table(box=None, pad_edge=False, header_style="bold")
    for column in columns:
        grid.add_column(column, overflow="fold")
    for row in rows:
        grid.add_row(*(Text(one_line(str(cell))) for cell in row))
    console().print(grid)


def number(value: float | None) -> str:
    """A measured value to four significant digits; `-` for none."""
    return "-" if value is None else f"{value:.4g}"


def setting(value: object) -> str:
    """A hyperparameter's value: floats to three significant digits, `-` for none."""
    if value is None:
        return "-"
    if isinstance(value, bool):
        return "true" if value else "false"
    if isinstance(value, float):
        return f"{value:.3g}"
    if isinstance(value, list | tuple):
        return "[" + ",".join(setting(item) for item in value) + "]"
    return str(value)


def settings_line(params: Mapping[str, Any]) -> str:
    return ", ".join(f"{name}={setting(value)}" for name, value in params.items())


def duration(seconds: float) -> str:
    """`42s`, `3m 07s` or `2h 05m`."""
    whole = max(0, int(seconds))
    if whole < 60:
        return f"{whole}s"
    if whole < 3600:
        return f"{whole // 60}m {whole % 60:02}s"
    return f"{whole // 3600}h {whole % 3600 // 60:02}m"


def moment(at: datetime | None) -> str:
    """A UTC time to the second; `-` for none."""
    return "-" if at is None else f"{at.astimezone(UTC):%Y-%m-%d %H:%M:%S}Z"
