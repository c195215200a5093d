"""/v1/studies/{study}/trials, …/best and …/adapter"""

from __future__ import annotations

from typing import Annotated

from fastapi import APIRouter, Path, Query, Response
from fastapi.responses import StreamingResponse

from service.rest.conditional import NOT_MODIFIED, IfNoneMatch, answer
from service.rest.dependencies import MAX_ID, Reading, ServiceSettings
from service.rest.problems import declare
from service.studies.parameters import StudyRef
from service.studies.queries import get_search, get_study
from service.trials import adapters, log, queries
from service.trials.schemas import AttemptPage, BestView, TrialFieldsPage, TrialLog, TrialPage, TrialView

router = APIRouter(prefix="/v1/studies/{study}", tags=["trials"])

Limit = Annotated[int | None, Query(ge=1, le=1000, description="How many at most; by default all")]
Cursor = Annotated[
    int | None,
    Query(ge=0, le=MAX_ID, description="`next_cursor` of the previous page; send it with the same filters"),
]
TrialNumber = Annotated[int, Path(ge=0, le=MAX_ID, description="The trial's number, from 0")]


@router.get("/trials", response_model=TrialPage | TrialFieldsPage, responses={**NOT_MODIFIED, **declare(404)})
def list_trials(
    study: StudyRef,
    session: Reading,
    known: IfNoneMatch,
    state: Annotated[
        list[queries.State] | None,
        Query(description="Only those in this state; given several times: in any of these"),
    ] = None,
    sort: Annotated[
        queries.Order,
        Query(description="`best`: by the objective, the best first, and those without a value last"),
    ] = "number",
    fields: Annotated[
        list[queries.TrialField] | None,
        Query(description="Only this of each trial; given several times: these; by default everything"),
    ] = None,
    limit: Limit = None,
    cursor: Cursor = None,
) -> Response:
    """A study's trials: all of them, or those in these states."""
    found = get_study(session, study)
    page = queries.list_trials(
        session, found, states=state, sort=sort, limit=limit, after=cursor, fields=fields
    )
    return answer(page, known)


@router.get("/attempts", response_model=AttemptPage, responses={**NOT_MODIFIED, **declare(404)})
def list_attempts(
    study: StudyRef, session: Reading, known: IfNoneMatch, limit: Limit = None, cursor: Cursor = None
) -> Response:
    """The attempts of all trials of a study, in the order in which they were sent out."""
    found = get_study(session, study)
    return answer(queries.list_attempts(session, found, limit=limit, after=cursor), known)


@router.get("/trials/{number}", response_model=TrialView, responses={**NOT_MODIFIED, **declare(404, 422)})
def get_trial(study: StudyRef, number: TrialNumber, session: Reading, known: IfNoneMatch) -> Response:
    """One trial, with its attempts."""
    return answer(queries.get_trial(session, get_study(session, study), number), known)


@router.get("/trials/{number}/log", response_model=TrialLog, responses=declare(404, 422))
def get_log(study: StudyRef, number: TrialNumber, session: Reading) -> TrialLog:
    """What happened to a trial and what it measured, oldest first."""
    return log.read_log(session, get_study(session, study), number)


@router.get("/best", response_model=BestView, responses={**NOT_MODIFIED, **declare(404, 409)})
def get_best(study: StudyRef, session: Reading, known: IfNoneMatch) -> Response:
    """The best completed trial that meets the constraints, and how certain that is; 404 if there is none.

    With `repeats`, the mean over fresh seeds decides. With several objectives the first one decides, and the
    answer also contains the Pareto front.
    """
    return answer(queries.get_best(session, get_search(session, study)), known)


@router.get(
    "/trials/{number}/adapter",
    response_class=StreamingResponse,
    responses={
        200: {
            "description": "A zip of adapter_config.json and adapter_model.safetensors, and of config.json if"
            " the task has a head",
            "content": {"application/zip": {"schema": {"type": "string", "format": "binary"}}},
        },
        **declare(404, 422),
    },
)
def get_adapter(
    study: StudyRef,
    number: TrialNumber,
    session: Reading,
    settings: ServiceSettings,
    which: queries.Which = "best",
) -> StreamingResponse:
    """An adapter as a zip file; when unzipped, `PeftModel.from_pretrained` can read it."""
    found = get_study(session, study)
    folder = queries.adapter_folder(session, found, number, which)
    return StreamingResponse(
        adapters.stream_zip(folder, settings),
        media_type="application/zip",
        headers={"Content-Disposition": f'attachment; filename="{found.name}-{number}-{which}.zip"'},
    )
