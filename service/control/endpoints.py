"""/v1/studies/{study}: what people ask of a study after its submission"""

from __future__ import annotations

from fastapi import APIRouter, Response
from sqlalchemy.orm import Session

from service.control import labels, trial_stops
from service.control.documents import LABELS_SCHEMA, STOP_SCHEMA, read_labels, read_reason
from service.rest.dependencies import Owner
from service.rest.documents import Document, OptionalDocument, request_body
from service.rest.etags import ETAG_HEADER, IfMatch
from service.rest.idempotency import REPLAYED_HEADER, Answer, ChangeOnce
from service.rest.problems import declare
from service.studies.endpoints import answer_study
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
