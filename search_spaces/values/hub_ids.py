"""What a name on the Hugging Face hub looks like: the one pattern that submission and workers go by.

Nothing else may be asked of the hub: a URL, a path or `..` would lead elsewhere.
"""

from __future__ import annotations

import re

_NAME = "[A-Za-z0-9][A-Za-z0-9._-]*"
_ID = re.compile(f"{_NAME}(/{_NAME})?")
_REVISION = re.compile(f"{_NAME}(/{_NAME})*")


def is_hub_id(text: str) -> bool:
    """Whether it is of the form `organisation/name`, or the name alone."""
    return _ID.fullmatch(text) is not None


def is_revision(text: str) -> bool:
    """Whether it can be a branch, tag or commit. It becomes part of a path in the hub's cache."""
    return _REVISION.fullmatch(text) is not None
