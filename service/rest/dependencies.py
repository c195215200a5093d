"""What endpoints of every resource ask FastAPI for: settings, sessions, Optuna's storage, parameters."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Iterator
from contextlib import asynccontextmanager
from dataclasses import dataclass
from typing import Annotated, Any, get_args, get_origin

from fastapi import Depends, Query, Request
from fastapi.dependencies.utils import get_flat_params, request_params_to_args
from fastapi.params import Query as QueryInfo
from pydantic import BeforeValidator
from pydantic_core import PydanticCustomError
from sqlalchemy.orm import Session

from search_spaces.errors import Fault
from search_spaces.faults import MAX_FAULTS, nearest_name, shown
from service.db.database import Database
from service.errors import Invalid, Unavailable
from service.optuna_store.storage import Storage
from service.rest.authorization.callers import CurrentCaller
from service.rest.problems import request_fault
from service.settings import Settings
from service.telemetry.traces import Traces

THREADS = 80
"""Of the server: each request but the simplest takes one while it is answered."""
MAX_CHANGES = 32
"""Requests among them that change something. Each may take a minute, for a lock or a check of its data."""
CHANGE_SECONDS = 10.0
"""How long a further one waits for its turn."""
OWNER = r"^[A-Za-z0-9][A-Za-z0-9._@+-]{0,63}$"
"""The name of an owner. Whoever logs in at an identity provider has their e-mail address as one."""
MAX_ID = 2**31 - 1
"""Ids and trial numbers are 32-bit integers in PostgreSQL."""


@dataclass(frozen=True)
class Resources:
    """What the application opened at its start and closes at its end."""

    settings: Settings
    database: Database
    storage: Storage
    changes: asyncio.Semaphore
    """How many requests may change something at the same time."""
    traces: Traces | None = None
    """Where spans of submissions go; None: nowhere."""


async def _resources(request: Request) -> Resources:
    resources: Resources = request.app.state.resources
    return resources


async def _settings(resources: Annotated[Resources, Depends(_resources)]) -> Settings:
    return resources.settings


async def _storage(resources: Annotated[Resources, Depends(_resources)]) -> Storage:
    return resources.storage


@asynccontextmanager
async def changing(resources: Resources) -> AsyncIterator[None]:
    """Be one of the requests that may change something. Others wait here without a thread: they must not use
    up the threads that readers need while the database is locked.

    Raises:
        Unavailable: none of them has ended for `CHANGE_SECONDS`.
    """
    try:
        async with asyncio.timeout(CHANGE_SECONDS):
            await resources.changes.acquire()
    except TimeoutError:
        raise Unavailable(
            f"{MAX_CHANGES} other changes are being made or wait for the database; try again."
        ) from None
    try:
        yield
    finally:
        resources.changes.release()


async def _owner(caller: CurrentCaller) -> str:
    return caller.owner


def _reading(resources: Annotated[Resources, Depends(_resources)]) -> Iterator[Session]:
    with resources.database.read() as session:
        yield session


ServiceResources = Annotated[Resources, Depends(_resources)]
ServiceSettings = Annotated[Settings, Depends(_settings)]
Owner = Annotated[str, Depends(_owner)]
OptunaStorage = Annotated[Storage, Depends(_storage)]
# scope="function": the transaction ends before the answer is sent. Writing endpoints use `Database.transact`.
Reading = Annotated[Session, Depends(_reading, scope="function")]


def _true_or_false(value: object) -> object:
    """As JSON has them: pydantic would read "off" and "0", too, unlike the schema."""
    if value not in ("true", "false", True, False):
        raise PydanticCustomError("bool_parsing", "must be true or false", {"expected": "true, false"})
    return value


_SYNONYMS = {
    "name": "prefix",
    "status": "state",
    "page": "cursor",
    "offset": "cursor",
    "last_event_id": "after",
    "since": "after",
    "per_page": "limit",
    "page_size": "limit",
    "order": "sort",
    "order_by": "sort",
    "sort_by": "sort",
}
"""What other services call some of our query parameters."""


async def check_query(request: Request) -> None:
    """Refuse query parameters that the endpoint does not have, and single values that were given twice.

    For every route of the application's. FastAPI itself ignores the first and takes the last of the second.

    Raises:
        Invalid: with every fault of the query, wrong values of known parameters included.
    """
    route = request.scope["route"]
    if not route.include_in_schema:  # the documentation's own pages
        return
    fields = [field for field in get_flat_params(route.dependant) if isinstance(field.field_info, QueryInfo)]
    infos = {field.alias: field.field_info for field in fields}
    offered = [name for name, info in infos.items() if isinstance(info, QueryInfo) and info.include_in_schema]
    repeatable = {name: _takes_several(info.annotation) for name, info in infos.items()}
    synonyms = {word: ours for word, ours in _SYNONYMS.items() if ours in offered}
    faults = []
    for name in list(dict.fromkeys(request.query_params))[:MAX_FAULTS]:
        values = request.query_params.getlist(name)
        path, value = f"query.{shown(name)}", shown(values[0] if len(values) == 1 else values)
        if name not in repeatable:
            faults.append(
                Fault(
                    path=path,
                    value=value,
                    message="unknown query parameter",
                    allowed=", ".join(offered) or "no query parameters",
                    nearest=nearest_name(name, offered, synonyms),
                )
            )
        elif len(values) > 1 and not repeatable[name]:
            message = f"was given {len(values)} times"
            faults.append(Fault(path=path, value=value, message=message, allowed="one value"))
    if faults:
        _, errors = request_params_to_args(fields, request.query_params)
        raise Invalid("The request", [*faults, *(request_fault(error) for error in errors)])


def _takes_several(annotation: Any) -> bool:
    return get_origin(annotation) is list or any(_takes_several(part) for part in get_args(annotation))


TrueOrFalse = BeforeValidator(_true_or_false)
"""For a query parameter that is a `bool`."""
NamePrefix = Annotated[
    str,
    Query(
        pattern=r"^[A-Za-z0-9][A-Za-z0-9._-]{0,199}$", description="Only those whose names begin with this"
    ),
]
OwnerName = Annotated[
    str,
    Query(
        pattern=OWNER,
        description="Only those of this owner: the name that an API key was given to, or `default`",
    ),
]
