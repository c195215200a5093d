"""Whether a study's lease runs, as conditions for queries."""

from __future__ import annotations

from datetime import datetime, timedelta

from sqlalchemy import ColumnElement, and_

from service.db.models import Study

LONGEST_LEASE_SECONDS = 600.0
"""The longest that `Settings.lease_seconds` may be, whatever a coordinator was given."""


def lease_in_reach(now: datetime) -> ColumnElement[bool]:
    """Whether a study's lease may have been set by a right clock: it ends within `LONGEST_LEASE_SECONDS`.

    A clock that was ahead sets leases that nobody could take for as long as it was ahead. Whoever holds one
    and lives sets it right when it renews it.
    """
    return Study.lease_expires_at <= now + timedelta(seconds=LONGEST_LEASE_SECONDS)


def is_leased(now: datetime) -> ColumnElement[bool]:
    """Whether somebody holds a study at `now`, by the database's clock."""
    return and_(Study.lease_owner.is_not(None), Study.lease_expires_at >= now, lease_in_reach(now))
