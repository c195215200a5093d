"""Waiting for something new of a study, by the server's stream of its events."""

from __future__ import annotations

import time
from collections.abc import Callable, Generator

from service.client import AWAY, Arrival, Client, ClientError, RefusedError

HEARTBEAT_SECONDS = 5.0
"""What trials have done so far is no event, so a study is looked at again after this time at the latest."""


class News:
    """Waits for the next event of a study. A server without streams of events is asked again and again.

    Args:
        client: the server's client.
        study: id or name.
        sleep: waits that many seconds.
        clock: seconds, ever growing.
    """

    def __init__(
        self,
        client: Client,
        study: str,
        *,
        sleep: Callable[[float], None] = time.sleep,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self._client, self._study, self._sleep, self._clock = client, study, sleep, clock
        self._stream: Generator[list[Arrival], None, None] | None = None
        self._last_id: int | None = None
        self._has_streams = True

    def wait(self, seconds: float) -> None:
        """Return when there may be something new: when the stream has begun, and with its next event or
        heartbeat, but after that time at the earliest."""
        began = self._clock()
        if self._has_streams:
            try:
                self._read()
            except ClientError as error:  # the next look at the study says it, if it is more than a hiccup
                self.close()
                lasting = isinstance(error, RefusedError) and error.status not in AWAY
                self._has_streams = not lasting
        self._sleep(max(0.0, seconds - (self._clock() - began)))

    def close(self) -> None:
        """End the stream, if there is one."""
        if self._stream is not None:
            self._stream.close()
            self._stream = None

    def _read(self) -> None:
        if self._stream is None:
            self._stream = self._client.arrivals(
                self._study, after=self._last_id, heartbeat=HEARTBEAT_SECONDS
            )
        arrived = next(self._stream, None)
        if arrived is None:  # the server stops
            self.close()
        for arrival in arrived or ():
            self._last_id = arrival.id
