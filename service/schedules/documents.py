"""What a person may send about a schedule, checked whole: every fault is reported at once."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from datetime import datetime
from pathlib import Path
from typing import Any

from search_spaces.definition import StudyDefinition
from search_spaces.errors import Fault
from search_spaces.faults import shown, unknown_keys
from service.definition_schema import REF as DEFINITION
from service.errors import Invalid
from service.schedules import firings
from service.studies.commands import check_definition

MAX_NAME = 100
"""A sweep's name is the schedule's and 14 characters more, and a study's name has at most 128."""
_NAME = re.compile(rf"[A-Za-z0-9][A-Za-z0-9._-]{{0,{MAX_NAME - 1}}}")
_NAME_FORM = (
    f"up to {MAX_NAME} letters, digits, dots, hyphens and underscores, beginning with one of the first two"
)

_TEXT = {"type": "string"}
CREATE_SCHEMA: dict[str, Any] = {
    "type": "object",
    "required": ["cron", "definition"],
    "properties": {
        "name": {**_TEXT, "description": "The definition's name when left out"},
        "cron": {**_TEXT, "description": firings.CRON_FORM},
        "timezone": {**_TEXT, "default": "UTC", "description": "An IANA name"},
        "definition": {**DEFINITION, "description": "Of the studies it makes, whose names it sets"},
        "enabled": {"type": "boolean", "default": True},
    },
    "additionalProperties": False,
}
CHANGE_SCHEMA: dict[str, Any] = {
    "type": "object",
    "minProperties": 1,
    "properties": {name: CREATE_SCHEMA["properties"][name] for name in ("enabled", "cron", "timezone")},
    "additionalProperties": False,
}


@dataclass(frozen=True, kw_only=True)
class NewSchedule:
    name: str
    cron: str
    timezone: str
    enabled: bool
    definition: StudyDefinition


@dataclass(frozen=True, kw_only=True)
class ScheduleChange:
    """None: as it was."""

    cron: str | None
    timezone: str | None
    enabled: bool | None


def read_new(document: Any, data_roots: Sequence[Path], now: datetime) -> NewSchedule:
    """A new schedule from what was sent. Raises `Invalid` with every fault at once."""
    sent, faults = _mapping(document, list(CREATE_SCHEMA["properties"]))
    for key in CREATE_SCHEMA["required"]:
        if key not in sent:
            faults.append(Fault(path=key, value=None, message="is required"))
    timezone, enabled = sent.get("timezone", "UTC"), sent.get("enabled", True)
    cron_faults = firings.check(sent.get("cron"), timezone, now)
    faults += [fault for fault in cron_faults if fault.path in sent]
    faults += _enabled_faults(enabled)
    definition = None
    if "definition" in sent:
        definition, found = check_definition(sent["definition"], data_roots)
        faults += [fault.below("definition") for fault in found]
    name = sent.get("name")
    if name is None and definition is not None:
        name = definition.name
    if name is not None and not (isinstance(name, str) and _NAME.fullmatch(name)):
        faults.append(Fault(path="name", value=shown(name), message="is no name", allowed=_NAME_FORM))
    if faults or definition is None:
        raise Invalid("The schedule", faults)
    return NewSchedule(
        name=str(name), cron=sent["cron"], timezone=timezone, enabled=enabled, definition=definition
    )


def read_change(document: Any, *, cron: str, timezone: str, now: datetime) -> ScheduleChange:
    """A change from what was sent, checked against what the schedule has. Raises `Invalid`."""
    known = list(CHANGE_SCHEMA["properties"])
    sent, faults = _mapping(document, known)
    if not sent and not faults:
        faults.append(
            Fault(path="", value={}, message="changes nothing", allowed=f"the keys {', '.join(known)}")
        )
    found = firings.check(sent.get("cron", cron), sent.get("timezone", timezone), now)
    faults += [fault for fault in found if fault.path in sent]
    faults += _enabled_faults(sent.get("enabled", True))
    if faults:
        raise Invalid("The change", faults)
    return ScheduleChange(cron=sent.get("cron"), timezone=sent.get("timezone"), enabled=sent.get("enabled"))


def _mapping(document: Any, known: list[str]) -> tuple[Mapping[str, Any], list[Fault]]:
    if not isinstance(document, Mapping):
        keys = ", ".join(known)
        fault = Fault(path="", value=shown(document), message="must be a mapping", allowed=f"the keys {keys}")
        raise Invalid("The body", [fault])
    return document, unknown_keys(document, known, "")


def _enabled_faults(enabled: Any) -> list[Fault]:
    if isinstance(enabled, bool):
        return []
    return [
        Fault(path="enabled", value=shown(enabled), message="must be true or false", allowed="true, false")
    ]
