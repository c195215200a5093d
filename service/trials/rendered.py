"""Trials as JSON, kept while they stay as they are: most of a list has ended and does not change any more."""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Collection
from threading import Lock
from weakref import WeakKeyDictionary

from sqlalchemy import Connection, Engine
from sqlalchemy.orm import Session

from service.db.models import Study
from service.states import LIVE_ATTEMPT_STATES
from service.trials.records import read
from service.trials.views import trial_view

MAX_BYTES = 32 * 2**20
"""Kept of one database; the answers that nobody has asked for in the longest time go first."""

Key = tuple[str, int, int]
"""Study, number, revision (`Trial.revision`)."""


class Rendered:
    """What was made of trials. Threads share it.

    Args:
        max_bytes: kept at most.
    """

    def __init__(self, max_bytes: int = MAX_BYTES) -> None:
        self._max_bytes = max_bytes
        self._bytes = 0
        self._kept: OrderedDict[Key, bytes] = OrderedDict()
        self._lock = Lock()

    def get(self, key: Key) -> bytes | None:
        with self._lock:
            found = self._kept.get(key)
            if found is not None:
                self._kept.move_to_end(key)
            return found

    def put(self, key: Key, document: bytes) -> None:
        with self._lock:
            self._bytes += len(document) - len(self._kept.pop(key, b""))
            self._kept[key] = document
            while self._bytes > self._max_bytes:
                self._bytes -= len(self._kept.popitem(last=False)[1])


_RENDERED: WeakKeyDictionary[Engine | Connection, Rendered] = WeakKeyDictionary()


def render(session: Session, study: Study, wanted: Collection[tuple[int, str, int]]) -> list[bytes]:
    """Trials as JSON documents, in the given order.

    Args:
        session: reads.
        study: whose trials.
        wanted: number, state and revision of each.
    """
    cache = _RENDERED.setdefault(session.get_bind(), Rendered())
    found = {number: cache.get((study.id, number, revision)) for number, _, revision in wanted}
    missing = {number for number, document in found.items() if document is None}
    if missing:
        keys = {number: (study.id, number, revision) for number, _, revision in wanted}
        live = {number for number, state, _ in wanted if state in LIVE_ATTEMPT_STATES}
        trials = read(session, study, missing)
        for record in trials.records:
            document = trial_view(study, trials.definition, record).model_dump_json().encode()
            found[record.number] = document
            if record.number not in live:  # its attempt says how far it is, without a word in its row
                cache.put(keys[record.number], document)
    return [each for number, _, _ in wanted if (each := found[number]) is not None]
