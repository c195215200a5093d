"""Rules that the rows of both databases must keep, whatever was killed, checked from outside.

The rules do not know how the coordinator works, only what it must never leave behind. Most are plain SQL on
one of the two databases (`rules`); the others compare the two (`comparison`). `nightsweep db check` runs
them, also while the service is running.
"""

from __future__ import annotations

from service.maintenance.integrity.check import find_violations, open_engines, read_violations
from service.maintenance.integrity.rules import SENTENCES
from service.maintenance.integrity.violations import Violation

__all__ = ["SENTENCES", "Violation", "find_violations", "open_engines", "read_violations"]
