"""Bodies of requests that control a study, checked whole: every fault is reported at once."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from search_spaces.definition import MAX_TRIALS
from search_spaces.errors import Fault
from search_spaces.faults import shown, unknown_keys
from search_spaces.values.numbers import DURATION_FORMS, parse_duration, read_int
from service.definitions.labels import LABEL_SCHEMAS, TEXT_PATTERN, label_faults, text_fault
from service.errors import Invalid

MAX_PARAMS = 100
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


_MORE = "Added to what the study has"
EXTENSION_SCHEMA: dict[str, Any] = {
    "type": "object",
    "minProperties": 1,
    "properties": {
        "trials": {
            "anyOf": [
                {"type": "integer", "minimum": 1, "maximum": MAX_TRIALS},
                {"type": "string", "pattern": r"^\+[1-9][0-9]{0,5}$"},
            ],
            "description": f"`search.trials`. {_MORE}: `20` and `+20` are twenty trials more",
        },
        "timeout": {
            "type": "string",
            "description": f"`budget.timeout`. {_MORE}, such as `2h` or `+2h`",
        },
        "max_gpu_hours": {
            "anyOf": [
                {"type": "number", "exclusiveMinimum": 0},
                {"type": "string", "pattern": r"^\+[0-9]{1,9}(\.[0-9]{1,9})?$"},
            ],
            "description": f"`budget.max_gpu_hours`. {_MORE}",
        },
        "max_failed_trials": {
            "anyOf": [
                {"type": "integer", "minimum": 1, "maximum": MAX_TRIALS},
                {"type": "string", "pattern": r"^\+[1-9][0-9]{0,5}$"},
            ],
            "description": f"`budget.max_failed_trials`. {_MORE}",
        },
    },
    "additionalProperties": False,
}


@dataclass(frozen=True, kw_only=True)
class Extension:
    """What a study is to have more of; None: no more than it has."""

    trials: int | None = None
    timeout_seconds: float | None = None
    max_gpu_hours: float | None = None
    max_failed_trials: int | None = None

    @property
    def sent(self) -> dict[str, Any]:
        """By the names of the definition."""
        values = vars(self)
        return {name.removesuffix("_seconds"): value for name, value in values.items() if value is not None}

    def applied(self, **present: float | None) -> dict[str, Any]:
        """The values that hold from now on, by the names of the definition.

        Args:
            present: those that hold now, by the names of this class; None: without a bound.

        Raises:
            Invalid: something has no bound that could be extended.
        """
        faults, values = [], {}
        for name, more in vars(self).items():
            if more is None:
                continue
            key, has = name.removesuffix("_seconds"), present[name]
            if has is None:
                message = "has no bound in this study, so there is nothing to extend"
                faults.append(Fault(path=key, value=more, message=message))
            else:
                values[key] = f"{has + more:.0f}s" if key == "timeout" else has + more
        if faults:
            raise Invalid("The extension", faults)
        return values


def read_extension(document: Any) -> Extension:
    """What a study is to have more of, from what was sent. Raises `Invalid`."""
    sent, faults = _mapping(document, list(EXTENSION_SCHEMA["properties"]))
    if not sent:
        keys = f"the keys {', '.join(EXTENSION_SCHEMA['properties'])}"
        faults.append(Fault(path="", value={}, message="extends nothing", allowed=keys))
    values: dict[str, Any] = {}
    for name, read, allowed in (
        ("trials", _read_whole, _WHOLE_FORM),
        ("timeout", _read_seconds, f"{DURATION_FORMS}, of at least 1s"),
        ("max_gpu_hours", _read_hours, "a number greater than 0 and at most 1,000,000"),
        ("max_failed_trials", _read_whole, _WHOLE_FORM),
    ):
        if name not in sent:
            continue
        value = read(sent[name])
        if value is None:
            message = "is not a valid amount to add"
            faults.append(Fault(path=name, value=shown(sent[name]), message=message, allowed=allowed))
        values["timeout_seconds" if name == "timeout" else name] = value
    if faults:
        raise Invalid("The extension", faults)
    return Extension(**values)


_WHOLE_FORM = f"a whole number from 1 to {MAX_TRIALS:,}"


def _read_whole(value: Any) -> int | None:
    if isinstance(value, str) and re.fullmatch(r"\+[1-9][0-9]{0,5}", value):
        value = int(value)
    try:
        number = read_int(value)
    except ValueError:
        return None
    return number if 1 <= number <= MAX_TRIALS else None


def _read_hours(value: Any) -> float | None:
    if isinstance(value, str) and re.fullmatch(r"\+[0-9]{1,9}(\.[0-9]{1,9})?", value):
        value = float(value)
    number = isinstance(value, int | float) and not isinstance(value, bool)
    return float(value) if number and 0 < value <= 1_000_000 else None


def _read_seconds(value: Any) -> float | None:
    try:
        seconds = parse_duration(value.removeprefix("+").strip()) if isinstance(value, str) else 0.0
    except ValueError:
        return None
    return seconds if seconds >= 1 else None


RECIPE_SCHEMA: dict[str, Any] = {
    "type": "object",
    "required": ["params"],
    "properties": {
        "params": {
            "type": "object",
            "minProperties": 1,
            "maxProperties": MAX_PARAMS,
            "description": "Searched recipe fields with their values: all of them, or some",
        }
    },
    "additionalProperties": False,
}


def read_params(document: Any) -> Mapping[str, Any]:
    """Parameters that the next trial is to have, not yet looked at one by one. Raises `Invalid`."""
    sent, faults = _mapping(document, list(RECIPE_SCHEMA["properties"]))
    params = sent.get("params")
    if "params" not in sent:
        faults.append(Fault(path="params", value=None, message="is required"))
    elif not isinstance(params, Mapping):
        allowed = "recipe fields that the study searches, with their values"
        faults.append(Fault(path="params", value=shown(params), message="must be a mapping", allowed=allowed))
    elif len(params) > MAX_PARAMS:
        message, allowed = f"has {len(params):,} keys", f"at most {MAX_PARAMS}"
        faults.append(Fault(path="params", value=shown(params), message=message, allowed=allowed))
    if faults or not isinstance(params, Mapping):
        raise Invalid("The request", faults)
    return params


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
