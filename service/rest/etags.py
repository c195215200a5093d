"""Optimistic concurrency: the ETag of what was read, and `If-Match` on what is to be changed (RFC 9110).

An ETag is the revision of a study or schedule, in quotes. A study's is raised by every change of its state
and every request for one, not by what its trials do; a schedule's by every change that a person makes.
A change that is sent with an ETag is answered with 412 if somebody else has changed it first.
"""

from __future__ import annotations

import re
from typing import Annotated, Any

from fastapi import Depends, Header

from service.rest.preconditions import ANYTHING, Precondition

_TAG = r'(W/)?"[!#-~]{0,100}"'
_IF_MATCH = rf"^(\*|{_TAG}( {{0,9}}, {{0,9}}{_TAG}){{0,9}})$"
"""Up to ten tags. Bounded in itself, so that the published schema needs no length beside it."""

ETAG_HEADER: dict[str, Any] = {
    "ETag": {"description": "The revision, for `If-Match`", "schema": {"type": "string"}}
}
"""For the `responses` of an endpoint."""


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
