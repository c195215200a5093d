"""Schedules that change and overlap, what became of them, and sweeps that know their schedule for ever.

Revision ID: 0004
Revises: 0003
"""

from __future__ import annotations

import re

import sqlalchemy as sa
from alembic import op

revision = "0004"
down_revision = "0003"
branch_labels = None
depends_on = None

_FIRED = re.compile(r"fired by the schedule '([A-Za-z0-9][A-Za-z0-9._-]*)'")
_ADDED_TO_PREPARATIONS = ("fingerprints", "evaluated", "evaluated_basis")


def upgrade() -> None:
    with op.batch_alter_table("schedules") as schedules:
        schedules.add_column(sa.Column("overlap", sa.String(16), nullable=False, server_default="skip"))
        schedules.add_column(
            sa.Column("repeat_configurations", sa.Boolean(), nullable=False, server_default=sa.false())
        )
        schedules.create_check_constraint("ck_schedules_overlap", "overlap IN ('skip', 'allow')")
    with op.batch_alter_table("studies") as studies:
        studies.add_column(sa.Column("schedule_name", sa.String(200), nullable=True))
        studies.add_column(sa.Column("base_seed", sa.BigInteger(), nullable=True))
        # The id of a schedule that was removed still says which sweeps belong together.
        studies.drop_constraint("fk_studies_schedule_id", type_="foreignkey")
        studies.create_index("ix_studies_schedule_name", ["schedule_name"])
    op.create_table(
        "schedule_events",
        sa.Column("id", sa.Integer(), autoincrement=True, nullable=False),
        sa.Column("at", sa.DateTime(timezone=True), nullable=False),
        sa.Column("schedule_id", sa.String(32), nullable=False),
        sa.Column("schedule_name", sa.String(200), nullable=False),
        sa.Column("kind", sa.String(40), nullable=False),
        sa.Column("asked_by", sa.String(64), nullable=True),
        sa.Column("message", sa.Text(), nullable=False),
        sa.Column("changes", sa.JSON(), nullable=True),
        sa.Column("fired_for", sa.DateTime(timezone=True), nullable=True),
        sa.PrimaryKeyConstraint("id", name="pk_schedule_events"),
    )
    op.create_index("ix_schedule_events_schedule", "schedule_events", ["schedule_id", "id"])
    op.create_index("ix_schedule_events_schedule_name", "schedule_events", ["schedule_name"])
    _name_the_schedules_of_sweeps()


def downgrade() -> None:
    op.drop_table("schedule_events")
    _forget_earlier_sweeps()
    op.execute("UPDATE studies SET schedule_id = NULL WHERE schedule_id NOT IN (SELECT id FROM schedules)")
    with op.batch_alter_table("studies") as studies:
        studies.drop_index("ix_studies_schedule_name")
        studies.create_foreign_key(
            "fk_studies_schedule_id", "schedules", ["schedule_id"], ["id"], ondelete="SET NULL"
        )
        studies.drop_column("base_seed")
        studies.drop_column("schedule_name")
    with op.batch_alter_table("schedules") as schedules:
        schedules.drop_constraint("ck_schedules_overlap", type_="check")
        schedules.drop_column("repeat_configurations")
        schedules.drop_column("overlap")


def _name_the_schedules_of_sweeps() -> None:
    """By their schedules; of those that were removed, by the sweeps' first events."""
    op.execute(
        "UPDATE studies SET schedule_name = (SELECT name FROM schedules WHERE schedules.id = schedule_id) "
        "WHERE schedule_id IS NOT NULL"
    )
    studies = sa.table("studies", *map(sa.column, ("id", "schedule_name", "fired_for")))
    events = sa.table("events", *map(sa.column, ("id", "study_id", "kind", "message")))
    bind = op.get_bind()
    nameless = (
        sa.select(studies.c.id, events.c.message)
        .join_from(studies, events, events.c.study_id == studies.c.id)
        .where(
            studies.c.fired_for.is_not(None),
            studies.c.schedule_name.is_(None),
            events.c.kind == "study_queued",
        )
    )
    for row in bind.execute(nameless).all():
        if found := _FIRED.match(row.message):
            named = sa.update(studies).where(studies.c.id == row.id).values(schedule_name=found[1])
            bind.execute(named)


def _forget_earlier_sweeps() -> None:
    """Take what the version before does not know out of the preparations, or it could not read them."""
    studies = sa.table("studies", sa.column("id", sa.String), sa.column("preparation", sa.JSON))
    bind = op.get_bind()
    prepared = sa.select(studies).where(studies.c.preparation.is_not(None))
    for row in bind.execute(prepared).all():
        kept = {
            key: value for key, value in (row.preparation or {}).items() if key not in _ADDED_TO_PREPARATIONS
        }
        if row.preparation and kept != row.preparation:
            bind.execute(sa.update(studies).where(studies.c.id == row.id).values(preparation=kept))
