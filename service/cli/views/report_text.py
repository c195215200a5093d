"""A report's sections as text for a terminal or a page, and as Markdown."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

from rich.text import Text

from service.cli.views.output import PAGE_WIDTH, console, indented, say, say_grid
from service.wording.report_sections import Grid, Point, Section
from service.wording.values import one_line, setting


def show_report(parts: Sequence[Section]) -> None:
    """Writes a report to stdout, for people, in lines that fit the terminal or a page."""
    out = console(pipe_width=PAGE_WIDTH)
    for index, section in enumerate(parts):
        if index:
            say("")
        out.print(Text(section.title, style="bold"), soft_wrap=True)
        labels = max((len(block.label) for block in section.blocks if isinstance(block, Point)), default=0)
        for block in section.blocks:
            if isinstance(block, Grid):
                say_grid(block)
            elif isinstance(block, Point):
                label = f"{block.label:<{labels}}  " if labels else "- "
                say(*indented(block.text, out, 2, first=f"  {label}"))
            else:
                say(*indented(block, out, 0))


def markdown(parts: Sequence[Section]) -> str:
    """A report as Markdown."""
    lines: list[str] = []
    for index, section in enumerate(parts):
        lines += ["", f"## {_text(section.title)}"] if index else [f"# {_text(section.title)}"]
        before: str | Grid | Point | None = None
        for block in section.blocks:
            if not (isinstance(block, Point) and isinstance(before, Point)):
                lines.append("")
            if isinstance(block, Grid):
                lines += _table(block.columns, block.rows)
            elif isinstance(block, Point):
                lines.append(
                    f"- **{block.label}**: {_text(block.text)}" if block.label else f"- {_text(block.text)}"
                )
            else:
                lines.append(_text(block))
            before = block
    return "\n".join(lines) + "\n"


def _table(columns: Sequence[str], rows: Sequence[Sequence[object]]) -> Iterator[str]:
    yield "| " + " | ".join(columns) + " |"
    yield "|" + " --- |" * len(columns)
    for row in rows:
        yield "| " + " | ".join(_text(setting(cell)) for cell in row) + " |"


def _text(text: str) -> str:
    """One line that Markdown shows as it is, inside a table too."""
    return one_line(text).replace("\\", "\\\\").replace("|", "\\|").replace("*", "\\*").replace("`", "\\`")
