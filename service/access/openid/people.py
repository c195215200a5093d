"""Who somebody is to us, by what an identity provider says of them. Pure."""

from __future__ import annotations

import hashlib
import re
from collections.abc import Mapping, Sequence
from typing import Any

from service.db.kinds import Role
from service.db.models import NOBODY
from service.rest.dependencies import OWNER
from service.settings import Settings

_GROUPS = 500
"""Of one person, as many as are looked at."""


def identity_of(claims: Mapping[str, Any], settings: Settings) -> dict[str, Any]:
    """What decides the role: the e-mail address, if the provider has verified it, and the groups."""
    email = claims.get("email")
    verified = claims.get("email_verified") is True and isinstance(email, str) and len(email) <= 254
    groups = claims.get(settings.openid_groups_claim)
    listed = groups if isinstance(groups, list) else []
    return {
        "email": str(email).lower() if verified else None,
        "groups": [group for group in listed[:_GROUPS] if isinstance(group, str)],
    }


def role_of(identity: Mapping[str, Any], settings: Settings) -> Role | None:
    """The highest role that the settings give this person; None: they may not come in."""
    for role, people in (
        (Role.ADMIN, settings.openid_admins),
        (Role.SUBMITTER, settings.openid_submitters),
        (Role.VIEWER, settings.openid_viewers),
    ):
        if _is_among(identity, people):
            return role
    return None


def _is_among(identity: Mapping[str, Any], people: Sequence[str]) -> bool:
    email, groups = identity["email"], identity["groups"]
    for entry in people:
        if entry.startswith("group:"):
            if entry.removeprefix("group:") in groups:
                return True
        elif email is not None and (
            email == entry.lower()
            or (entry.startswith("@") and email.rpartition("@")[2] == entry[1:].lower())
        ):
            return True
    return False


def owner_of(identity: Mapping[str, Any], issuer: str, subject: str) -> str:
    """The name of the owner: the verified e-mail address, else one that is nobody else's.

    Nobody chooses it: a name of their choice could be that of another owner.
    """
    email = identity["email"]
    if email is not None and "@" in email and email != NOBODY and re.fullmatch(OWNER.strip("^$"), email):
        return str(email)
    return "openid-" + hashlib.sha256(f"{issuer} {subject}".encode()).hexdigest()[:24]
