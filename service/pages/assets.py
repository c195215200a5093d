"""The files that pages load: styles, the script, and Plotly's, each under an address that changes with it."""

from __future__ import annotations

import gzip
import hashlib
import importlib.util
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Literal

Name = Literal["pages.css", "pages.js", "plotly.min.js"]
_OWN = Path(__file__).parent / "static"
_TYPES = {".css": "text/css", ".js": "text/javascript"}


@dataclass(frozen=True, kw_only=True)
class Asset:
    content: bytes
    compressed: bytes
    """By gzip."""
    media_type: str
    digest: str

    @property
    def text(self) -> str:
        return self.content.decode()


@cache
def asset(name: Name) -> Asset:
    """A file, read and compressed when it is first asked for."""
    content = _path(name).read_bytes()
    return Asset(
        content=content,
        compressed=gzip.compress(content, 6, mtime=0),
        media_type=_TYPES[Path(name).suffix],
        digest=hashlib.sha256(content).hexdigest()[:16],
    )


def address(name: Name) -> str:
    return f"/pages/{asset(name).digest}/{name}"


def _path(name: Name) -> Path:
    if name != "plotly.min.js":
        return _OWN / name
    found = importlib.util.find_spec("plotly")  # without its import, which takes a moment
    if found is None or found.origin is None:
        raise ModuleNotFoundError("the package plotly is not installed")
    return Path(found.origin).parent / "package_data" / name
