"""What workers have learnt of passes is kept.

Revision ID: 0008
Revises: 0007
"""

from __future__ import annotations

import sqlalchemy as sa
from alembic import op

revision = "0008"
down_revision = "0007"
branch_labels = None
depends_on = None


def upgrade() -> None:
    op.create_table(
        "pass_costs",
        sa.Column("key", sa.String(64), nullable=False),
        sa.Column("form", sa.String(16), nullable=False),
        sa.Column("device", sa.String(200), nullable=False),
        sa.Column("threads", sa.Integer(), nullable=False),
        sa.Column("fixed_s", sa.Double(), nullable=False),
        sa.Column("per_token_s", sa.Double(), nullable=False),
        sa.Column("per_trial_s", sa.Double(), nullable=False),
        sa.Column("bytes_per_token", sa.Double(), nullable=True),
        sa.Column("passes", sa.Integer(), nullable=False),
        sa.Column("learnt_at", sa.DateTime(timezone=True), nullable=False),
        sa.PrimaryKeyConstraint("key", "form", "device", "threads", name="pk_pass_costs"),
    )


def downgrade() -> None:
    op.drop_table("pass_costs")
