"""Trials have rows, so that readers need neither Optuna's storage nor other trials.

The rows of trials that are there already are made from both databases by `nightsweep db upgrade`, after this
migration (`service.trials.rebuilding`).

Revision ID: 0007
Revises: 0006
"""

from __future__ import annotations

import sqlalchemy as sa
from alembic import op

revision = "0007"
down_revision = "0006"
branch_labels = None
depends_on = None

_STATES = (
    "waiting",
    "dispatched",
    "running",
    "completed",
    "pruned",
    "diverged",
    "out_of_memory",
    "failed",
    "lost",
    "paused",
    "cancelled",
)


def upgrade() -> None:
    with op.batch_alter_table("studies") as studies:
        studies.add_column(sa.Column("optuna_number", sa.Integer(), nullable=True))
        studies.add_column(sa.Column("importance", sa.JSON(), nullable=True))
    op.create_table(
        "trials",
        sa.Column("study_id", sa.String(32), nullable=False),
        sa.Column("number", sa.Integer(), autoincrement=False, nullable=False),
        sa.Column("state", sa.String(16), nullable=False),
        sa.Column("reason", sa.Text(), nullable=False),
        sa.Column("params", sa.JSON(), nullable=False),
        sa.Column("repeat_of", sa.Integer(), nullable=True),
        sa.Column("seed", sa.BigInteger(), nullable=True),
        sa.Column("value", sa.Double(), nullable=True),
        sa.Column("costs", sa.JSON(), nullable=False),
        sa.Column("feasible", sa.Boolean(), nullable=False, server_default=sa.true()),
        sa.Column("rungs", sa.JSON(), nullable=False),
        sa.Column("best_rung", sa.Integer(), nullable=True),
        sa.Column("started_at", sa.DateTime(timezone=True), nullable=True),
        sa.Column("ended_at", sa.DateTime(timezone=True), nullable=True),
        sa.Column("findings", sa.JSON(), nullable=True),
        sa.Column("revision", sa.BigInteger(), nullable=False),
        sa.CheckConstraint(f"state IN ({', '.join(map(repr, _STATES))})", name="ck_trials_state"),
        sa.ForeignKeyConstraint(["study_id"], ["studies.id"], name="fk_trials_study_id", ondelete="CASCADE"),
        sa.PrimaryKeyConstraint("study_id", "number", name="pk_trials"),
    )
    op.create_index("ix_trials_state", "trials", ["study_id", "state", "repeat_of"])
    op.create_index("ix_trials_best", "trials", ["study_id", "repeat_of", "feasible", "value", "number"])


def downgrade() -> None:
    op.drop_table("trials")
    with op.batch_alter_table("studies") as studies:
        studies.drop_column("importance")
        studies.drop_column("optuna_number")
