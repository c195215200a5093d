"""/, /reports/studies/{study} and /reports/schedules/{schedule}: pages for reading, and what they load"""

from __future__ import annotations

from typing import Annotated, get_args

from fastapi import APIRouter, Depends, Path, Request
from starlette.responses import HTMLResponse, Response

from service.db.kinds import StudyKind
from service.errors import NotFound
from service.pages import overview, schedules, studies
from service.pages.assets import Name, asset
from service.pages.errors_as_pages import PageRoute
from service.pages.rendering import HEADERS, page, whole_file
from service.rest.authorization.callers import CurrentCaller
from service.rest.dependencies import OptunaStorage, Reading
from service.studies.parameters import StudyRef
from service.studies.queries import get_search, get_study

router = APIRouter(route_class=PageRoute, include_in_schema=False)
ScheduleRef = Annotated[str, Path(description="The schedule's id or name")]
_READ = ["GET", "HEAD"]


async def _person(caller: CurrentCaller) -> str | None:
    """Who has logged in with this browser; None: nobody did, so nobody can log out."""
    return None if caller.session_id is None else caller.owner


Person = Annotated[str | None, Depends(_person)]


@router.api_route("/", methods=_READ)
def show_overview(session: Reading, person: Person) -> Response:
    """What runs, what waits, what failed lately, and the schedules."""
    return page(
        "overview.html.j2",
        shown=overview.read_overview(session),
        watched=overview.WATCHED,
        events="/v1/events",
        person=person,
    )


@router.api_route("/reports/studies/{study}", methods=_READ)
def show_study(study: StudyRef, session: Reading, storage: OptunaStorage, person: Person) -> Response:
    """The report of a study; of a range test, its page."""
    found = get_study(session, study)
    if found.kind == StudyKind.RANGE_TEST:
        test = studies.read_range_test(session, found)
        return page(
            "range_test.html.j2", shown=test, watched=test.watched, events=_events(found.id), person=person
        )
    shown = studies.read_page(session, storage, found)
    return page("study.html.j2", shown=shown, watched=shown.watched, events=_events(found.id), person=person)


@router.api_route("/reports/studies/{study}/file", methods=_READ)
def save_study(study: StudyRef, session: Reading, storage: OptunaStorage) -> Response:
    """The report of a study as one file that loads nothing."""
    shown = studies.read_page(session, storage, get_search(session, study))
    return _file(whole_file("study.html.j2", shown=shown), shown.report.study.name)


@router.api_route("/reports/schedules/{schedule}", methods=_READ)
def show_schedule(schedule: ScheduleRef, session: Reading, person: Person) -> Response:
    """The report of a schedule."""
    shown = schedules.read_page(session, schedule)
    return page("schedule.html.j2", shown=shown, watched=shown.watched, events="/v1/events", person=person)


@router.api_route("/reports/schedules/{schedule}/file", methods=_READ)
def save_schedule(schedule: ScheduleRef, session: Reading) -> Response:
    """The report of a schedule as one file that loads nothing."""
    shown = schedules.read_page(session, schedule)
    return _file(whole_file("schedule.html.j2", shown=shown), shown.name)


@router.api_route("/pages/{digest}/{name}", methods=_READ)
def load(digest: str, name: str, request: Request) -> Response:
    """A file that pages load, kept by browsers for good: its address changes with it."""
    found = next((asset(known) for known in get_args(Name) if known == name), None)
    if found is None:
        raise NotFound(f"There is no file {name[:200]!r} for pages.")
    same = digest == found.digest  # another version of the service may have made the page
    headers = {
        "cache-control": "public, max-age=31536000, immutable" if same else "no-cache",
        "vary": "accept-encoding",
    }
    if "gzip" in request.headers.get("accept-encoding", ""):
        headers["content-encoding"] = "gzip"
        return Response(found.compressed, media_type=found.media_type, headers=headers)
    return Response(found.content, media_type=found.media_type, headers=headers)


def _events(study_id: str) -> str:
    """Where the events of a study can be followed."""
    return f"/v1/studies/{study_id}/events/stream"


def _file(html: str, name: str) -> Response:
    return HTMLResponse(
        html, headers={**HEADERS, "content-disposition": f'attachment; filename="{name}-report.html"'}
    )
