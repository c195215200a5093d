"""Answers to GET that need not be sent again: `ETag` and `If-None-Match` (RFC 9110).

The tag is the answer's own digest, so it is the same exactly while the answer is. It is weak: unlike that of
a study or schedule (`etags`), it says nothing that `If-Match` could rest on.
"""

from __future__ import annotations

import hashlib
import re
from typing import Annotated, Any

from fastapi import Depends, Header, Response

from service.answers import Answer

_TAG = r'(W/)?"[!#-~]{0,100}"'
_IF_NONE_MATCH = rf"^(\*|{_TAG}( {{0,9}}, {{0,9}}{_TAG}){{0,9}})$"

NOT_MODIFIED: dict[int | str, dict[str, Any]] = {
    200: {
        "headers": {
            "ETag": {"description": "Of this answer, for `If-None-Match`", "schema": {"type": "string"}}
        }
    },
    304: {"description": "The answer is the one with the given ETag"},
}
"""For the `responses` of an endpoint."""


def _known(
    if_none_match: Annotated[
        str | None,
        Header(
            pattern=_IF_NONE_MATCH,
            examples=['W/"0123456789abcdef0123456789abcdef"'],
            description="Answer 304 without a body if the answer still has this ETag",
        ),
    ] = None,
) -> frozenset[str]:
    return frozenset(match[0].removeprefix("W/") for match in re.finditer(_TAG, if_none_match or ""))


IfNoneMatch = Annotated[frozenset[str], Depends(_known)]
"""The tags that the client knows."""


def answer(content: Answer | bytes, known: frozenset[str]) -> Response:
    """JSON with its ETag; 304 where the client has it."""
    body = content if isinstance(content, bytes) else content.model_dump_json().encode()
    tag = f'"{hashlib.blake2b(body, digest_size=16).hexdigest()}"'
    headers = {"ETag": f"W/{tag}"}
    if tag in known:
        return Response(status_code=304, headers=headers)
    return Response(body, media_type="application/json", headers=headers)
