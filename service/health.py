"""/healthz and /readyz, for load balancers and process supervisors. Neither needs the API key."""

from __future__ import annotations

from typing import Literal

from fastapi import APIRouter
from pydantic import BaseModel

from service import optuna_store
from service.database import check_schema
from service.dependencies import ServiceResources
from service.problems import declare

router = APIRouter(tags=["health"])


class Health(BaseModel):
    status: Literal["ok"] = "ok"


@router.get("/healthz", response_model=Health)
async def healthz() -> Health:
    """Whether the process answers. It needs neither a thread nor a database."""
    return Health()


@router.get("/readyz", response_model=Health, responses=declare(503))
def readyz(resources: ServiceResources) -> Health:
    """Whether both databases answer and the schema is of this version."""
    check_schema(resources.database.engine)
    optuna_store.check_storage(resources.storage)
    return Health()
