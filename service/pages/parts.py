"""Parts of a report's page: blocks of text and tables, and plots. Pure."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from service.pages.figures.style import Figure
from service.wording.report_sections import Grid, Point


@dataclass(frozen=True, kw_only=True)
class Part:
    """A heading with what stands below it. The page's script replaces a part when it has changed."""

    key: str
    title: str
    blocks: Sequence[str | Grid | Sequence[Point]]
    """Points that follow one another are one list."""
    figures: Sequence[Figure]


def part(
    key: str, title: str, blocks: Sequence[str | Grid | Point], figures: Sequence[Figure | None]
) -> Part | None:
    """None where there is nothing to show."""
    joined: list[str | Grid | list[Point]] = []
    for block in blocks:
        last = joined[-1] if joined else None
        if not isinstance(block, Point):
            joined.append(block)
        elif isinstance(last, list):
            last.append(block)
        else:
            joined.append([block])
    drawn = [figure for figure in figures if figure is not None]
    return Part(key=key, title=title, blocks=joined, figures=drawn) if joined or drawn else None
