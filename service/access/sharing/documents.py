"""With whom something is shared: as it is stored, and as people send it."""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import Any, Literal

from search_spaces.errors import Fault
from search_spaces.faults import nearest_name, shown, unknown_keys
from service.errors import Invalid
from service.rest.authorization.permissions import EVERYBODY
from service.rest.dependencies import OWNER
from service.rest.problems import OWNER_FORM

MOST = 100
"""Owners that one study is shared with by name."""
_WORDS = ("none", "team")

SHARE_SCHEMA: dict[str, Any] = {
    "type": "object",
    "required": ["shared"],
    "properties": {
        "shared": {
            "oneOf": [
                {"type": "string", "enum": list(_WORDS)},
                {"type": "array", "items": {"type": "string", "pattern": OWNER}, "maxItems": MOST},
            ]
        }
    },
    "additionalProperties": False,
}


def shown_sharing(stored: list[str] | None) -> Literal["none", "team"] | list[str]:
    if not stored:
        return "none"
    return "team" if EVERYBODY in stored else stored


def read_sharing(document: Any) -> list[str] | None:
    """With whom something is to be shared, as it is stored. Raises `Invalid` with every fault at once."""
    if not isinstance(document, Mapping):
        raise Invalid("The request", [Fault(path="", value=shown(document), message="must be an object")])
    faults = unknown_keys(document, ["shared"], "")
    shared = document.get("shared")
    allowed = "none, team, or a list of owners"
    if "shared" not in document:
        faults.append(Fault(path="shared", value=None, message="is required", allowed=allowed))
    elif isinstance(shared, list):
        faults += _owner_faults(shared)
    elif not (isinstance(shared, str) and shared in _WORDS):
        nearest = nearest_name(shared, _WORDS)
        message = "is not one of the allowed values"
        faults.append(
            Fault(path="shared", value=shown(shared), message=message, allowed=allowed, nearest=nearest)
        )
    if faults:
        raise Invalid("The request", faults)
    if isinstance(shared, list):
        return sorted(set(shared)) or None
    return [EVERYBODY] if shared == "team" else None


def _owner_faults(owners: list[Any]) -> list[Fault]:
    faults = [
        Fault(path=f"shared[{index}]", value=shown(owner), message="not a valid name", allowed=OWNER_FORM)
        for index, owner in enumerate(owners[: MOST + 1])
        if not isinstance(owner, str) or not re.fullmatch(OWNER.strip("^$"), owner)
    ]
    if len(owners) > MOST:
        message = f"has {len(owners)} owners"
        faults.append(Fault(path="shared", value=None, message=message, allowed=f"at most {MOST}, or team"))
    return faults
