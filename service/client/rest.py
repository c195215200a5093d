"""A typed client of the REST API: one method per thing the service does."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from service.client.access import AccessRequests
from service.client.paging import segment
from service.client.schedules import ScheduleRequests
from service.client.studies import StudyRequests
from service.devices.schemas import DeviceView, Fleet
from service.presets.schemas import SearchSpaceView
from service.range_tests.schemas import RangeTestView


class Client(StudyRequests, ScheduleRequests, AccessRequests):
    """Talks to one server. Use as a context manager.

    Args:
        server: The server's address, for example `http://127.0.0.1:8787`.
        api_key: Sent as a bearer token when given.
        timeout: Seconds to wait for an answer.
        transport: Stands in for the network in unit tests.
        sleep: Stands in for waiting in unit tests.

    Raises:
        ValueError: `server` is not an http or https address.

    Every method raises `RefusedError`, `UnreachableError` or `UnexpectedAnswerError`. Every POST carries an
    `Idempotency-Key`; where its answer is lost on the way it is sent again with the same key, so that what it
    asks for is done once.

    A study or schedule is named by its id or its name.
    """

    # Range tests

    def submit_range_test(self, definition: Mapping[str, Any]) -> RangeTestView:
        """Sweeps the learning rate for a study, which itself is not submitted."""
        return self._one(RangeTestView, "POST", "/v1/range-tests", definition)

    def range_test(self, range_test: str) -> RangeTestView:
        return self._one(RangeTestView, "GET", f"/v1/range-tests/{segment(range_test)}")

    def cancel_range_test(self, range_test: str) -> RangeTestView:
        return self._one(RangeTestView, "POST", f"/v1/range-tests/{segment(range_test)}/cancel")

    # Presets

    def presets(self) -> list[SearchSpaceView]:
        return self._items(SearchSpaceView, self._json("GET", "/v1/search-spaces"))

    def preset(self, name: str) -> SearchSpaceView:
        return self._one(SearchSpaceView, "GET", f"/v1/search-spaces/{segment(name)}")

    # Workers

    def workers(self) -> Fleet:
        """The workers that have trials, and the GPUs that were put aside."""
        return self._one(Fleet, "GET", "/v1/workers")

    def restore_device(self, device: str) -> DeviceView:
        """Gives a GPU that was put aside back to the workers."""
        return self._one(DeviceView, "POST", f"/v1/workers/devices/{segment(device)}/restore")
