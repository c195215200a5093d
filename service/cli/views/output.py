"""How commands write: documents to stdout as pure JSON, tables for people, errors to stderr."""

from __future__ import annotations

import json
import os
import sys
from collections.abc import Collection, Sequence
from typing import Any, TextIO

import typer
from rich.cells import cell_len
from rich.console import Console
from rich.text import Text

from service.wording.report_sections import Grid
from service.wording.values import one_line, printable

_PIPE_WIDTH = 400
"""Columns for a table in a pipe or a file, so that each row is one line."""
PAGE_WIDTH = 80
"""Columns for a page that people read, also in a pipe or a file."""
_GAP = 2
_NARROWEST = 40
"""Columns that are always used, whatever COLUMNS says."""


def console(stream: TextIO | None = None, *, pipe_width: int = _PIPE_WIDTH) -> Console:
    """A console on `stream` (stdout by default) that writes control codes to terminals only."""
    stream = stream or sys.stdout
    terminal = stream.isatty()
    return Console(
        file=stream,
        # Said outright, because FORCE_COLOR in a build's environment would put codes into its log.
        force_terminal=terminal,
        width=None if terminal or "COLUMNS" in os.environ else pipe_width,
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
    """Writes lines to stderr that are not errors and do not belong in stdout."""
    for line in lines:
        typer.echo(printable(line), err=True)


def say_json(document: Any) -> None:
    """Writes one JSON document to stdout. ASCII, so that every terminal can show it."""
    typer.echo(json.dumps(document, indent=2))


def say_grid(grid: Grid) -> None:
    """Writes a page's table to stdout."""
    table(grid.columns, grid.rows, empty="", pipe_width=PAGE_WIDTH)


def table(
    columns: Sequence[str],
    rows: Sequence[Sequence[object]],
    *,
    empty: str,
    optional: Collection[str] = (),
    pipe_width: int = _PIPE_WIDTH,
) -> None:
    """Writes a table to stdout, or the sentence `empty` when there are no rows.

    No cell is cut. Columns that do not fit on a line are written below their row, from the first of them on.

    Args:
        columns: Headings, the most important first. A newline in one makes it narrower.
        rows: Cells; one that is `-` is left out below its row.
        empty: Said in place of a table without rows.
        optional: Columns that are left out if they do not fit on a line.
        pipe_width: Columns of a line where stdout is no terminal and COLUMNS is not set.
    """
    if not rows:
        say(empty)
        return
    out = console(pipe_width=pipe_width)
    cells = [[one_line(str(cell)) for cell in row] for row in rows]
    widths = [_width(name, [row[i] for row in cells]) for i, name in enumerate(columns)]
    beside, used = [0], widths[0]
    for index in range(1, len(columns)):
        if used + _GAP + widths[index] <= max(out.width, _NARROWEST):
            beside.append(index)
            used += _GAP + widths[index]
        elif columns[index] not in optional:
            break
    below = [i for i in range(beside[-1] + 1, len(columns)) if columns[i] not in optional]
    lines = max(columns[i].count("\n") for i in beside) + 1
    for line in range(lines):
        parts = [(columns[i].split("\n") + [""] * lines)[:lines][line] for i in beside]
        out.print(Text(_padded(parts, [widths[i] for i in beside]), style="bold"), soft_wrap=True)
    for row in cells:
        say(_padded([row[i] for i in beside], [widths[i] for i in beside]))
        notes = [(columns[i].replace("\n", "_"), row[i]) for i in below if row[i] not in ("", "-")]
        for name, cell in notes:
            say(*indented(cell if len(below) == 1 else f"{name}: {cell}", out, 4))


def fits(columns: Sequence[str], rows: Sequence[Sequence[object]], *, pipe_width: int = _PIPE_WIDTH) -> bool:
    """Whether a table of these columns fits on a line of stdout."""
    widths = [_width(name, [one_line(str(row[i])) for row in rows]) for i, name in enumerate(columns)]
    return sum(widths) + _GAP * (len(widths) - 1) <= console(pipe_width=pipe_width).width


def indented(text: str, out: Console, indent: int, *, first: str | None = None) -> list[str]:
    """The text in lines that fit `out`: the first one after `first`, the others below it.

    A path or an address that does not fit has a line of its own, and is not broken: it is there to be copied.
    """
    text = one_line(text)
    first = " " * indent if first is None else first
    rest = " " * (cell_len(first) if cell_len(first) > indent else indent + 2 * (indent > 0))
    width = max(_NARROWEST, out.width) - len(rest)
    if len(rest) > indent + 2 and width < 20:
        return [first.rstrip(), *indented(text, out, indent + 2)]
    if " " not in text and cell_len(text) > width:
        return [line for line in (first.rstrip(), f"{' ' * indent}  {text}") if line]
    lines = Text(text).wrap(out, width)
    return [(rest if index else first) + line.plain.rstrip() for index, line in enumerate(lines)]


def _width(heading: str, cells: Sequence[str]) -> int:
    return max(map(cell_len, [*heading.split("\n"), *cells]))


def _padded(cells: Sequence[str], widths: Sequence[int]) -> str:
    padded = (cell + " " * (width - cell_len(cell)) for cell, width in zip(cells, widths, strict=True))
    return (" " * _GAP).join(padded).rstrip()


def heading(name: str) -> str:
    """A column's name in two lines, which is narrower."""
    return name.replace("_", "\n", 1)
