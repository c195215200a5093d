"""People control studies after their submission: labels, stops, recipes, extensions, the archive, removal.

Revision ID: 0011
Revises: 0010
"""

from __future__ import annotations

import sqlalchemy as sa
from alembic import op

revision = "0011"
down_revision = "0010"
branch_labels = None
depends_on = None

_TIME = sa.DateTime(timezone=True)


def upgrade() -> None:
    with op.batch_alter_table("studies") as studies:
        studies.add_column(sa.Column("note", sa.Text(), nullable=True))
        studies.add_column(sa.Column("extensions", sa.JSON(), nullable=True))
        studies.add_column(sa.Column("archived_at", _TIME, nullable=True))
        studies.add_column(sa.Column("deleted_at", _TIME, nullable=True))
        studies.add_column(sa.Column("deleted_by", sa.String(64), nullable=True))
        studies.add_column(sa.Column("removal_at", _TIME, nullable=True))
        studies.add_column(sa.Column("removing_at", _TIME, nullable=True))
        studies.create_index("ix_studies_removal_at", ["removal_at"])
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
    op.create_table(
        "removed_studies",
        sa.Column("id", sa.String(32), nullable=False),
        sa.Column("name", sa.String(200), nullable=False),
        sa.Column("kind", sa.String(16), nullable=False),
        sa.Column("owner", sa.String(64), nullable=False),
        sa.Column("state", sa.String(16), nullable=False),
        sa.Column("schedule_id", sa.String(32), nullable=True),
        sa.Column("fired_for", _TIME, nullable=True),
        sa.Column("trials", sa.Integer(), nullable=False),
        sa.Column("created_at", _TIME, nullable=False),
        sa.Column("ended_at", _TIME, nullable=True),
        sa.Column("deleted_at", _TIME, nullable=False),
        sa.Column("deleted_by", sa.String(64), nullable=False),
        sa.Column("removed_at", _TIME, nullable=False),
        sa.PrimaryKeyConstraint("id", name="pk_removed_studies"),
    )
    op.create_index("ix_removed_studies_name", "removed_studies", ["name"])


def _of_study(table: str) -> sa.ForeignKeyConstraint:
    return sa.ForeignKeyConstraint(
        ["study_id"], ["studies.id"], name=f"fk_{table}_study_id_studies", ondelete="CASCADE"
    )


def downgrade() -> None:
    for table in ("removed_studies", "enqueued_recipes", "trial_stops", "study_tags"):
        op.drop_table(table)
    with op.batch_alter_table("schedules") as schedules:
        schedules.drop_column("note")
        schedules.drop_column("tags")
    with op.batch_alter_table("studies") as studies:
        studies.drop_index("ix_studies_removal_at")
        for column in (
            "removing_at",
            "removal_at",
            "deleted_by",
            "deleted_at",
            "archived_at",
            "extensions",
            "note",
        ):
            studies.drop_column(column)
