"""Tags and notes: what people write on studies and schedules, beside the definition. Pure."""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import Any

from search_spaces.errors import Fault
from search_spaces.faults import MAX_FAULTS, shown

MAX_TAGS = 20
MAX_NOTE = 2000
"""Characters."""
TAG_PATTERN = r"^[A-Za-z0-9][A-Za-z0-9._:/=-]{0,49}$"
_TAG = re.compile(TAG_PATTERN.strip("^$"))
TAG_FORM = (
    "1 to 50 letters, digits and the characters . _ : / = -, beginning with a letter or a digit; "
    f"at most {MAX_TAGS} tags"
)
_NOTE_FORM = f"text of at most {MAX_NOTE:,} characters, or null for none"
TEXT_PATTERN = r"^[^\x00-\x08\x0b-\x1f\x7f]*$"
_UNPRINTABLE = re.compile(r"[\x00-\x08\x0b-\x1f\x7f\ud800-\udfff]")

LABEL_SCHEMAS: dict[str, Any] = {
    "tags": {
        "type": "array",
        "maxItems": MAX_TAGS,
        "uniqueItems": True,
        "items": {"type": "string", "pattern": TAG_PATTERN},
        "description": "All the tags that it has from now on; upper and lower case differ",
    },
    "note": {
        "type": ["string", "null"],
        "maxLength": MAX_NOTE,
        "pattern": TEXT_PATTERN,
        "description": "Text that people read; null or an empty one: none",
    },
}


def label_faults(sent: Mapping[str, Any]) -> list[Fault]:
    """What is wrong with `tags` and `note` in a document that was sent, if they are in it."""
    faults = _tag_faults(sent["tags"]) if "tags" in sent else []
    note = sent.get("note")
    if note is None:
        return faults
    if (message := text_fault(note, MAX_NOTE)) is not None:
        faults.append(Fault(path="note", value=shown(note), message=message, allowed=_NOTE_FORM))
    return faults


def text_fault(text: Any, most: int) -> str | None:
    """What is wrong with a text that people wrote, of so many characters at most; None: nothing."""
    if not isinstance(text, str):
        return "must be text"
    if len(text) > most:
        return f"has {len(text):,} characters"
    if _UNPRINTABLE.search(text):
        return "contains a control character or half of a surrogate pair"
    return None


def _tag_faults(tags: Any) -> list[Fault]:
    if not isinstance(tags, list):
        return [Fault(path="tags", value=shown(tags), message="must be a list", allowed=TAG_FORM)]
    faults = []
    if len(tags) > MAX_TAGS:
        faults.append(
            Fault(path="tags", value=shown(tags), message=f"has {len(tags)} tags", allowed=TAG_FORM)
        )
    seen: set[str] = set()
    for index, tag in enumerate(tags[:MAX_FAULTS]):
        if not isinstance(tag, str) or not _TAG.fullmatch(tag):
            message = "is not a valid tag"
        elif tag in seen:
            message = "is listed twice"
        else:
            seen.add(tag)
            continue
        faults.append(Fault(path=f"tags.{index}", value=shown(tag), message=message, allowed=TAG_FORM))
    return faults
