"""What must hold between the rows of both databases, whatever has been killed: looked at from outside.

The rules know nothing of how the coordinator works, only what it may never leave behind. Most are plain SQL
on one of the two databases (`rules`); the others compare the two (`comparison`). `nightsweep db check` runs
them, beside a running service, too.
"""

from __future__ import annotations

from service.maintenance.integrity.check import find_violations, open_engines, read_violations
from service.maintenance.integrity.rules import SENTENCES
from service.maintenance.integrity.violations import Violation

__all__ = ["SENTENCES", "Violation", "find_violations", "open_engines", "read_violations"]
