"""Where trials may go: what the workers of a study would take now, as a frozen value.

A worker holds one base at a time, so trials of different bases never share one. `decide` counts on a
room and the crew sends by it: both see the same places.
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


@dataclass(frozen=True, kw_only=True)
class Room:
    """All places of a study, one for each worker that is ready."""

    places: tuple[Place, ...] = ()

    @property
    def free(self) -> int:
        """Trials that would find a place if their bases were the right ones."""
        return sum(place.free for place in self.places)

    def pick(self, base: str) -> Place | None:
        """The place for one more trial of a base; None: there is none.

        A worker that has the base before an idle one that would have to load it, then the least busy. Shares
        spread trials evenly over workers of one base. Where several bases divide the workers, a share may be
        full while others cannot help: then the trial goes to a fuller pack of its own base, if there is one.
        """
        open_to_it = [p for p in self.places if p.base in (None, base)]
        fitting = [p for p in open_to_it if p.free > 0]
        if not fitting and len(open_to_it) < len(self.places):
            fitting = [p for p in open_to_it if p.spare > 0]
        return min(fitting, key=lambda p: (p.loaded not in (None, base), p.trials, p.worker_id), default=None)

    def filled(self, place: Place, base: str) -> Room:
        """The room that is left when a trial of a base has taken a place."""
        changed = replace(
            place,
            trials=place.trials + 1,
            free=max(0, place.free - 1),
            spare=place.spare - (place.free == 0),
            base=base,
            loaded=base,
        )
        return replace(self, places=tuple(changed if p == place else p for p in self.places))
