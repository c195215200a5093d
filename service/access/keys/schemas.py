"""Keys as the REST API shows them, and what it takes to make, change and rotate one."""

from __future__ import annotations

from datetime import datetime
from typing import Any, Literal

from pydantic import Field

from service.answers import Answer, Open
from service.db.kinds import Role

KeyState = Literal["active", "expired", "revoked"]


class KeyView(Answer):
    id: str
    owner: str
    label: str = Field(description="What it is for")
    role: Open[Role]
    state: Open[KeyState]
    created_at: datetime
    expires_at: datetime | None = Field(description="null: it does not expire")
    last_used_at: datetime | None = Field(description="To the minute; null: never")
    replaced_by: str | None = Field(description="The key that it was rotated to")
    revoked_at: datetime | None


class KeyList(Answer):
    items: list[KeyView]


class NewKeyView(KeyView):
    key: str | None = Field(
        description="The key itself, in the first answer alone; null in one that is repeated for the same "
        "`Idempotency-Key`"
    )


class MeKey(Answer):
    id: str
    label: str
    expires_at: datetime | None


class Me(Answer):
    """Who the server takes the sender for."""

    owner: str
    role: Open[Role]
    via: str = Field(
        description="open (nobody needs a key), server_key, key, session (a browser that logged in with a "
        "key) or openid"
    )
    key: MeKey | None = Field(description="The key that was sent, or with which the browser logged in")
    subject: str | None = Field(description="Who they are to the identity provider")
    csrf_token: str | None = Field(
        description="What a change by this browser's session sends in the header `X-CSRF-Token`"
    )


_ROLE: dict[str, Any] = {"type": "string", "enum": list(Role)}
_LABEL: dict[str, Any] = {"type": "string", "maxLength": 100, "description": "What it is for"}
ADD_SCHEMA: dict[str, Any] = {
    "type": "object",
    "required": ["owner"],
    "properties": {
        "owner": {
            "type": "string",
            "pattern": r"^(?!default$)[A-Za-z0-9][A-Za-z0-9._@+-]{0,63}$",
            "description": "The name of a person or a team; `default` is the server's own",
        },
        "role": {**_ROLE, "default": Role.SUBMITTER},
        "label": _LABEL,
        "expires_in": {
            "type": "string",
            "description": "How long it works, such as 90d; by default without end",
        },
    },
    "additionalProperties": False,
}
CHANGE_SCHEMA: dict[str, Any] = {
    "type": "object",
    "minProperties": 1,
    "properties": {"role": _ROLE, "label": _LABEL},
    "additionalProperties": False,
}
ROTATE_SCHEMA: dict[str, Any] = {
    "type": "object",
    "properties": {
        "overlap": {
            "type": "string",
            "description": "How long the old key still works, such as 24h, at most 30d; else not at all",
        }
    },
    "additionalProperties": False,
}
