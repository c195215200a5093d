"""/v1/studies/{study}/access and /v1/schedules/{schedule}/access"""

from __future__ import annotations

from typing import Annotated, Any, TypeVar

from fastapi import APIRouter, Path
from sqlalchemy.orm import Session

from service.access.sharing.documents import SHARE_SCHEMA, read_sharing, shown_sharing
from service.access.sharing.schemas import AccessView
from service.db.models import Schedule, Study
from service.db.rows import find
from service.errors import NotFound
from service.rest.dependencies import Reading
from service.rest.documents import Document, request_body
from service.rest.idempotency import Changing
from service.rest.problems import declare

router = APIRouter(prefix="/v1", tags=["access"])

StudyRef = Annotated[str, Path(description="The study's or range test's id or name")]
ScheduleRef = Annotated[str, Path(description="The schedule's id or name")]
Shareable = TypeVar("Shareable", Study, Schedule)
_RESPONSES: dict[int | str, dict[str, Any]] = declare(400, 404, 408, 413, 415, 422)
_BODY = request_body(SHARE_SCHEMA, "Who may change it beside its owner, as JSON or YAML")


@router.get("/studies/{study}/access", response_model=AccessView, responses=declare(404))
def get_study_access(study: StudyRef, session: Reading) -> AccessView:
    """Who may change a study or a range test."""
    return _view(_get(session, Study, study))


@router.put("/studies/{study}/access", response_model=AccessView, responses=_RESPONSES, openapi_extra=_BODY)
def share_study(study: StudyRef, document: Document, changing: Changing) -> AccessView:
    """Say who may change a study or a range test beside its owner: nobody, every owner, or those named."""
    shared = read_sharing(document)
    return changing.transact(
        lambda session: _share(session, Study, study, shared), summary=_words(study, shared)
    )


@router.get("/schedules/{schedule}/access", response_model=AccessView, responses=declare(404))
def get_schedule_access(schedule: ScheduleRef, session: Reading) -> AccessView:
    """Who may change a schedule."""
    return _view(_get(session, Schedule, schedule))


@router.put(
    "/schedules/{schedule}/access", response_model=AccessView, responses=_RESPONSES, openapi_extra=_BODY
)
def share_schedule(schedule: ScheduleRef, document: Document, changing: Changing) -> AccessView:
    """Say who may change a schedule beside its owner, and the sweeps that it makes from now on."""
    shared = read_sharing(document)
    return changing.transact(
        lambda session: _share(session, Schedule, schedule, shared), summary=_words(schedule, shared)
    )


def _share(session: Session, kind: type[Shareable], ref: str, shared: list[str] | None) -> AccessView:
    row = _get(session, kind, ref, lock=True)
    row.shared = shared
    return _view(row)


def _get(session: Session, kind: type[Shareable], ref: str, *, lock: bool = False) -> Shareable:
    found = find(session, kind, ref, lock=lock)
    if found is None:
        raise NotFound(f"There is no {kind.__name__.lower()} {ref[:200]!r}.")
    return found


def _view(row: Study | Schedule) -> AccessView:
    return AccessView(owner=row.owner, shared=shown_sharing(row.shared))


def _words(ref: str, shared: list[str] | None) -> str:
    with_whom = shown_sharing(shared)
    names = with_whom if isinstance(with_whom, str) else ", ".join(with_whom)
    return f"share {ref[:200]} with {names}"
