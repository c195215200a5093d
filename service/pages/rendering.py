"""Templates into HTML, and what a browser may do with it."""

from __future__ import annotations

import base64
import hashlib
import json
import re
from collections.abc import Mapping, Sequence
from datetime import UTC, datetime
from functools import cache
from pathlib import Path
from typing import Any, get_args

from jinja2 import Environment, FileSystemLoader, StrictUndefined
from markupsafe import Markup, escape
from starlette.responses import Response

from service.pages.assets import Name, address, asset
from service.pages.figures.style import TABLE_ROWS, words
from service.states import StudyState
from service.wording.report_sections import Grid, Point
from service.wording.values import duration, in_words, number, one_line, settings_line

POLICY = (
    "default-src 'none'; script-src 'self'; style-src 'self' 'unsafe-inline'; img-src 'self' data:; "
    "connect-src 'self'; base-uri 'none'; form-action 'self'; frame-ancestors 'none'"
)
"""No script but the two files that pages load. Plotly writes styles into its drawings."""

HEADERS = {"content-security-policy": POLICY, "cache-control": "no-cache"}
_MARKS = {
    StudyState.QUEUED: "◌",
    StudyState.RUNNING: "▶",
    StudyState.PAUSED: "❚❚",
    StudyState.COMPLETED: "✓",
    StudyState.FAILED: "✕",
    StudyState.CANCELLED: "■",
}


def page(
    template: str,
    status: int = 200,
    *,
    watched: Sequence[str] = (),
    events: str = "",
    person: str | None = None,
    **given: Any,
) -> Response:
    """A page that loads its style and scripts from this server.

    Args:
        template: its template.
        status: of the answer.
        watched: addresses whose answers change with the page; none: it stays as it is.
        events: where a browser can listen for changes.
        person: who has logged in, and can log out.
        given: what the template shows.
    """
    links = {name: address(name) for name in get_args(Name)}
    html = (
        _environment()
        .get_template(template)
        .render(assets=links, file=None, watched=watched, events=events, person=person, **given)
    )
    return Response(html, status, media_type="text/html", headers=HEADERS)


def whole_file(template: str, **given: Any) -> str:
    """The same as one file that loads nothing, with a policy of its own: it runs its own two scripts."""
    style, script, plotly = (asset(name).text for name in ("pages.css", "pages.js", "plotly.min.js"))
    hashes = " ".join(f"'sha256-{_sha256(text)}'" for text in (script, plotly))
    policy = f"default-src 'none'; script-src {hashes}; style-src 'unsafe-inline'; img-src data:"
    inline = {
        "policy": policy,
        "style": Markup(style),
        "script": Markup(script),
        "plotly": Markup(plotly),
    }
    return _environment().get_template(template).render(assets={}, file=inline, **given)


def _sha256(text: str) -> str:
    return base64.b64encode(hashlib.sha256(text.encode()).digest()).decode()


@cache
def _environment() -> Environment:
    made = Environment(
        loader=FileSystemLoader(Path(__file__).parent / "templates"),
        autoescape=True,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    made.filters |= {
        "number": number,
        "duration": duration,
        "prose": prose,
        "count": "{:,}".format,
        "settings": settings_line,
        "words": words,
        "time": time,
        "state": state,
        "plot": plot,
    }
    made.globals["most_rows"] = TABLE_ROWS
    made.tests |= {"grid": lambda block: isinstance(block, Grid), "points": _are_points, "numeric": numeric}
    return made


def time(at: datetime | None, zone: str = "UTC") -> Markup:
    """A time in words, and for programs; `-` for none."""
    if at is None:
        return Markup("-")
    return Markup('<time datetime="{}">{}</time>').format(
        at.astimezone(UTC).isoformat(timespec="seconds"), in_words(at, zone)
    )


def state(name: str) -> Markup:
    """A state with its mark, which is not read out."""
    mark = _MARKS.get(StudyState(name), "") if name in frozenset(StudyState) else ""
    return Markup('<span class="state {0}"><span aria-hidden="true">{1}</span> {0}</span>').format(name, mark)


def plot(document: Mapping[str, Any]) -> Markup:
    """A plot's data as JSON that cannot end its element."""
    text = json.dumps(document, allow_nan=False, separators=(",", ":"))
    for char in "<>&":
        text = text.replace(char, f"\\u{ord(char):04x}")
    return Markup(text)


def prose(text: str) -> Markup:
    """Foreign text in one line, with what stands between backticks as code."""
    return Markup(_CODE.sub(r"<code>\1</code>", str(escape(one_line(text)))))


_CODE = re.compile("`([^`]{1,200})`")


def numeric(cell: object) -> bool:
    """Whether a cell of a table is a number, which stands at the right."""
    if isinstance(cell, int | float):
        return True
    try:
        float(str(cell).replace(",", "").removesuffix("%"))
    except ValueError:
        return False
    return True


def _are_points(block: object) -> bool:
    return isinstance(block, list) and all(isinstance(each, Point) for each in block)
