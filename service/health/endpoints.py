"""/healthz and /readyz, for load balancers and process supervisors. Neither needs the API key."""

from __future__ import annotations

from typing import Annotated, Literal

from fastapi import APIRouter, Query, Request
from pydantic import BaseModel, Field

from search_spaces.errors import Fault
from service.errors import Unavailable
from service.health.readiness import Part, ReadinessCheck
from service.rest.problems import declare

router = APIRouter(tags=["health"])


class NotReady(Unavailable):
    title = "Not ready"


class Health(BaseModel):
    status: Literal["ok"] = "ok"


class Readiness(BaseModel):
    status: Literal["ok"] = "ok"
    parts: dict[Part, Literal["ok"]] = Field(description="The parts that were checked")


@router.get("/healthz", response_model=Health)
async def healthz() -> Health:
    """Whether the process answers. It needs neither a thread nor a database."""
    return Health()


@router.get("/readyz", response_model=Readiness, responses=declare(503))
async def readyz(
    request: Request,
    exclude: Annotated[
        list[Part] | None,
        Query(description="Parts that need not be ready; given several times: none of these"),
    ] = None,
) -> Readiness:
    """Whether a study that is submitted now will be run; the problem names each part that is not ready.

    Without a coordinator the API still accepts studies, and they wait for one; `exclude=coordinator` leaves
    it out of the question. Answers are up to two seconds old.
    """
    readiness: ReadinessCheck = request.app.state.readiness
    found = await readiness.troubles()
    asked = {part: trouble for part, trouble in found.items() if part not in (exclude or ())}
    faults = [
        Fault(path=part, value=None, message=trouble)
        for part, trouble in asked.items()
        if trouble is not None
    ]
    if faults:
        words = "; ".join(f"{fault.path}: {fault.message}" for fault in faults)
        raise NotReady(f"Not ready: {words}.", faults=faults)
    return Readiness(parts=dict.fromkeys(asked, "ok"))
