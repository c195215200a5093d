"""Optimistic concurrency: the ETag of what was read, and `If-Match` on what is to be changed (RFC 9110).

An ETag is the revision of a study or schedule, in quotes. A study's is raised by every change of its state
and every request for one, not by what its trials do; a schedule's by every change that a person makes.
A change that is sent with an ETag is answered with 412 if somebody else has changed it first.
"""

from __future__ import annotations

import re
from dataclasses import dataclass
from typing import Annotated, Any

from fastapi import Depends, Header

from service.errors import PreconditionFailed

_TAG = r'(W/)?"[!#-~]{0,100}"'
_IF_MATCH = rf"^(\*|{_TAG}( {{0,9}}, {{0,9}}{_TAG}){{0,9}})$"
"""Up to ten tags. Bounded in itself, so that the published schema needs no length beside it."""

ETAG_HEADER: dict[str, Any] = {
    "ETag": {"description": "The revision, for `If-Match`", "schema": {"type": "string"}}
}
"""For the `responses` of an endpoint."""


def etag(revision: int) -> dict[str, str]:
    """The header that says which revision an answer shows."""
    return {"ETag": f'"{revision}"'}


@dataclass(frozen=True)
class Precondition:
    """What `If-Match` asks for.

    Attributes:
        tags: the entity tags of which one must be the present one, as sent; None: whatever it is.
    """

    tags: frozenset[str] | None = None

    def check(self, what: str, revision: int) -> None:
        """Raise `PreconditionFailed` unless the sender has seen the present revision.

        Tags are compared strongly, as `If-Match` wants it: a weak one (`W/"3"`) is never the present one.

        Args:
            what: for the message: "The study 'tone'".
            revision: the present one.

        Raises:
            PreconditionFailed: it is another one.
        """
        present = etag(revision)["ETag"]
        if self.tags is None or present in self.tags:
            return
        sent = ", ".join(sorted(self.tags))
        if f"W/{present}" in self.tags:
            raise PreconditionFailed(
                f"If-Match has the weak tag {sent}, which never matches. {what} is at {present}; send that"
                " tag."
            )
        raise PreconditionFailed(
            f"{what} is at {present}, but If-Match has {sent}, so it was changed in the meantime. Nothing"
            " was done; read it again and send its new ETag."
        )


ANYTHING = Precondition()


def _precondition(
    if_match: Annotated[
        str | None,
        Header(
            pattern=_IF_MATCH,
            examples=['"3"'],
            description="Make the change only if this is the present ETag, else answer 412. With `*` or"
            " without the header the change is always made",
        ),
    ] = None,
) -> Precondition:
    if if_match is None or if_match == "*":
        return ANYTHING
    return Precondition(frozenset(match[0] for match in re.finditer(_TAG, if_match)))


IfMatch = Annotated[Precondition, Depends(_precondition)]
