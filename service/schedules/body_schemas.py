"""The JSON Schemas of what is sent about schedules, for the OpenAPI document."""

from __future__ import annotations

from typing import Any

from search_spaces.values.time_of_day import TIME_OF_DAY_FORMS
from service.db.kinds import CatchUp, Overlap, UntilAction
from service.definitions.json_schema import REF as DEFINITION
from service.definitions.labels import LABEL_SCHEMAS
from service.schedules.firings import BOUND_FORM, CRON_FORM

LARGEST_SEED = 2**32 - 1

_TEXT = {"type": "string"}
_TEXT_OR_NONE = {"type": ["string", "null"], "default": None}
CREATE_SCHEMA: dict[str, Any] = {
    "type": "object",
    "required": ["cron", "definition"],
    "properties": {
        "name": {**_TEXT, "description": "The definition's name when left out"},
        "cron": {**_TEXT, "description": CRON_FORM},
        "timezone": {**_TEXT, "default": "UTC", "description": "An IANA name"},
        "definition": {**DEFINITION, "description": "Of the studies it makes, whose names it sets"},
        "enabled": {"type": "boolean", "default": True},
        "overlap": {
            "type": "string",
            "enum": list(Overlap),
            "default": Overlap.SKIP,
            "description": "What a firing does while an earlier sweep is queued or running: `skip` makes no"
            " sweep, `allow` makes one beside it, `queue` makes one when the earlier one has ended (at most"
            " one firing waits, the latest), `cancel_running` cancels the earlier one and makes one at once."
            " The history says what was done",
        },
        "catch_up": {
            "type": "string",
            "enum": list(CatchUp),
            "default": CatchUp.LATEST,
            "description": "Of firings that no coordinator came to within ten minutes: `latest` makes the "
            "latest of them late, `none` makes none. The history counts those that were missed",
        },
        "start": {**_TEXT_OR_NONE, "description": f"Nothing fires before: {BOUND_FORM}"},
        "end": {
            **_TEXT_OR_NONE,
            "description": f"Nothing fires after: {BOUND_FORM}. The day of a date is before its end",
        },
        "until": {
            **_TEXT_OR_NONE,
            "description": f"When the window of a sweep ends: {TIME_OF_DAY_FORMS}, in the schedule's"
            " timezone, the first after the firing",
        },
        "until_action": {
            "enum": [*UntilAction, None],
            "default": None,
            "description": "What is done at `until` with what is left of a sweep: `end` (default) ends it,"
            " `pause` pauses it until a person resumes it, `continue` pauses it until the next firing, which"
            " resumes it and makes no other",
        },
        "sweep_name": {
            **_TEXT_OR_NONE,
            "description": "What its sweeps are called, with the fields {date}, {week} and {run}, such as"
            " `nightly-{date}`. null: the schedule's name and the local time of the firing",
        },
        "repeat_configurations": {
            "type": "boolean",
            "default": False,
            "description": "Whether sweeps evaluate again what earlier ones have evaluated on the same data",
        },
        "champion": {
            "type": "boolean",
            "default": True,
            "description": "Whether each sweep evaluates the schedule's champion again, and its winner takes "
            "the champion's place if it is better beyond the noise",
        },
        **LABEL_SCHEMAS,
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
            "maximum": LARGEST_SEED,
            "description": "The definition's `search.seed`, from which those of its sweeps follow",
        },
    },
    "additionalProperties": False,
}
