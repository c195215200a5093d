"""Logins in the audit log: those that succeed, those that are refused, and their ends."""

from __future__ import annotations

from datetime import timedelta

from fastapi import Request
from sqlalchemy.orm import Session

from service.rest.authorization import audit
from service.rest.authorization.callers import Caller, origin_of
from service.settings import Settings


def record(
    session: Session, request: Request, caller: Caller | None, summary: str, settings: Settings
) -> None:
    """Write an entry in the transaction that begins or ends the session.

    Args:
        session: a writing transaction.
        request: of the browser.
        caller: who logged in or out; None: the login was refused.
        summary: what happened.
        settings: how long entries are kept.
    """
    audit.write(
        session,
        caller,
        origin_of(request.scope),
        method=request.method,
        route=request.scope["route"].path,
        kind="session",
        ref=None if caller is None else caller.session_id,
        summary=summary,
        outcome=audit.REFUSED if caller is None else audit.DONE,
        keep=timedelta(days=settings.audit_days),
    )
