"""Where trials may go: what the workers of a study would take now, as a frozen value.

A worker holds one base at a time, so trials of different bases never share one. A trial that may have killed
its last worker gets one for itself. `decide` counts on a room and the crew sends by it: both see the same
places.
"""

from __future__ import annotations

from dataclasses import dataclass, replace


@dataclass(frozen=True, kw_only=True)
class Place:
    """One worker, as a trial that looks for a place sees it."""

    worker_id: str
    trials: int = 0
    """Those it has."""
    free: int
    """How many more it would take, within its share of the study's trials."""
    spare: int = 0
    """How many more beyond that."""
    base: str | None = None
    """What its trials train on, or what it is kept for. None: it is idle, and takes any."""
    loaded: str | None = None
    """The base in its memory, if any. Another one costs loading it."""
    kept: bool = False
    """It is kept for a trial that trains by itself."""
    device_id: str | None = None
    """Its GPU."""


@dataclass(frozen=True, kw_only=True)
class Room:
    """All places of a study, one for each worker that is ready."""

    places: tuple[Place, ...] = ()
    devices: frozenset[str | None] = frozenset()
    """The GPUs of all workers, those included that take nothing now; none of one that is starting."""

    @property
    def free(self) -> int:
        """Trials that would find a place if their bases were the right ones."""
        return sum(place.free for place in self.places if not place.kept)

    def suits(self, device_id: str | None, *, avoid: str | None) -> bool:
        """Whether a suspect may go to a GPU: not back to the one it avoids, unless there is no other."""
        return avoid is None or device_id != avoid or self.devices <= {avoid}

    def pick(self, base: str, *, alone: bool = False, avoid: str | None = None) -> Place | None:
        """The place for one more trial of a base; None: there is none.

        A worker that has the base before an idle one that would have to load it, then the least busy. Shares
        spread trials evenly over workers of one base. Where several bases divide the workers, a share may be
        full while others cannot help: then the trial goes to a fuller pack of its own base, if there is one.

        Args:
            base: what it trains on.
            alone: it trains by itself, so it takes an idle worker, one that is kept for such before others.
            avoid: the GPU that it does not go back to while there is another.
        """
        if alone:
            idle = [p for p in self.places if p.trials == 0 and p.free > 0 and p.base in (None, base)]
            idle = [p for p in idle if self.suits(p.device_id, avoid=avoid)]
            return min(
                idle, key=lambda p: (not p.kept, p.loaded not in (None, base), p.worker_id), default=None
            )
        open_to_it = [p for p in self.places if p.base in (None, base) and not p.kept]
        fitting = [p for p in open_to_it if p.free > 0]
        if not fitting and len(open_to_it) < len(self.places):
            fitting = [p for p in open_to_it if p.spare > 0]
        return min(fitting, key=lambda p: (p.loaded not in (None, base), p.trials, p.worker_id), default=None)

    def filled(self, place: Place, base: str, *, alone: bool = False) -> Room:
        """The room that is left when a trial of a base has taken a place."""
        changed = replace(
            place,
            trials=place.trials + 1,
            free=0 if alone else max(0, place.free - 1),
            spare=0 if alone else place.spare - (place.free == 0),
            base=base,
            loaded=base,
            kept=False,
        )
        return replace(self, places=tuple(changed if p == place else p for p in self.places))
