"""Schedules have champions.

Revision ID: 0012
Revises: 0011
"""

from __future__ import annotations

import sqlalchemy as sa
from alembic import op

revision = "0012"
down_revision = "0011"
branch_labels = None
depends_on = None

_DECISIONS = "decision IN ('crowned', 'dethroned', 'defended', 'unchallenged', 'succeeded')"


def upgrade() -> None:
    with op.batch_alter_table("schedules") as schedules:
        schedules.add_column(sa.Column("champion", sa.Boolean(), nullable=False, server_default=sa.true()))
    with op.batch_alter_table("trials") as trials:
        trials.add_column(sa.Column("evaluates", sa.JSON(), nullable=True))
    op.create_table(
        "reigns",
        sa.Column("id", sa.Integer(), autoincrement=True, nullable=False),
        sa.Column("schedule_id", sa.String(32), nullable=False),
        sa.Column("study_id", sa.String(32), nullable=False),
        sa.Column("study_name", sa.String(200), nullable=False),
        sa.Column("trial_number", sa.Integer(), nullable=False),
        sa.Column("adapter", sa.Text(), nullable=False),
        sa.Column("lineage", sa.JSON(), nullable=False),
        sa.Column("since", sa.DateTime(timezone=True), nullable=False),
        sa.Column("until", sa.DateTime(timezone=True), nullable=True),
        sa.Column("why", sa.Text(), nullable=False),
        sa.Column("ended_why", sa.Text(), nullable=True),
        sa.Column("contest_id", sa.Integer(), nullable=True),
        sa.Column("promoted_by", sa.String(64), nullable=True),
        sa.Column("restores", sa.Integer(), nullable=True),
        sa.PrimaryKeyConstraint("id", name="pk_reigns"),
    )
    is_open = sa.text("until IS NULL")
    op.create_index(
        "uq_reigns_open",
        "reigns",
        ["schedule_id"],
        unique=True,
        sqlite_where=is_open,
        postgresql_where=is_open,
    )
    op.create_index("ix_reigns_schedule", "reigns", ["schedule_id", "id"])
    op.create_index("ix_reigns_study", "reigns", ["study_id", "trial_number"])
    op.create_table(
        "contests",
        sa.Column("id", sa.Integer(), autoincrement=True, nullable=False),
        sa.Column("schedule_id", sa.String(32), nullable=False),
        sa.Column("study_id", sa.String(32), nullable=False),
        sa.Column("study_name", sa.String(200), nullable=False),
        sa.Column("at", sa.DateTime(timezone=True), nullable=False),
        sa.Column("decision", sa.String(16), nullable=False),
        sa.Column("why", sa.Text(), nullable=False),
        sa.Column("metric", sa.String(200), nullable=False),
        sa.Column("champion_reign", sa.Integer(), nullable=True),
        sa.Column("champion_value", sa.Double(), nullable=True),
        sa.Column("challenger_trial", sa.Integer(), nullable=True),
        sa.Column("challenger_value", sa.Double(), nullable=True),
        sa.Column("data", sa.String(64), nullable=True),
        sa.Column("data_changed", sa.Boolean(), nullable=True),
        sa.Column("evidence", sa.JSON(), nullable=True),
        sa.CheckConstraint(_DECISIONS, name="ck_contests_decision"),
        sa.PrimaryKeyConstraint("id", name="pk_contests"),
    )
    op.create_index("ix_contests_schedule", "contests", ["schedule_id", "id"])
    op.create_index("uq_contests_study", "contests", ["study_id"], unique=True)
    op.create_table(
        "evaluations",
        sa.Column("study_id", sa.String(32), nullable=False),
        sa.Column("trial_number", sa.Integer(), nullable=False),
        sa.Column("evaluated", sa.JSON(), nullable=False),
        sa.ForeignKeyConstraint(
            ["study_id"], ["studies.id"], name="fk_evaluations_study_id", ondelete="CASCADE"
        ),
        sa.PrimaryKeyConstraint("study_id", "trial_number", name="pk_evaluations"),
    )


def downgrade() -> None:
    op.drop_table("evaluations")
    op.drop_table("contests")
    op.drop_table("reigns")
    with op.batch_alter_table("trials") as trials:
        trials.drop_column("evaluates")
    with op.batch_alter_table("schedules") as schedules:
        schedules.drop_column("champion")
