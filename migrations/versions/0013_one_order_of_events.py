"""All events have one order, in which they are committed.

`events` and `schedule_events` get a `position`, which a trigger gives to each row as the last thing before
its transaction is committed: whoever has read up to one position has missed none below it. Rows that are
there keep their ids as positions, those of schedules come behind those of studies.

Revision ID: 0013
Revises: 0012
"""

from __future__ import annotations

import sqlalchemy as sa
from alembic import op

revision = "0013"
down_revision = "0012"
branch_labels = None
depends_on = None

_TABLES = ("events", "schedule_events")

_IN_SQLITE = """
CREATE TRIGGER place_{table} AFTER INSERT ON {table} WHEN NEW.position IS NULL
BEGIN
    INSERT INTO event_counter (id, last) VALUES (1, {now})
        ON CONFLICT (id) DO UPDATE SET last = max(last + 1, excluded.last);
    UPDATE {table} SET position = (SELECT last FROM event_counter) WHERE id = NEW.id;
END
"""
"""There is one writer at a time."""
_NOW_IN_SQLITE = "CAST((julianday('now') - 2440587.5) * 86400000 AS INTEGER)"

# Deferred to the commit, so that the counter's row is the last lock that a transaction takes and is held
# until it is committed, without waiting for the client.
_IN_POSTGRESQL = """
CREATE FUNCTION place_event() RETURNS trigger LANGUAGE plpgsql AS $$
DECLARE place bigint;
BEGIN
    EXECUTE format(
        'INSERT INTO %I.event_counter AS counter (id, last) VALUES (1, $1) ON CONFLICT (id)'
        ' DO UPDATE SET last = greatest(counter.last + 1, excluded.last) RETURNING last', TG_TABLE_SCHEMA
    ) INTO place USING (extract(epoch FROM clock_timestamp()) * 1000)::bigint;
    EXECUTE format('UPDATE %I.%I SET position = $1 WHERE id = $2', TG_TABLE_SCHEMA, TG_TABLE_NAME)
        USING place, NEW.id;
    RETURN NULL;
END $$
"""
_TRIGGER_IN_POSTGRESQL = """
CREATE CONSTRAINT TRIGGER place_{table} AFTER INSERT ON {table} DEFERRABLE INITIALLY DEFERRED
    FOR EACH ROW WHEN (NEW.position IS NULL) EXECUTE FUNCTION place_event()
"""


def upgrade() -> None:
    op.create_table(
        "event_counter",
        sa.Column("id", sa.Integer(), autoincrement=False, nullable=False),
        sa.Column("last", sa.BigInteger(), nullable=False),
        sa.PrimaryKeyConstraint("id", name="pk_event_counter"),
    )
    for table in _TABLES:
        op.add_column(table, sa.Column("position", sa.BigInteger(), nullable=True))
    op.add_column("schedule_events", sa.Column("owner", sa.String(64), nullable=True))
    _place_what_is_there()
    for table in _TABLES:
        op.create_index(f"ix_{table}_position", table, ["position"], unique=True)
    op.create_index("ix_events_study_position", "events", ["study_id", "position"])
    if op.get_bind().dialect.name == "sqlite":
        for table in _TABLES:
            op.execute(sa.text(_IN_SQLITE.format(table=table, now=_NOW_IN_SQLITE)))
        return
    op.execute(_IN_POSTGRESQL)
    for table in _TABLES:
        op.execute(_TRIGGER_IN_POSTGRESQL.format(table=table))


def _place_what_is_there() -> None:
    """An id that somebody has read is good as a position, too."""
    op.execute("UPDATE events SET position = id")
    op.execute(
        "UPDATE schedule_events SET position = id + (SELECT coalesce(max(id), 0) FROM events), "
        "owner = (SELECT owner FROM schedules WHERE schedules.id = schedule_id)"
    )
    op.execute(
        "INSERT INTO event_counter (id, last) SELECT 1, max(position) FROM "
        "(SELECT position FROM events UNION ALL SELECT position FROM schedule_events) places "
        "HAVING count(*) > 0"
    )


def downgrade() -> None:
    for table in _TABLES:
        on_table = "" if op.get_bind().dialect.name == "sqlite" else f" ON {table}"
        op.execute(f"DROP TRIGGER place_{table}{on_table}")
    if op.get_bind().dialect.name == "postgresql":
        op.execute("DROP FUNCTION place_event()")
    op.drop_index("ix_events_study_position", table_name="events")
    for table in _TABLES:
        op.drop_index(f"ix_{table}_position", table_name=table)
        op.drop_column(table, "position")
    op.drop_column("schedule_events", "owner")
    op.drop_table("event_counter")
