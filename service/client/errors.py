"""What can go wrong between the client and a Nightsweep server.

ClientError
├── RefusedError            the service answered and said no: an RFC 9457 problem
├── UnreachableError        nobody answered at that address
└── UnexpectedAnswerError   somebody answered, but not as a Nightsweep server does
"""

from __future__ import annotations

from service.client.answers import Problem


class ClientError(Exception):
    """Base of everything `Client` raises."""


class RefusedError(ClientError):
    """The service said no. `problem` says why, with one fault per wrong key of a definition."""

    def __init__(self, status: int, problem: Problem) -> None:
        super().__init__(f"{problem.title} ({status}): {problem.detail}")
        self.status = status
        self.problem = problem


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
