"""The how-to names every rule of `nightsweep db check`, in the code's words."""

from __future__ import annotations

import re

from service.maintenance.integrity import SENTENCES
from tests.support.checkout import ROOT

PAGE = ROOT / "docs/how-to/backup.md"


def test_the_page_has_every_rule() -> None:
    rows = re.findall(r"^\| `([a-z-]+)` \| (.+) \|$", PAGE.read_text(), re.MULTILINE)
    assert dict(rows) == SENTENCES
