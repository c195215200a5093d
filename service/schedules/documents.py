"""Documents about schedules as people send them, checked whole: every fault is reported at once."""

from __future__ import annotations

import re
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass
from datetime import datetime
from pathlib import Path
from typing import Any

from search_spaces.definition import StudyDefinition
from search_spaces.errors import Fault
from search_spaces.faults import nearest_name, shown, unknown_keys
from service.db.kinds import Overlap
from service.definitions.acceptance import check_definition
from service.definitions.json_schema import REF as DEFINITION
from service.errors import Invalid
from service.schedules import firings

MAX_NAME = 100
"""A sweep's name is the schedule's and 14 characters more, and a study's name has at most 128."""
_NAME = re.compile(rf"[A-Za-z0-9][A-Za-z0-9._-]{{0,{MAX_NAME - 1}}}")
_NAME_FORM = (
    f"up to {MAX_NAME} letters, digits, dots, hyphens and underscores, beginning with a letter or a digit"
)

_LARGEST_SEED = 2**32 - 1
_OVERLAPS = ", ".join(Overlap)

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
        "overlap": {
            "type": "string",
            "enum": list(Overlap),
            "default": Overlap.SKIP,
            "description": "What a firing does while an earlier sweep is queued or running: `skip` makes no "
            "sweep and says so in the history, `allow` makes one beside it",
        },
        "repeat_configurations": {
            "type": "boolean",
            "default": False,
            "description": "Whether sweeps evaluate again what earlier ones have evaluated on the same data",
        },
    },
    "additionalProperties": False,
}
CHANGE_SCHEMA: dict[str, Any] = {
    "type": "object",
    "minProperties": 1,
    "properties": {
        **CREATE_SCHEMA["properties"],
        "name": {**_TEXT, "description": "Its new name; the sweeps it has made keep the one they have"},
        "definition": {**DEFINITION, "description": "Of the sweeps that it makes from now on"},
        "seed": {
            "type": "integer",
            "minimum": 0,
            "maximum": _LARGEST_SEED,
            "description": "The definition's `search.seed`, from which those of its sweeps follow",
        },
    },
    "additionalProperties": False,
}


@dataclass(frozen=True, kw_only=True)
class NewSchedule:
    name: str
    cron: str
    timezone: str
    enabled: bool
    overlap: Overlap
    repeat_configurations: bool
    definition: StudyDefinition


@dataclass(frozen=True, kw_only=True)
class ScheduleChange:
    """None: as it was."""

    name: str | None
    cron: str | None
    timezone: str | None
    enabled: bool | None
    overlap: Overlap | None
    repeat_configurations: bool | None
    seed: int | None
    definition: StudyDefinition | None


def read_new(
    document: Any, data_roots: Sequence[Path], plugins: Collection[str], now: datetime
) -> NewSchedule:
    """A new schedule from what was sent. Raises `Invalid` with every fault at once."""
    sent, faults = _mapping(document, list(CREATE_SCHEMA["properties"]))
    for key in CREATE_SCHEMA["required"]:
        if key not in sent:
            faults.append(Fault(path=key, value=None, message="is required"))
    timezone = sent.get("timezone", "UTC")
    cron_faults = firings.check(sent.get("cron"), timezone, now)
    faults += [fault for fault in cron_faults if fault.path in sent]
    faults += _option_faults(sent)
    definition, found = _definition(sent, data_roots, plugins)
    faults += found
    name = sent.get("name")
    if name is None and definition is not None:
        name = definition.name
    if name is not None:
        faults += _name_faults(name)
    if faults or definition is None:
        raise Invalid("The schedule", faults)
    return NewSchedule(
        name=str(name),
        cron=sent["cron"],
        timezone=timezone,
        enabled=sent.get("enabled", True),
        overlap=Overlap(sent.get("overlap", Overlap.SKIP)),
        repeat_configurations=sent.get("repeat_configurations", False),
        definition=definition,
    )


def read_change(
    document: Any,
    data_roots: Sequence[Path],
    plugins: Collection[str],
    *,
    cron: str,
    timezone: str,
    now: datetime,
) -> ScheduleChange:
    """A change from what was sent, checked against what the schedule has. Raises `Invalid`."""
    known = list(CHANGE_SCHEMA["properties"])
    sent, faults = _mapping(document, known)
    if not sent and not faults:
        faults.append(
            Fault(path="", value={}, message="changes nothing", allowed=f"the keys {', '.join(known)}")
        )
    found = firings.check(sent.get("cron", cron), sent.get("timezone", timezone), now)
    faults += [fault for fault in found if fault.path in sent]
    faults += _option_faults(sent)
    if "name" in sent:
        faults += _name_faults(sent["name"])
    if "seed" in sent:
        faults += _seed_faults(sent["seed"])
    definition, found = _definition(sent, data_roots, plugins)
    faults += found
    if faults:
        raise Invalid("The change", faults)
    overlap = sent.get("overlap")
    return ScheduleChange(
        name=sent.get("name"),
        cron=sent.get("cron"),
        timezone=sent.get("timezone"),
        enabled=sent.get("enabled"),
        overlap=None if overlap is None else Overlap(overlap),
        repeat_configurations=sent.get("repeat_configurations"),
        seed=sent.get("seed"),
        definition=definition,
    )


def _mapping(document: Any, known: list[str]) -> tuple[Mapping[str, Any], list[Fault]]:
    if not isinstance(document, Mapping):
        keys = ", ".join(known)
        fault = Fault(path="", value=shown(document), message="must be a mapping", allowed=f"the keys {keys}")
        raise Invalid("The body", [fault])
    return document, unknown_keys(document, known, "")


def _definition(
    sent: Mapping[str, Any], data_roots: Sequence[Path], plugins: Collection[str]
) -> tuple[StudyDefinition | None, list[Fault]]:
    if "definition" not in sent:
        return None, []
    definition, found = check_definition(sent["definition"], data_roots, plugins)
    return definition, [fault.below("definition") for fault in found]


def _name_faults(name: Any) -> list[Fault]:
    if isinstance(name, str) and _NAME.fullmatch(name):
        return []
    return [Fault(path="name", value=shown(name), message="is not a valid name", allowed=_NAME_FORM)]


def _option_faults(sent: Mapping[str, Any]) -> list[Fault]:
    faults = [
        Fault(path=key, value=shown(sent[key]), message="must be true or false", allowed="true, false")
        for key in ("enabled", "repeat_configurations")
        if key in sent and not isinstance(sent[key], bool)
    ]
    if "overlap" in sent and sent["overlap"] not in list(Overlap):
        value, nearest = sent["overlap"], nearest_name(sent["overlap"], list(Overlap))
        message = "is not a rule for sweeps that overlap"
        faults.append(
            Fault(path="overlap", value=shown(value), message=message, allowed=_OVERLAPS, nearest=nearest)
        )
    return faults


def _seed_faults(seed: Any) -> list[Fault]:
    if isinstance(seed, int) and not isinstance(seed, bool) and 0 <= seed <= _LARGEST_SEED:
        return []
    allowed = f"a whole number from 0 to {_LARGEST_SEED}"
    return [Fault(path="seed", value=shown(seed), message="is not a valid seed", allowed=allowed)]
