"""A worker as the coordinator of its study sees it."""

from __future__ import annotations

import time
from dataclasses import dataclass, field


@dataclass(kw_only=True)
class Member:
    """One worker of a study."""

    since: float = field(default_factory=time.monotonic)
    ready: bool = False
    slots: int = 0
    """Trials it wants at once; they may fall below those it has."""
    measured: bool = False
    """It has had a trial, so `slots` is a measurement and no longer a guess."""
    attempts: set[int] = field(default_factory=set)
    base: str | None = None
    """What its trials train on; of an idle worker what it has in memory, if anything."""
    reserved_for: str | None = None
    """It gets no trials but those of this base, for which it is being emptied."""
    acknowledged: int = 0
    to_verify: bool = False
    """Found after a coordinator's restart: its first events tell which orders it never got."""
    device_id: str | None = None
    """Its GPU, once it is ready."""
    put_aside: bool = False
    """Its GPU was put aside: it gets no trials, and stays only so that no other worker gets that GPU."""
    isolated: bool = False
    """It has a trial that trains by itself."""
    reserved_for_suspect: bool = False
    """It is being emptied for a trial that trains by itself."""
    suspect: bool = False
    """It has had a trial that may have killed a worker, so no other study gets it."""

    @property
    def is_reserved(self) -> bool:
        """It takes no trial of the others."""
        return self.isolated or self.reserved_for_suspect or self.reserved_for is not None

    @property
    def reusable(self) -> bool:
        """Another study may have it after this one, as far as the coordinator knows."""
        return self.ready and not (self.attempts or self.suspect or self.put_aside)
