"""Documents about keys as people send them, checked whole: every fault is reported at once."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from datetime import timedelta
from typing import Any

from search_spaces.errors import Fault
from search_spaces.faults import nearest_name, shown, unknown_keys
from search_spaces.values.numbers import parse_duration
from service.access.keys import commands
from service.access.keys.schemas import ADD_SCHEMA, CHANGE_SCHEMA, ROTATE_SCHEMA
from service.db.kinds import Role
from service.errors import Invalid


@dataclass(frozen=True, kw_only=True)
class WantedKey:
    owner: str
    role: Role
    label: str
    lifetime: timedelta | None


def read_add(document: Any) -> WantedKey:
    """A key that is to be made. Raises `Invalid` with every fault at once."""
    sent, faults = _mapping(document, ADD_SCHEMA)
    owner, label = sent.get("owner"), sent.get("label", "")
    if "owner" not in sent:
        faults.append(Fault(path="owner", value=None, message="is required"))
    elif not isinstance(owner, str):
        faults.append(Fault(path="owner", value=shown(owner), message="must be text"))
    else:
        faults += commands.owner_faults(owner)
    role = _role(sent, faults) or Role.SUBMITTER
    faults += _label_faults(label)
    lifetime = _duration(sent, "expires_in", faults)
    if faults:
        raise Invalid("The key", faults)
    return WantedKey(owner=str(owner), role=role, label=label, lifetime=lifetime)


def read_change(document: Any) -> tuple[Role | None, str | None]:
    """The role and the label that a key is to have; None: as it was. Raises `Invalid`."""
    sent, faults = _mapping(document, CHANGE_SCHEMA)
    if not sent and not faults:
        faults.append(Fault(path="", value=None, message="must have a role or a label"))
    role = _role(sent, faults)
    if "label" in sent:
        faults += _label_faults(sent["label"])
    if faults:
        raise Invalid("The change", faults)
    return role, sent.get("label")


def read_rotation(document: Any) -> timedelta:
    """How long the old key goes on working. Raises `Invalid`."""
    sent, faults = _mapping(document, ROTATE_SCHEMA)
    overlap = _duration(sent, "overlap", faults, longest=commands.LONGEST_OVERLAP)
    if faults:
        raise Invalid("The rotation", faults)
    return overlap or commands.NO_OVERLAP


def _mapping(document: Any, schema: Mapping[str, Any]) -> tuple[Mapping[str, Any], list[Fault]]:
    if not isinstance(document, Mapping):
        return {}, [Fault(path="", value=shown(document), message="must be an object")]
    known = list(schema["properties"])
    return document, unknown_keys(document, known, "")


def _role(sent: Mapping[str, Any], faults: list[Fault]) -> Role | None:
    if "role" not in sent:
        return None
    try:
        return Role(sent["role"])
    except ValueError:
        faults.append(
            Fault(
                path="role",
                value=shown(sent["role"]),
                message="is not one of the allowed values",
                allowed=", ".join(Role),
                nearest=nearest_name(sent["role"], list(Role)),
            )
        )
        return None


def _label_faults(label: Any) -> list[Fault]:
    if isinstance(label, str):
        return commands.label_faults(label)
    return [Fault(path="label", value=shown(label), message="must be text")]


def _duration(
    sent: Mapping[str, Any], key: str, faults: list[Fault], *, longest: timedelta | None = None
) -> timedelta | None:
    if key not in sent:
        return None
    text = sent[key]
    try:
        duration = timedelta(seconds=parse_duration(text.strip() if isinstance(text, str) else ""))
    except ValueError as error:
        faults.append(Fault(path=key, value=shown(text), message=str(error)))
        return None
    if longest is not None and duration > longest:
        faults.append(Fault(path=key, value=shown(text), message=f"must be at most {longest.days}d"))
        return None
    return duration
