"""Where a page of studies ends: the creation time and the id of its last study, as text.

Every text of this form is a position in the list, whether or not a study is there. So a cursor outlives the
study that it was made from, and the form can be published. It contains none of the list's filters, which
are sent again for the next page.
"""

from __future__ import annotations

from datetime import UTC, datetime, timedelta

from service.db.models import Study

_EPOCH = datetime(1970, 1, 1, tzinfo=UTC)


def make_cursor(study: Study) -> str:
    """The position after this study."""
    return f"{(study.created_at - _EPOCH) // timedelta(microseconds=1)}-{study.id}"


def read_cursor(cursor: str) -> tuple[datetime, str]:
    """The creation time and id of a cursor of the form that `parameters.Cursor` has."""
    microseconds, study_id = cursor.split("-")
    return _EPOCH + timedelta(microseconds=int(microseconds)), study_id
