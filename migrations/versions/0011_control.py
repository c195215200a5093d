"""People control studies after their submission: tags, notes, stops of trials, enqueued recipes.

Revision ID: 0011
Revises: 0008
"""

from __future__ import annotations

import sqlalchemy as sa
from alembic import op

revision = "0011"
down_revision = "0008"
branch_labels = None
depends_on = None

_TIME = sa.DateTime(timezone=True)


def upgrade() -> None:
    with op.batch_alter_table("studies") as studies:
        studies.add_column(sa.Column("note", sa.Text(), nullable=True))
    with op.batch_alter_table("schedules") as schedules:
        schedules.add_column(sa.Column("tags", sa.JSON(), nullable=True))
        schedules.add_column(sa.Column("note", sa.Text(), nullable=True))
    op.create_table(
        "study_tags",
        sa.Column("study_id", sa.String(32), nullable=False),
        sa.Column("tag", sa.String(50), nullable=False),
        sa.PrimaryKeyConstraint("study_id", "tag", name="pk_study_tags"),
        _of_study("study_tags"),
    )
    op.create_index("ix_study_tags_tag", "study_tags", ["tag", "study_id"])
    op.create_table(
        "trial_stops",
        sa.Column("study_id", sa.String(32), nullable=False),
        sa.Column("trial_number", sa.Integer(), nullable=False),
        sa.Column("asked_by", sa.String(64), nullable=False),
        sa.Column("reason", sa.Text(), nullable=False),
        sa.Column("at", _TIME, nullable=False),
        sa.PrimaryKeyConstraint("study_id", "trial_number", name="pk_trial_stops"),
        _of_study("trial_stops"),
    )
    op.create_table(
        "enqueued_recipes",
        sa.Column("id", sa.Integer(), autoincrement=True, nullable=False),
        sa.Column("study_id", sa.String(32), nullable=False),
        sa.Column("params", sa.JSON(), nullable=False),
        sa.Column("asked_by", sa.String(64), nullable=False),
        sa.Column("at", _TIME, nullable=False),
        sa.Column("trial_number", sa.Integer(), nullable=True),
        sa.Column("dropped", sa.Text(), nullable=True),
        sa.PrimaryKeyConstraint("id", name="pk_enqueued_recipes"),
        _of_study("enqueued_recipes"),
    )
    op.create_index("ix_enqueued_recipes_study", "enqueued_recipes", ["study_id", "id"])


def _of_study(table: str) -> sa.ForeignKeyConstraint:
    return sa.ForeignKeyConstraint(
        ["study_id"], ["studies.id"], name=f"fk_{table}_study_id_studies", ondelete="CASCADE"
    )


def downgrade() -> None:
    for table in ("enqueued_recipes", "trial_stops", "study_tags"):
        op.drop_table(table)
    with op.batch_alter_table("schedules") as schedules:
        schedules.drop_column("note")
        schedules.drop_column("tags")
    with op.batch_alter_table("studies") as studies:
        studies.drop_column("note")
