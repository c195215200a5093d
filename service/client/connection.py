"""How the client's requests reach a server, and how answers and refusals are read."""

from __future__ import annotations

import json
import time
import uuid
from collections.abc import Callable, Generator, Iterator, Mapping
from contextlib import contextmanager
from types import TracebackType
from typing import Any, BinaryIO, Self, TypeVar

import httpx
from pydantic import ValidationError
from tenacity import RetryCallState, Retrying, stop_after_attempt, wait_exponential

from service.answers import Answer, Problem
from service.client.errors import RefusedError, UnexpectedAnswerError, UnreachableError
from service.client.event_stream import Message, messages

DEFAULT_SERVER = "http://127.0.0.1:8787"
IDEMPOTENCY_KEY = "Idempotency-Key"
AWAY = frozenset({502, 503, 504})
"""What a proxy, or a server that is starting or stopping or has lost its database, answers."""

EVENT_STREAM = "text/event-stream"

_TRIES = 6
"""Of a change whose answer was lost. Their pauses are 15.5 s in all, which is longer than a server takes to
start again, and longer still where it asks for more."""
_PAUSES = wait_exponential(multiplier=0.5)
_LONGEST_PAUSE = 30.0
"""Seconds. A server that asks for more is tried again after this all the same."""
_LOOPBACK = frozenset({"localhost", "127.0.0.1", "::1"})
_CHECK_SECONDS = 120.0
"""The server looks at a definition's data and model before it accepts it, and has a time limit of its own."""
A = TypeVar("A", bound=Answer)


class Connection:
    """Sends requests to one server, and turns what comes back into answers or errors."""

    def __init__(
        self,
        server: str = DEFAULT_SERVER,
        *,
        api_key: str | None = None,
        timeout: float = 30.0,
        transport: httpx.BaseTransport | None = None,
        sleep: Callable[[float], None] = time.sleep,
    ) -> None:
        self.server = server.rstrip("/")
        try:
            url = httpx.URL(self.server)
        except httpx.InvalidURL as error:
            raise ValueError(f"{server!r} is not a server address ({error})") from error
        if url.scheme not in ("http", "https") or not url.host:
            raise ValueError(f"{server!r} is not a server address; one looks like {DEFAULT_SERVER}")
        self._sleep = sleep
        self._http = httpx.Client(
            base_url=self.server,
            headers={"Authorization": f"Bearer {api_key}"} if api_key else {},
            timeout=httpx.Timeout(timeout, connect=5.0),
            transport=transport,
            # A proxy set for the outside world cannot reach this machine's own ports.
            trust_env=url.host not in _LOOPBACK,
        )

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._http.close()

    def _one(
        self,
        kind: type[A],
        method: str,
        path: str,
        body: Mapping[str, Any] | None = None,
        *,
        idempotency_key: str | None = None,
        query: Mapping[str, str | list[str]] | None = None,
        timeout: float | None = None,
    ) -> A:
        """One answer. Every POST has a key, so that it may be sent again."""
        headers = {IDEMPOTENCY_KEY: idempotency_key or str(uuid.uuid4())} if method == "POST" else {}
        timeout = timeout if body is None else _CHECK_SECONDS
        return self._read(kind, self._json(method, path, body, query, headers=headers, timeout=timeout))

    def _items(self, kind: type[A], page: Mapping[str, Any]) -> list[A]:
        if not isinstance(page.get("items"), list):
            raise UnexpectedAnswerError(self.server, "the answer has no list of items")
        return [self._read(kind, item) for item in page["items"]]

    def _read(self, kind: type[A], document: Any) -> A:
        with same_version(self.server):
            return kind.read(document)

    def _json(
        self,
        method: str,
        path: str,
        body: Mapping[str, Any] | None = None,
        query: Mapping[str, str | list[str]] | None = None,
        timeout: float | None = None,
        headers: Mapping[str, str] | None = None,
    ) -> dict[str, Any]:
        response = self._send(method, path, body, query, timeout, headers)
        try:
            document = response.json()
        except ValueError as error:
            raise UnexpectedAnswerError(self.server, "the answer is not JSON") from error
        if not isinstance(document, dict):
            raise UnexpectedAnswerError(self.server, "the answer is not a JSON object")
        return document

    def _send(
        self,
        method: str,
        path: str,
        body: Mapping[str, Any] | None = None,
        query: Mapping[str, str | list[str]] | None = None,
        timeout: float | None = None,
        headers: Mapping[str, str] | None = None,
    ) -> httpx.Response:
        # httpx refuses to write NaN and infinity; the service reads them and names the key that holds one.
        content = None if body is None else json.dumps(body).encode()
        request = self._http.build_request(
            method,
            path,
            content=content,
            headers={**({} if body is None else {"Content-Type": "application/json"}), **(headers or {})},
            params=query,
            timeout=httpx.USE_CLIENT_DEFAULT if timeout is None else httpx.Timeout(timeout, connect=5.0),
        )
        reached = False

        def is_lost(state: RetryCallState) -> bool:
            nonlocal reached
            assert state.outcome is not None
            error = state.outcome.exception()
            # Nobody there is no lost answer, unless somebody was there a moment ago.
            reached = reached or not isinstance(error, httpx.ConnectError | httpx.ConnectTimeout)
            if error is None:
                return state.outcome.result().status_code in AWAY
            return reached and isinstance(error, httpx.RequestError)

        retrying = Retrying(
            sleep=self._sleep,
            stop=stop_after_attempt(_TRIES if IDEMPOTENCY_KEY in request.headers else 1),
            wait=_pause,
            retry=is_lost,
            retry_error_callback=_last,
        )
        try:
            response = retrying(self._http.send, request)
        except httpx.RequestError as error:
            raise UnreachableError(self.server, _cause(error)) from error
        self._check(response)
        return response

    def _download(self, path: str, query: Mapping[str, str], target: BinaryIO) -> None:
        try:
            with self._http.stream("GET", path, params=query) as response:
                if not response.is_success:
                    response.read()
                    self._check(response)
                for chunk in response.iter_bytes():
                    target.write(chunk)
        except httpx.RequestError as error:
            raise UnreachableError(self.server, _cause(error)) from error

    def _messages(
        self, path: str, query: Mapping[str, str | list[str]], *, last_id: int | None, silence: float
    ) -> Generator[list[Message], None, None]:
        """A stream of events, for as long as the server sends it: what each piece of it completes.

        Args:
            path: the stream's.
            query: its filters.
            last_id: the id of the last event that was received; None: none was.
            silence: seconds without a byte after which the server counts as gone.
        """
        headers = {"Accept": EVENT_STREAM} | ({} if last_id is None else {"Last-Event-ID": str(last_id)})
        timeout = httpx.Timeout(silence, connect=5.0)
        try:
            with self._http.stream("GET", path, params=query, headers=headers, timeout=timeout) as response:
                if not response.is_success:
                    response.read()
                    self._check(response)
                if not response.headers.get("Content-Type", "").startswith(EVENT_STREAM):
                    raise UnexpectedAnswerError(self.server, "the answer is no stream of events")
                yield from messages(response.iter_bytes())
        except httpx.RequestError as error:
            raise UnreachableError(self.server, _cause(error)) from error
        except ValueError as error:
            raise UnexpectedAnswerError(self.server, str(error)) from error

    def _check(self, response: httpx.Response) -> None:
        """Raises unless the answer is a success."""
        if response.is_success:
            return
        if response.is_redirect:
            where = response.headers.get("Location", "elsewhere")
            raise UnexpectedAnswerError(self.server, f"it redirects to {where}")
        try:
            document = response.json()
            # RFC 9457 lets a proxy leave out what the answer itself says.
            said = {"type": "about:blank", "status": response.status_code, "detail": "", "instance": ""}
            problem = Problem.read(said | document)
        except (ValueError, TypeError):
            # A proxy's page, for example. Its text is HTML more often than not: the status says more.
            reason = f"The answer gives no reason. Is {self.server} a Nightsweep server?"
            raise RefusedError(response.status_code, response.reason_phrase or "No", reason) from None
        raise RefusedError(response.status_code, problem.title, problem.detail, problem.faults)


@contextmanager
def same_version(server: str) -> Iterator[None]:
    """Says which key of an answer could not be read, since its server may be of another version."""
    try:
        yield
    except ValidationError as error:
        first = error.errors()[0]
        what = f"{error.title}.{'.'.join(str(part) for part in first['loc'])}: {first['msg']}"
        raise UnexpectedAnswerError(
            server, f"{what}; client and server may be of different versions"
        ) from error


def _pause(state: RetryCallState) -> float:
    """Seconds until the next try: longer and longer, and as long as the server asks for."""
    assert state.outcome is not None
    asked = "" if state.outcome.failed else state.outcome.result().headers.get("Retry-After", "")
    return max(_PAUSES(state), min(float(asked), _LONGEST_PAUSE) if asked.isdecimal() else 0.0)


def _last(state: RetryCallState) -> httpx.Response:
    """The last answer, or the error in its place."""
    assert state.outcome is not None
    response: httpx.Response = state.outcome.result()
    return response


def _cause(error: httpx.RequestError) -> str:
    return "timed out" if isinstance(error, httpx.TimeoutException) else str(error) or "connection closed"
