"""A client that does not mind faults: it asks again until it is answered, with the same Idempotency-Key."""

from __future__ import annotations

import time
import uuid
from collections.abc import Callable
from typing import Any

import httpx

PATIENCE_SECONDS = 180.0


class Client:
    """Requests that are repeated while nobody answers, or while the answer is 503.

    Args:
        url: The API's.
        check: Raises when it is no use to go on.
    """

    def __init__(self, url: str, check: Callable[[], None]) -> None:
        self.http = httpx.Client(base_url=url, timeout=30, trust_env=False)
        self._check = check

    def close(self) -> None:
        self.http.close()

    def get(self, path: str) -> Any:
        """The body of a 200."""
        answer = self.request("GET", path)
        assert answer.status_code == 200, f"GET {path}: {answer.status_code} {answer.text}"
        return answer.json()

    def post(self, path: str, body: Any = None) -> httpx.Response:
        """POST, as one request however often it has to be sent."""
        return self.request("POST", path, json=body, headers={"Idempotency-Key": uuid.uuid4().hex})

    def request(self, method: str, path: str, **options: Any) -> httpx.Response:
        deadline = time.monotonic() + PATIENCE_SECONDS
        while True:
            self._check()
            try:
                answer = self.http.request(method, path, **options)
            except httpx.TransportError as error:
                if time.monotonic() > deadline:
                    raise AssertionError(f"{method} {path}: nobody answers: {error!r}") from error
            else:
                if answer.status_code != 503:
                    return answer
                if time.monotonic() > deadline:
                    raise AssertionError(f"{method} {path}: still 503: {answer.text}")
            time.sleep(0.1)

    def status(self, path: str) -> int | None:
        """The status of one GET; None: nobody answers."""
        try:
            return self.http.get(path).status_code
        except httpx.TransportError:
            return None

    def wait_until_ready(self, seconds: float) -> None:
        deadline = time.monotonic() + seconds
        while self.status("/readyz?exclude=coordinator") != 200:
            self._check()
            assert time.monotonic() < deadline, "the API is not ready"
            time.sleep(0.1)

    # -- studies ---------------------------------------------------------------------------------

    def submit(self, definition: dict[str, Any]) -> dict[str, Any]:
        answer = self.post("/v1/studies", definition)
        assert answer.status_code == 201, f"{answer.status_code} {answer.text}"
        study: dict[str, Any] = answer.json()
        return study

    def study(self, name: str) -> dict[str, Any]:
        study: dict[str, Any] = self.get(f"/v1/studies/{name}")
        return study
