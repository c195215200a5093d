"""Range tests as studies of their own kind, what was prepared for a study, and reports at rungs.

Revision ID: 0002
Revises: 0001
"""

from __future__ import annotations

import sqlalchemy as sa
from alembic import op

revision = "0002"
down_revision = "0001"
branch_labels = None
depends_on = None


def upgrade() -> None:
    with op.batch_alter_table("studies") as studies:
        studies.add_column(sa.Column("kind", sa.String(16), nullable=False, server_default="search"))
        studies.add_column(sa.Column("range_test_id", sa.String(32), nullable=True))
        studies.add_column(sa.Column("preparation", sa.JSON(), nullable=True))
        studies.create_foreign_key(
            "fk_studies_range_test_id", "studies", ["range_test_id"], ["id"], ondelete="SET NULL"
        )
    op.create_table(
        "rung_reports",
        sa.Column("id", sa.Integer(), autoincrement=True, nullable=False),
        sa.Column("study_id", sa.String(32), nullable=False),
        sa.Column("trial_number", sa.Integer(), nullable=False),
        sa.Column("rung", sa.Integer(), nullable=False),
        sa.Column("attempt_id", sa.Integer(), nullable=False),
        sa.Column("examples_seen", sa.Integer(), nullable=False),
        sa.Column("step", sa.Integer(), nullable=False),
        sa.Column("epoch", sa.Double(), nullable=False),
        sa.Column("metrics", sa.JSON(), nullable=False),
        sa.Column("train_loss", sa.Double(), nullable=True),
        sa.Column("train_seconds", sa.Double(), nullable=False),
        sa.Column("gradient_noise_scale", sa.Double(), nullable=True),
        sa.PrimaryKeyConstraint("id", name="pk_rung_reports"),
        sa.ForeignKeyConstraint(
            ["study_id"], ["studies.id"], name="fk_rung_reports_study_id", ondelete="CASCADE"
        ),
    )
    op.create_index("uq_rung_reports", "rung_reports", ["study_id", "trial_number", "rung"], unique=True)
    for table in ("studies", "schedules"):
        _keep_asha_as_it_was(table)


def downgrade() -> None:
    op.drop_table("rung_reports")
    with op.batch_alter_table("studies") as studies:
        studies.drop_constraint("fk_studies_range_test_id", type_="foreignkey")
        studies.drop_column("preparation")
        studies.drop_column("range_test_id")
        studies.drop_column("kind")


def _keep_asha_as_it_was(table: str) -> None:
    """Write down the `n_min_trials` by which stored studies have pruned: without one it would be today's."""
    rows = sa.table(table, sa.column("id", sa.String), sa.column("definition", sa.JSON))
    bind = op.get_bind()
    for row in bind.execute(sa.select(rows.c.id, rows.c.definition)).all():
        pruning = (row.definition or {}).get("pruning") or {}
        if pruning.get("algorithm") == "asha" and "n_min_trials" not in pruning:
            definition = {**row.definition, "pruning": {**pruning, "n_min_trials": 1}}
            bind.execute(sa.update(rows).where(rows.c.id == row.id).values(definition=definition))
