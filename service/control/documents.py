"""Bodies of requests that control a study, checked whole: every fault is reported at once."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from search_spaces.errors import Fault
from search_spaces.faults import shown, unknown_keys
from service.definitions.labels import LABEL_SCHEMAS, TEXT_PATTERN, label_faults, text_fault
from service.errors import Invalid

MAX_REASON = 300
"""Characters."""
LABELS_SCHEMA: dict[str, Any] = {
    "type": "object",
    "minProperties": 1,
    "properties": LABEL_SCHEMAS,
    "additionalProperties": False,
}


@dataclass(frozen=True, kw_only=True)
class Labels:
    """What a study is to have; None: as it has."""

    tags: tuple[str, ...] | None = None
    note: str | None = None
    """An empty one: no note."""


def read_labels(document: Any) -> Labels:
    """A change of tags and note from what was sent. Raises `Invalid`."""
    sent, faults = _mapping(document, list(LABELS_SCHEMA["properties"]))
    if not sent:
        faults.append(Fault(path="", value={}, message="changes nothing", allowed="the keys tags, note"))
    faults += label_faults(sent)
    if faults:
        raise Invalid("The change", faults)
    note = (sent["note"] or "").strip() if "note" in sent else None
    return Labels(tags=tuple(sent["tags"]) if "tags" in sent else None, note=note)


STOP_SCHEMA: dict[str, Any] = {
    "type": "object",
    "properties": {
        "reason": {
            "type": "string",
            "maxLength": MAX_REASON,
            "pattern": TEXT_PATTERN,
            "description": "Why; the trial's own reason repeats it",
        }
    },
    "additionalProperties": False,
}


def read_reason(document: Any) -> str:
    """Why a trial is to be stopped; empty: nothing was said. Raises `Invalid`."""
    sent, faults = _mapping(document, list(STOP_SCHEMA["properties"]))
    reason = sent.get("reason", "")
    if (wrong := text_fault(reason, MAX_REASON)) is not None:
        allowed = f"text of at most {MAX_REASON} characters"
        faults.append(Fault(path="reason", value=shown(reason), message=wrong, allowed=allowed))
    if faults:
        raise Invalid("The request", faults)
    return " ".join(str(reason).split())


def _mapping(document: Any, known: Sequence[str]) -> tuple[Mapping[str, Any], list[Fault]]:
    if not isinstance(document, Mapping):
        keys = f"the keys {', '.join(known)}"
        fault = Fault(path="", value=shown(document), message="must be a mapping", allowed=keys)
        raise Invalid("The body", [fault])
    return document, unknown_keys(document, known, "")
