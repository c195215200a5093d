"""/login/openid: to the identity provider and back."""

from __future__ import annotations

import hashlib
import hmac
import logging
import secrets
from datetime import timedelta

from fastapi import APIRouter, Request
from sqlalchemy import delete, select
from sqlalchemy.orm import Session
from starlette.responses import RedirectResponse, Response

from service.access.openid.people import identity_of, owner_of, role_of
from service.access.openid.provider import NotThisPerson, Provider, ProviderTrouble, Started
from service.access.sessions import commands, cookies, pages
from service.access.sessions.log import record
from service.db.database import database_now
from service.db.models import PendingLogin
from service.errors import NotFound
from service.rest.dependencies import ServiceResources
from service.settings import Settings

log = logging.getLogger(__name__)
router = APIRouter(include_in_schema=False)

SECONDS = 600
"""Within which somebody must come back."""
_MOST_PENDING = 10_000
_CALLBACK = "/login/openid/callback"


@router.get("/login/openid")
def start(request: Request, resources: ServiceResources) -> Response:
    """Send a browser to the identity provider."""
    provider = _provider(request)
    try:
        started = provider.start(_callback(request))
    except ProviderTrouble as error:
        return _trouble(error)
    browser = secrets.token_urlsafe(32)
    wanted = cookies.destination(request.query_params.get("next"))
    resources.database.transact(lambda session: _keep(session, started, browser, wanted))
    response = RedirectResponse(started.url, 303, headers={"Cache-Control": "no-store"})
    # Lax: the way back is from another site.
    cookies.give(response, request.scope, cookies.OPENID, browser, seconds=SECONDS, same_site="lax")
    return response


@router.get(_CALLBACK)
def finish(request: Request, resources: ServiceResources) -> Response:
    """Take a browser back from the identity provider, once, and begin its session."""
    provider, settings, database = _provider(request), resources.settings, resources.database
    query = request.query_params
    browser = cookies.read(cookies.OPENID, request.scope)
    pending = database.transact(lambda session: _take(session, query.get("state", ""), browser))
    try:
        if pending is None:
            raise NotThisPerson("This login was not begun in this browser, or too long ago. Begin again.")
        if "code" not in query:
            raise NotThisPerson(f"The identity provider refused the login: {query.get('error', '')[:100]}")
        claims = provider.finish(
            code=query["code"],
            redirect_uri=_callback(request),
            nonce=pending.nonce,
            code_verifier=pending.code_verifier,
        )
        identity = identity_of(claims, settings)
        owner = owner_of(identity, provider.issuer, claims["sub"])
        role = role_of(identity, settings)
        if role is None:
            raise NotThisPerson(f"{owner} may not use this server. Its operator decides who may.")
    except ProviderTrouble as error:
        return _trouble(error)
    except NotThisPerson as error:
        why = error.detail
        database.transact(lambda session: record(session, request, None, f"login refused: {why}", settings))
        return pages.respond(pages.message_page("Login refused", why), error.status)
    person = commands.Person(owner=owner, role=role, subject=claims["sub"], identity=identity)
    before = cookies.read(cookies.SESSION, request.scope)
    begun = database.transact(lambda session: _begin(session, request, person, before, settings))
    response = pages.respond(pages.onward_page(pending.next))
    cookies.give(response, request.scope, cookies.SESSION, begun.token, seconds=begun.seconds)
    cookies.take_back(response, request.scope, cookies.OPENID)
    return response


def _begin(
    session: Session, request: Request, person: commands.Person, before: str | None, settings: Settings
) -> commands.Begun:
    if before is not None:
        commands.end(session, before)
    begun = commands.begin(session, person, settings)
    record(session, request, begun.caller, "logged in", settings)
    return begun


def _keep(session: Session, started: Started, browser: str, wanted: str) -> None:
    """Remember a browser that was sent away; those that are late are forgotten."""
    now = database_now(session)
    late = PendingLogin.created_at < now - timedelta(seconds=SECONDS)
    session.execute(delete(PendingLogin).where(late))
    session.add(
        PendingLogin(
            state_sha256=_digest(started.state),
            browser_sha256=_digest(browser),
            nonce=started.nonce,
            code_verifier=started.code_verifier,
            next=wanted,
            created_at=now,
        )
    )
    session.flush()
    # Anybody may begin one: the oldest make room.
    kept = (
        select(PendingLogin.state_sha256)
        .order_by(PendingLogin.created_at.desc())
        .offset(_MOST_PENDING)
        .limit(100)
    )
    gone = session.scalars(kept).all()
    if gone:
        session.execute(delete(PendingLogin).where(PendingLogin.state_sha256.in_(gone)))


def _take(session: Session, state: str, browser: str | None) -> PendingLogin | None:
    """What was remembered, for the browser that it is of, within its time. It is gone then: a state is for
    one login."""
    query = select(PendingLogin).where(PendingLogin.state_sha256 == _digest(state)).with_for_update()
    row = session.scalars(query).one_or_none()
    if row is None or browser is None or not hmac.compare_digest(row.browser_sha256, _digest(browser)):
        return None
    session.delete(row)
    session.flush()
    late = row.created_at < database_now(session) - timedelta(seconds=SECONDS)
    session.expunge(row)
    return None if late else row


def _provider(request: Request) -> Provider:
    provider: Provider | None = request.app.state.openid
    if provider is None:
        raise NotFound("This server has no identity provider. Log in with a key at /login.")
    return provider


def _callback(request: Request) -> str:
    return str(request.url.replace(path=_CALLBACK, query="", fragment=""))


def _trouble(error: ProviderTrouble) -> Response:
    log.warning("a login at the identity provider failed: %s", error.detail)
    return pages.respond(
        pages.message_page("The identity provider does not answer", error.detail), error.status
    )


def _digest(text: str) -> str:
    return hashlib.sha256(text.encode("utf-8", "replace")).hexdigest()
