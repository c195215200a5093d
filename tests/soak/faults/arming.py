"""Points are armed by files, which processes read when they pass (`injected/sitecustomize.py`)."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any, Literal

from tests.soak.faults.kill_points import FREEZE_POINTS, HANG_POINTS, POINTS, Point

Action = Literal["kill", "stop", "hang"]


class Arming:
    """Says where processes die, and hears where they did.

    Args:
        folder: What the processes know as `FAULTS_FOLDER`.
    """

    def __init__(self, folder: Path) -> None:
        self._armed = folder / "armed"
        self._armed.mkdir()
        points = [point.as_document() for point in (*POINTS, *FREEZE_POINTS, *HANG_POINTS)]
        (folder / "points.json").write_text(json.dumps(points))

    def arm(self, point: Point, *at: int, action: Action = "kill") -> None:
        """Have processes die, be stopped, or hang in that thread, at these passings, counted from now."""
        plan = {"passed": 0, "at": list(at or (1,)), "action": action, "fired": []}
        fresh = self._armed / f".{point.file}"
        fresh.write_text(json.dumps(plan))
        fresh.rename(self._armed / point.file)

    def disarm(self, point: Point) -> list[dict[str, Any]]:
        """What happened at a point since it was armed."""
        fired = self.fired(point)
        (self._armed / point.file).unlink(missing_ok=True)
        return fired

    def fired(self, point: Point) -> list[dict[str, Any]]:
        """The processes that died, were stopped, or hang at a point: `process`, `pid`, `at`."""
        plan = self._plan(point)
        return [] if plan is None else list(plan["fired"])

    def is_spent(self, point: Point) -> bool:
        """Whether all of the chosen passings have come."""
        plan = self._plan(point)
        return plan is not None and len(plan["fired"]) == len(plan["at"])

    def _plan(self, point: Point) -> dict[str, Any] | None:
        try:
            plan: dict[str, Any] = json.loads((self._armed / point.file).read_text())
        except FileNotFoundError:
            return None
        return plan
