"""Studies, attempts, schedules and events.

Revision ID: 0001
Revises:
"""

from __future__ import annotations

import sqlalchemy as sa
from alembic import op

revision = "0001"
down_revision = None
branch_labels = None
depends_on = None

_STUDY_STATES = "'queued', 'running', 'paused', 'completed', 'failed', 'cancelled'"
_ATTEMPT_STATES = (
    "'dispatched', 'running', 'completed', 'pruned', 'diverged', 'out_of_memory', 'failed', 'lost', "
    "'cancelled'"
)
_LIVE = sa.text("state IN ('dispatched', 'running')")


def upgrade() -> None:
    op.create_table(
        "schedules",
        sa.Column("id", sa.String(32), nullable=False),
        sa.Column("name", sa.String(200), nullable=False),
        sa.Column("cron", sa.String(200), nullable=False),
        sa.Column("timezone", sa.String(64), nullable=False),
        sa.Column("definition", sa.JSON(), nullable=False),
        sa.Column("enabled", sa.Boolean(), nullable=False),
        sa.Column("created_at", sa.DateTime(timezone=True), nullable=False),
        sa.Column("next_fire_at", sa.DateTime(timezone=True), nullable=True),
        sa.Column("last_fired_for", sa.DateTime(timezone=True), nullable=True),
        sa.PrimaryKeyConstraint("id", name="pk_schedules"),
        sa.UniqueConstraint("name", name="uq_schedules_name"),
    )
    op.create_index("ix_schedules_next_fire_at", "schedules", ["next_fire_at"])

    op.create_table(
        "studies",
        sa.Column("id", sa.String(32), nullable=False),
        sa.Column("name", sa.String(200), nullable=False),
        sa.Column("definition", sa.JSON(), nullable=False),
        sa.Column("state", sa.String(16), nullable=False),
        sa.Column("reason", sa.Text(), nullable=False),
        sa.Column("cancel_requested", sa.Boolean(), nullable=False),
        sa.Column("created_at", sa.DateTime(timezone=True), nullable=False),
        sa.Column("started_at", sa.DateTime(timezone=True), nullable=True),
        sa.Column("ended_at", sa.DateTime(timezone=True), nullable=True),
        sa.Column("schedule_id", sa.String(32), nullable=True),
        sa.Column("fired_for", sa.DateTime(timezone=True), nullable=True),
        sa.Column("lease_owner", sa.String(64), nullable=True),
        sa.Column("lease_expires_at", sa.DateTime(timezone=True), nullable=True),
        sa.Column("lease_number", sa.Integer(), nullable=False),
        sa.PrimaryKeyConstraint("id", name="pk_studies"),
        sa.UniqueConstraint("name", name="uq_studies_name"),
        sa.ForeignKeyConstraint(
            ["schedule_id"], ["schedules.id"], name="fk_studies_schedule_id", ondelete="SET NULL"
        ),
        sa.CheckConstraint(f"state IN ({_STUDY_STATES})", name="ck_studies_state"),
    )
    op.create_index("ix_studies_state", "studies", ["state"])
    op.create_index("ix_studies_created_at", "studies", ["created_at"])
    op.create_index("uq_studies_firing", "studies", ["schedule_id", "fired_for"], unique=True)

    op.create_table(
        "attempts",
        sa.Column("id", sa.Integer(), autoincrement=True, nullable=False),
        sa.Column("study_id", sa.String(32), nullable=False),
        sa.Column("trial_number", sa.Integer(), nullable=False),
        sa.Column("ordinal", sa.Integer(), nullable=False),
        sa.Column("state", sa.String(16), nullable=False),
        sa.Column("reason", sa.Text(), nullable=False),
        sa.Column("worker_id", sa.String(100), nullable=False),
        sa.Column("device", sa.String(100), nullable=True),
        sa.Column("gpus", sa.Double(), nullable=False),
        sa.Column("artifact_dir", sa.Text(), nullable=False),
        sa.Column("verdict_reason", sa.Text(), nullable=True),
        sa.Column("dispatched_at", sa.DateTime(timezone=True), nullable=False),
        sa.Column("started_at", sa.DateTime(timezone=True), nullable=True),
        sa.Column("ended_at", sa.DateTime(timezone=True), nullable=True),
        sa.Column("total_examples", sa.Integer(), nullable=True),
        sa.Column("examples_seen", sa.Integer(), nullable=False),
        sa.Column("step", sa.Integer(), nullable=False),
        sa.Column("train_loss", sa.Double(), nullable=True),
        sa.Column("last_event_seq", sa.Integer(), nullable=False),
        sa.Column("outcome", sa.JSON(), nullable=True),
        sa.PrimaryKeyConstraint("id", name="pk_attempts"),
        sa.ForeignKeyConstraint(
            ["study_id"], ["studies.id"], name="fk_attempts_study_id", ondelete="CASCADE"
        ),
        sa.CheckConstraint(f"state IN ({_ATTEMPT_STATES})", name="ck_attempts_state"),
    )
    op.create_index("uq_attempts_ordinal", "attempts", ["study_id", "trial_number", "ordinal"], unique=True)
    op.create_index(
        "uq_attempts_live",
        "attempts",
        ["study_id", "trial_number"],
        unique=True,
        sqlite_where=_LIVE,
        postgresql_where=_LIVE,
    )
    op.create_index("ix_attempts_study_state", "attempts", ["study_id", "state"])

    op.create_table(
        "events",
        sa.Column("id", sa.Integer(), autoincrement=True, nullable=False),
        sa.Column("at", sa.DateTime(timezone=True), nullable=False),
        sa.Column("study_id", sa.String(32), nullable=True),
        sa.Column("trial_number", sa.Integer(), nullable=True),
        sa.Column("kind", sa.String(40), nullable=False),
        sa.Column("message", sa.Text(), nullable=False),
        sa.PrimaryKeyConstraint("id", name="pk_events"),
        sa.ForeignKeyConstraint(["study_id"], ["studies.id"], name="fk_events_study_id", ondelete="CASCADE"),
    )
    op.create_index("ix_events_study", "events", ["study_id", "id"])


def downgrade() -> None:
    op.drop_table("events")
    op.drop_table("attempts")
    op.drop_table("studies")
    op.drop_table("schedules")
