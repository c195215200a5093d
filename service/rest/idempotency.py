"""`Idempotency-Key`: a change that is requested twice is made once, and both requests get the same answer.

As in draft-ietf-httpapi-idempotency-key-header. The answer is kept in the transaction that made the change,
so either both exist or neither, whichever process dies at whatever moment:

- the same key with the same request (method, path, query and body) gets the first answer again, with
  `Idempotent-Replayed: true`;
- with another request, 422;
- two requests at once: the second waits for the first one's transaction and gets its answer;
- refusals and errors are not kept: the same key may be tried again.

Keys are an owner's own, and are kept for `NIGHTSWEEP_IDEMPOTENCY_HOURS` by the database's clock.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import AsyncIterator, Callable, Mapping
from dataclasses import dataclass, field
from datetime import timedelta
from typing import Annotated, Any, TypeVar

from fastapi import Depends, Header, Request, Response
from pydantic import BaseModel
from sqlalchemy import delete, select, tuple_
from sqlalchemy.orm import Session

from search_spaces.errors import Fault
from service.db.database import Database, database_now
from service.db.models import IdempotencyKey
from service.db.rows import insert
from service.errors import Invalid, KeyReused
from service.rest.authorization import audit
from service.rest.authorization.callers import CurrentCaller
from service.rest.authorization.enforcement import audited
from service.rest.authorization.permissions import Permission
from service.rest.dependencies import ServiceResources, changing

HEADER = "Idempotency-Key"
REPLAYED = "Idempotent-Replayed"
_KEY = r'^([!#-+\--~]{1,200}|"[ !#-\[\]-~]{1,200}")$'
"""A structured field's string (RFC 9651) as the draft has it, without escapes; or the same without quotes,
as most clients send it, and then without spaces and commas."""

REPLAYED_HEADER: dict[str, Any] = {
    REPLAYED: {
        "description": "`true` when this is the answer to an earlier request with the same `Idempotency-Key`",
        "schema": {"type": "string", "enum": ["true"]},
    }
}
"""For the `responses` of an endpoint."""

_PURGED_AT_ONCE = 1000
T = TypeVar("T")


@dataclass(frozen=True, kw_only=True)
class Answer:
    """What a change is answered with.

    Attributes:
        kept: for repeated requests, in place of the body: without what must be shown once and stored nowhere.
        summary: for the audit log, if the endpoint's name and the object's do not say enough.
    """

    status: int
    body: BaseModel
    headers: Mapping[str, str] = field(default_factory=dict)
    kept: BaseModel | None = None
    summary: str = ""


@dataclass(frozen=True, kw_only=True)
class Change:
    """A change that a request asks for. Endpoints that create or change by POST make theirs through it.

    Whether the caller may make it is looked up again in its transaction, and so is what the audit log says of
    it written there.

    Attributes:
        key: the request's `Idempotency-Key`, without quotes; None: it has none.
        request: digest of what was asked for; empty without a key.
    """

    database: Database
    permission: Permission
    audit: audit.Request
    owner: str
    key: str | None
    request: str
    keep: timedelta

    def answer(self, work: Callable[[Session], Answer]) -> Response:
        """Make the change, in one writing transaction, unless this request has made it before.

        Args:
            work: changes what is asked for and says what to answer. It may be run more than once, see
                `Database.transact`; what it raises undoes everything.

        Raises:
            KeyReused: the key came with another request before.
        """
        return self.database.transact(lambda session: self._once(session, work))

    def transact(self, work: Callable[[Session], T], *, summary: str = "") -> T:
        """Make a change of which no answer is kept, in one writing transaction.

        Args:
            work: likewise.
            summary: for the audit log, if the endpoint's name and the object's do not say enough.
        """

        def once(session: Session) -> T:
            found = self.permission.require_own(session, lock=True)
            self.audit.record(session, audit.DONE, found=found, summary=summary)
            return work(session)

        return self.database.transact(once)

    def earlier_answer(self) -> Response | None:
        """The answer to this request, if it was made before.

        For endpoints that check much before they change something: what passed the checks then need not pass
        them now, since a data file may have been removed.

        Raises:
            KeyReused: the key came with another request before.
        """
        if self.key is None:
            return None
        with self.database.read() as session:
            row = self._find(session, self.key)
            return None if row is None else self._again(row)

    def _once(self, session: Session, work: Callable[[Session], Answer]) -> Response:
        if self.key is None:
            made = self._make(session, work)
            return _render(made.status, made.headers, _document(made.body))
        row = self._reserve(session, self.key)
        if row.status:
            return self._again(row)
        made = self._make(session, work)
        row.status, row.headers = made.status, dict(made.headers)
        row.body = _document(made.body if made.kept is None else made.kept)
        return _render(row.status, row.headers, _document(made.body))

    def _make(self, session: Session, work: Callable[[Session], Answer]) -> Answer:
        found = self.permission.require_own(session, lock=True)
        made = work(session)
        self.audit.record(session, audit.DONE, found=found, made=made.body, summary=made.summary)
        return made

    def _again(self, row: IdempotencyKey) -> Response:
        if row.request != self.request:
            raise KeyReused(
                f"The {HEADER} {self.key!r} was already used for a different request. Use a new key for a"
                " new request, and an old key only to repeat its request unchanged."
            )
        return _render(row.status, {**row.headers, REPLAYED: "true"}, row.body)

    def _find(self, session: Session, key: str) -> IdempotencyKey | None:
        return session.scalars(
            select(IdempotencyKey).where(
                IdempotencyKey.owner == self.owner,
                IdempotencyKey.key == key,
                IdempotencyKey.created_at >= database_now(session) - self.keep,
            )
        ).one_or_none()

    def _reserve(self, session: Session, key: str) -> IdempotencyKey:
        """The answer kept under a key; where there is none, a row to keep it in, with status 0.

        On PostgreSQL the insertion waits for a transaction that has inserted the same key and not ended; on
        SQLite this whole transaction did.
        """
        while True:
            earlier = self._find(session, key)
            if earlier is not None:
                return earlier
            purge(session, self.keep)
            row = IdempotencyKey(
                owner=self.owner,
                key=key,
                request=self.request,
                status=0,
                headers={},
                body={},
                created_at=database_now(session),
            )
            if insert(session, row):
                return row


def purge(session: Session, keep: timedelta) -> None:
    """Delete answers older than `keep`. Rows that another transaction is deleting are left to it."""
    old = (
        select(IdempotencyKey.owner, IdempotencyKey.key)
        .where(IdempotencyKey.created_at < database_now(session) - keep)
        .limit(_PURGED_AT_ONCE)
        .with_for_update(skip_locked=True)
    )
    found = session.execute(old).all()
    if found:
        this = tuple_(IdempotencyKey.owner, IdempotencyKey.key)
        gone = delete(IdempotencyKey).where(this.in_([(row.owner, row.key) for row in found]))
        session.execute(gone.execution_options(synchronize_session=False))


def _document(body: BaseModel) -> dict[str, Any]:
    document: dict[str, Any] = json.loads(body.model_dump_json())
    return document


def _render(status: int, headers: Mapping[str, str], document: Mapping[str, Any]) -> Response:
    # The first answer and its repetitions alike, byte for byte.
    content = json.dumps(document, ensure_ascii=False, separators=(",", ":")).encode()
    return Response(content, status, headers=dict(headers), media_type="application/json")


async def _change(
    request: Request,
    resources: ServiceResources,
    caller: CurrentCaller,
    idempotency_key: Annotated[
        str | None,
        Header(
            pattern=_KEY,
            description="A request that is repeated with the same key is carried out only once and gets the "
            "same answer. Use a random UUID",
        ),
    ] = None,
) -> AsyncIterator[Change]:
    if len(request.headers.getlist(HEADER)) > 1:
        fault = Fault(path=f"header.{HEADER.lower()}", value=None, message="was sent twice")
        raise Invalid("The request", [fault])
    change = Change(
        database=resources.database,
        permission=Permission.of(request, caller),
        audit=audited(request, caller, resources.settings),
        owner=caller.owner,
        key=None if idempotency_key is None else _unquoted(idempotency_key),
        request="" if idempotency_key is None else _digest(request, await request.body()),
        keep=timedelta(hours=resources.settings.idempotency_hours),
    )
    async with changing(resources):
        yield change


def _unquoted(key: str) -> str:
    return key[1:-1] if key.startswith('"') else key


def _digest(request: Request, body: bytes) -> str:
    """SHA-256 of what makes a request another one."""
    digest = hashlib.sha256()
    path = request.scope["path"].encode("utf-8", "surrogatepass")
    for part in (request.method.encode(), path, request.scope["query_string"], body):
        digest.update(len(part).to_bytes(8, "big") + part)  # so that no part can pass for another's end
    return digest.hexdigest()


async def _changing(
    request: Request, resources: ServiceResources, caller: CurrentCaller
) -> AsyncIterator[Change]:
    change = Change(
        database=resources.database,
        permission=Permission.of(request, caller),
        audit=audited(request, caller, resources.settings),
        owner=caller.owner,
        key=None,
        request="",
        keep=timedelta(hours=resources.settings.idempotency_hours),
    )
    async with changing(resources):
        yield change


ChangeOnce = Annotated[Change, Depends(_change, scope="function")]
# The last parameter of an endpoint that may be repeated as it is: the body has been read by then.
Changing = Annotated[Change, Depends(_changing, scope="function")]
