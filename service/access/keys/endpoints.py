"""/v1/keys and /v1/me"""

from __future__ import annotations

from typing import Annotated, Any

from fastapi import APIRouter, Path, Response
from sqlalchemy.orm import Session

from service.access.keys import commands, queries
from service.access.keys.documents import read_add, read_change, read_rotation
from service.access.keys.schemas import (
    ADD_SCHEMA,
    CHANGE_SCHEMA,
    ROTATE_SCHEMA,
    KeyList,
    KeyView,
    Me,
    MeKey,
    NewKeyView,
)
from service.access.keys.views import new_key_view, view
from service.db.database import database_now
from service.db.models import ApiKey
from service.rest.authorization.callers import CurrentCaller
from service.rest.dependencies import Reading
from service.rest.documents import Document, request_body
from service.rest.idempotency import REPLAYED_HEADER, Answer, ChangeOnce, Changing
from service.rest.problems import declare

router = APIRouter(prefix="/v1", tags=["access"])

KeyRef = Annotated[str, Path(description="The key's id")]
_MADE: dict[int | str, dict[str, Any]] = {
    201: {
        "headers": {
            "Location": {"description": "The key's address", "schema": {"type": "string"}},
            **REPLAYED_HEADER,
        }
    }
}


@router.get("/me", response_model=Me)
def get_me(caller: CurrentCaller, session: Reading) -> Me:
    """Who the server takes you for, and what you may do."""
    key = None if caller.key_id is None else session.get(ApiKey, caller.key_id)
    return Me(
        owner=caller.owner,
        role=caller.role,
        via=caller.via,
        key=None if key is None else MeKey.model_validate(key),
        subject=caller.subject,
        csrf_token=caller.csrf_token,
    )


@router.get("/keys", response_model=KeyList)
def list_keys(session: Reading) -> KeyList:
    """All API keys, by owner, without the keys themselves."""
    now = database_now(session)
    return KeyList(items=[view(row, now) for row in queries.list_keys(session)])


@router.get("/keys/{key}", response_model=KeyView, responses=declare(404))
def get_key(key: KeyRef, session: Reading) -> KeyView:
    """One API key, without the key itself."""
    return view(queries.get_key(session, key), database_now(session))


@router.post(
    "/keys",
    status_code=201,
    response_model=NewKeyView,
    responses={**_MADE, **declare(400, 408, 413, 415, 422)},
    openapi_extra=request_body(ADD_SCHEMA, "Whose key, and what it may do, as JSON or YAML"),
)
def add_key(document: Document, change: ChangeOnce) -> Response:
    """Make an API key. Its answer alone contains the key: only a digest of it is stored."""
    wanted = read_add(document)

    def work(session: Session) -> Answer:
        made = commands.add(
            session, wanted.owner, role=wanted.role, label=wanted.label, lifetime=wanted.lifetime
        )
        return _made(session, made, f"add key {made.row.id} of {wanted.owner}, {wanted.role}")

    return change.answer(work)


@router.patch(
    "/keys/{key}",
    response_model=KeyView,
    responses=declare(400, 404, 408, 409, 413, 415, 422),
    openapi_extra=request_body(CHANGE_SCHEMA, "What changes, as JSON or YAML"),
)
def change_key(key: KeyRef, document: Document, changing: Changing) -> KeyView:
    """Change the role or the label of an API key, from the next request on."""
    role, label = read_change(document)

    def work(session: Session) -> KeyView:
        row = commands.change(session, key, role=role, label=label)
        session.flush()
        return view(row, database_now(session))

    return changing.transact(work, summary=f"change key {key[:12]}: {commands.in_words(role, label)}")


@router.post(
    "/keys/{key}/rotate",
    status_code=201,
    response_model=NewKeyView,
    responses={**_MADE, **declare(400, 404, 408, 409, 413, 415, 422)},
    openapi_extra=request_body(ROTATE_SCHEMA, "How long the old key still works, as JSON or YAML"),
)
def rotate_key(key: KeyRef, document: Document, change: ChangeOnce) -> Response:
    """Make a key in place of another one, with its owner, role, label and lifetime."""
    overlap = read_rotation(document)

    def work(session: Session) -> Answer:
        made = commands.rotate(session, key, overlap=overlap)
        return _made(session, made, f"rotate key {key[:12]} of {made.row.owner} to {made.row.id}")

    return change.answer(work)


@router.delete("/keys/{key}", status_code=204, responses=declare(404, 422))
def revoke_key(key: KeyRef, changing: Changing) -> None:
    """Revoke an API key, from the next request on; sessions that were begun with it end. Its owner's studies
    continue."""

    def work(session: Session) -> None:
        commands.revoke(session, key)

    changing.transact(work, summary=f"revoke key {key[:12]}")


def _made(session: Session, made: commands.NewKey, summary: str) -> Answer:
    shown = new_key_view(session, made)
    return Answer(
        status=201,
        body=shown,
        kept=shown.model_copy(update={"key": None}),
        headers={"Location": f"/v1/keys/{made.row.id}", "Cache-Control": "no-store"},
        summary=summary,
    )
