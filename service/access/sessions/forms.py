"""Forms of our own pages: read, and known to be of our own pages."""

from __future__ import annotations

import hmac
from typing import Annotated
from urllib.parse import parse_qs

from fastapi import Depends, Request

from service.errors import Forbidden, TooLarge, UnsupportedMediaType

FIELD = "csrf_token"
_TYPE = "application/x-www-form-urlencoded"
_LONGEST = 8192
_FIELDS = 16


class ForgedForm(Forbidden):
    title = "Form not from this page"


async def read_form(request: Request) -> dict[str, str]:
    """The fields of a form, the last of each name: a dependency of endpoints that take one.

    Raises:
        UnsupportedMediaType: the body is no form.
        TooLarge: it is longer than any form of ours.
    """
    sent = request.headers.get("content-type", "").partition(";")[0].strip().lower()
    if sent != _TYPE:
        raise UnsupportedMediaType(f"The body's Content-Type is {sent[:100]!r}; expected {_TYPE}.")
    body = await request.body()
    if len(body) > _LONGEST:
        raise TooLarge(f"The form is longer than {_LONGEST} bytes.")
    try:
        fields = parse_qs(body.decode("ascii", "replace"), keep_blank_values=True, max_num_fields=_FIELDS)
    except ValueError:
        raise TooLarge(f"The form has more than {_FIELDS} fields.") from None
    return {name: values[-1] for name, values in fields.items()}


Form = Annotated[dict[str, str], Depends(read_form)]


def require_token(form: dict[str, str], expected: str | None) -> None:
    """Refuse a form that another site had the browser send.

    Raises:
        ForgedForm: its token is not the one that our page had.
    """
    given = form.get(FIELD, "")
    if expected is None or not hmac.compare_digest(given.encode("utf-8", "replace"), expected.encode()):
        raise ForgedForm("The form has expired or is not from a page of this server. Load the page again.")
