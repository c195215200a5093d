"""Where artifacts are: a folder's path, or a URL that fsspec understands, such as `s3://bucket/nightsweep`."""

from __future__ import annotations

import re
from pathlib import Path

_PASSWORD = re.compile(r"(?<=://)[^/@\s]*:[^/@\s]*@")


def is_url(place: str) -> bool:
    """Whether a place is a URL rather than a path."""
    return "://" in place


def join(place: str, *parts: str) -> str:
    """A place within another one."""
    if is_url(place):
        return "/".join((place.rstrip("/"), *parts))
    return str(Path(place, *parts))


def without_password(text: str) -> str:
    """The text with `user:password@` taken out of the URLs in it."""
    return _PASSWORD.sub("***@", text)
