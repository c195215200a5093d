"""The audit log as the REST API shows it."""

from __future__ import annotations

from datetime import datetime

from pydantic import Field

from service.answers import Answer


class AuditView(Answer):
    id: int
    at: datetime
    owner: str | None = Field(description="Who; null: nobody who was known, as of a refused login")
    role: str | None
    via: str = Field(
        description="How they came in: open, server_key, key, session, openid or command; unknown: not at all"
    )
    key_id: str | None
    session_id: str | None
    subject: str | None = Field(
        description="Who they are to the identity provider; of a command, the account that ran it"
    )
    method: str
    route: str = Field(description="The path as this document has it; of a command, the command")
    object_kind: str | None
    object_id: str | None
    object_name: str | None
    summary: str
    outcome: str = Field(description="done or refused")
    address: str | None
    user_agent: str | None


class AuditPage(Answer):
    items: list[AuditView]
    next_cursor: int | None = Field(
        description="Pass it as `cursor` to get the next page; null on the last page"
    )
