"""/v1/studies/{study}: what people ask of a study after its submission"""

from __future__ import annotations

from datetime import timedelta
from typing import Annotated

from fastapi import APIRouter, Query, Response
from sqlalchemy.orm import Session

from service.control import extensions, labels, recipes, removal, trial_stops
from service.control.documents import (
    EXTENSION_SCHEMA,
    LABELS_SCHEMA,
    RECIPE_SCHEMA,
    STOP_SCHEMA,
    read_extension,
    read_labels,
    read_params,
    read_reason,
)
from service.control.schemas import RecipePage, RecipeView
from service.rest.dependencies import MAX_ID, Owner, Reading, ServiceSettings
from service.rest.documents import Document, OptionalDocument, request_body
from service.rest.etags import ETAG_HEADER, IfMatch
from service.rest.idempotency import REPLAYED_HEADER, Answer, ChangeOnce
from service.rest.problems import declare
from service.studies.endpoints import CHANGED, answer_study
from service.studies.limits import Limits
from service.studies.parameters import StudyRef
from service.studies.queries import get_study
from service.studies.schemas import StudyView
from service.trials.endpoints import TrialNumber
from service.trials.records import read
from service.trials.schemas import TrialView
from service.trials.views import trial_view

router = APIRouter(prefix="/v1/studies/{study}", tags=["studies"])


@router.patch(
    "",
    response_model=StudyView,
    responses={
        200: {"headers": {**ETAG_HEADER, **REPLAYED_HEADER}},
        **declare(400, 404, 408, 409, 412, 413, 415, 422),
    },
    openapi_extra=request_body(LABELS_SCHEMA, "Its new tags, its new note, or both, as JSON or YAML"),
)
def change_labels(
    study: StudyRef, document: Document, owner: Owner, expected: IfMatch, change: ChangeOnce
) -> Response:
    """Change a study's tags or its note, whatever its state. Its definition stays as it is."""
    wanted = read_labels(document)
    return change.answer(
        lambda session: answer_study(
            session, labels.change_labels(session, study, wanted, expected, asked_by=owner), 200
        )
    )


@router.post(
    "/trials/{number}/stop",
    status_code=202,
    response_model=TrialView,
    responses={
        202: {"headers": REPLAYED_HEADER},
        **declare(400, 404, 408, 409, 412, 413, 415, 422),
    },
    openapi_extra=request_body(STOP_SCHEMA, "Why, as JSON or YAML; may be left out", required=False),
)
def stop_trial(
    study: StudyRef,
    number: TrialNumber,
    document: OptionalDocument,
    owner: Owner,
    expected: IfMatch,
    change: ChangeOnce,
) -> Response:
    """End one trial early. It becomes `cancelled` within seconds, and counts towards `search.trials`.

    A trial that waits is not started. One of a paused study ends when the study is resumed. A trial that ends
    by itself before it hears of it keeps its result.
    """
    why = read_reason(document)

    def work(session: Session) -> Answer:
        trial_stops.request_stop(session, study, number, why, expected, asked_by=owner)
        found = get_study(session, study)
        trials = read(session, found, [number])  # not what is kept of it: this may yet be undone
        return Answer(status=202, body=trial_view(found, trials.definition, trials.records[0]))

    return change.answer(work)


@router.post(
    "/trials",
    status_code=202,
    response_model=RecipeView,
    responses={
        202: {"headers": REPLAYED_HEADER},
        **declare(400, 404, 408, 409, 412, 413, 415, 422),
    },
    openapi_extra=request_body(RECIPE_SCHEMA, "The parameters, as JSON or YAML"),
)
def enqueue(
    study: StudyRef, document: Document, owner: Owner, expected: IfMatch, change: ChangeOnce
) -> Response:
    """Have the next trial of the search use these parameters. The sampler chooses those that are left out.

    It is one of `search.trials`: 409 once all of them have been asked for or enqueued. In a grid the first
    point that has these values and had no trial comes next; values off the grid are refused.
    """
    params = read_params(document)

    def work(session: Session) -> Answer:
        made = recipes.enqueue(session, study, params, expected, asked_by=owner)
        return Answer(status=202, body=made)

    return change.answer(work)


@router.get("/enqueued", response_model=RecipePage, responses=declare(404, 422))
def list_enqueued(
    study: StudyRef,
    session: Reading,
    after: Annotated[int, Query(ge=0, le=MAX_ID, description="Only those with an id above this one")] = 0,
    limit: Annotated[int, Query(ge=1, le=1000)] = 1000,
) -> RecipePage:
    """The recipes that were enqueued in a study, oldest first, and what became of each."""
    found = get_study(session, study)
    return RecipePage(items=recipes.list_recipes(session, found, after=after, limit=limit))


@router.post("/archive", status_code=202, response_model=StudyView, responses=CHANGED)
def archive(study: StudyRef, owner: Owner, expected: IfMatch, change: ChangeOnce) -> Response:
    """Have lists leave the study out, unless `archived=true` asks for such. Nothing else changes."""
    return change.answer(
        lambda session: answer_study(session, removal.archive(session, study, expected, asked_by=owner), 202)
    )


@router.post("/unarchive", status_code=202, response_model=StudyView, responses=CHANGED)
def unarchive(study: StudyRef, owner: Owner, expected: IfMatch, change: ChangeOnce) -> Response:
    """Have lists show the study again."""
    return change.answer(
        lambda session: answer_study(
            session, removal.unarchive(session, study, expected, asked_by=owner), 202
        )
    )


@router.delete("", status_code=202, response_model=StudyView, responses=CHANGED)
def delete(
    study: StudyRef, owner: Owner, settings: ServiceSettings, expected: IfMatch, change: ChangeOnce
) -> Response:
    """Delete a study that has ended. It can be restored until `removal_at`.

    Then its rows, its trials in Optuna's storage and its artifacts are removed for good. 409 while it goes
    on, and while another study or a schedule needs it.
    """
    grace = timedelta(days=settings.deletion_grace_days)
    return change.answer(
        lambda session: answer_study(
            session, removal.delete(session, study, expected, asked_by=owner, grace=grace), 202
        )
    )


@router.post("/restore", status_code=202, response_model=StudyView, responses=CHANGED)
def restore(study: StudyRef, owner: Owner, expected: IfMatch, change: ChangeOnce) -> Response:
    """Take the deletion of the study back. 409 once a coordinator has begun to remove it."""
    return change.answer(
        lambda session: answer_study(session, removal.restore(session, study, expected, asked_by=owner), 202)
    )


@router.post(
    "/extend",
    status_code=202,
    response_model=StudyView,
    responses={
        202: {"headers": {**ETAG_HEADER, **REPLAYED_HEADER}},
        **declare(400, 404, 408, 409, 412, 413, 415, 422, 429),
    },
    openapi_extra=request_body(EXTENSION_SCHEMA, "What it is to have more of, as JSON or YAML"),
)
def extend(
    study: StudyRef,
    document: Document,
    owner: Owner,
    settings: ServiceSettings,
    expected: IfMatch,
    change: ChangeOnce,
) -> Response:
    """Give a study more trials, time or GPU-hours. One that has ended is queued again and goes on.

    Its trials stay as they are, and the sampler goes on from them. The definition that was submitted stays,
    too; `extensions` says what was added.
    """
    more, limits = read_extension(document), Limits.of(settings)
    return change.answer(
        lambda session: answer_study(
            session, extensions.extend(session, study, more, expected, asked_by=owner, limits=limits), 202
        )
    )
