"""The how-to names every rule of `nightsweep db check`, in the code's words."""

from __future__ import annotations

import re
from pathlib import Path

from service.maintenance.integrity import SENTENCES

PAGE = Path(__file__).parents[3] / "docs/how-to/backup.md"


def test_the_page_has_every_rule() -> None:
    rows = re.findall(r"^\| `([a-z-]+)` \| (.+) \|$", PAGE.read_text(), re.MULTILINE)
    assert dict(rows) == SENTENCES
