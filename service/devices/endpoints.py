"""/v1/workers"""

from __future__ import annotations

from typing import Annotated

from fastapi import APIRouter, Path, Response
from sqlalchemy.orm import Session

from service.devices import commands, queries
from service.devices.schemas import DeviceView, Fleet
from service.rest.dependencies import Reading
from service.rest.idempotency import REPLAYED_HEADER, Answer, ChangeOnce
from service.rest.problems import declare

router = APIRouter(prefix="/v1/workers", tags=["workers"])

DeviceRef = Annotated[str, Path(description="The GPU's id; its slash may be written as %2F")]


@router.get("", response_model=Fleet)
def get_fleet(session: Reading) -> Fleet:
    """The workers that have trials now, and the GPUs that get no trials because workers died on them."""
    return queries.show_workers(session)


@router.post(
    "/devices/{device:path}/restore",
    response_model=DeviceView,
    responses={200: {"headers": REPLAYED_HEADER}, **declare(404, 408, 413, 422)},
)
def restore(device: DeviceRef, change: ChangeOnce) -> Response:
    """Allow trials on a GPU again that was put aside."""

    def work(session: Session) -> Answer:
        return Answer(status=200, body=DeviceView.model_validate(commands.restore_device(session, device)))

    return change.answer(work)
