"""What can go wrong between the client and a Nightsweep server.

ClientError
├── RefusedError            the service refused the request: an RFC 9457 problem
├── UnreachableError        nobody answered at that address
└── UnexpectedAnswerError   somebody answered, but not as a Nightsweep server does
"""

from __future__ import annotations

from collections.abc import Sequence

from search_spaces.errors import Fault
from service.answers import ProblemFault


class ClientError(Exception):
    """Base of everything `Client` raises."""


class RefusedError(ClientError):
    """The service refused the request. `faults` name each wrong key of a definition."""

    def __init__(
        self, status: int, title: str, detail: str, faults: Sequence[Fault | ProblemFault] = ()
    ) -> None:
        super().__init__(f"{title} ({status}): {detail}")
        self.status = status
        self.title = title
        self.detail = detail
        self.faults = faults


class UnreachableError(ClientError):
    """No server answered, or it stopped answering in the middle."""

    def __init__(self, server: str, cause: str) -> None:
        super().__init__(f"no answer from a Nightsweep server at {server} ({cause})")
        self.server = server


class UnexpectedAnswerError(ClientError):
    """The answer is not one of Nightsweep's: another service has the port, or another version runs there."""

    def __init__(self, server: str, what: str) -> None:
        super().__init__(f"{server} does not answer as a Nightsweep server: {what}")
        self.server = server
