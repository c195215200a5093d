"""Attempts count their tokens, and rungs have a time.

Revision ID: 0014
Revises: 0013
"""

from __future__ import annotations

import sqlalchemy as sa
from alembic import op

revision = "0014"
down_revision = "0013"
branch_labels = None
depends_on = None


def upgrade() -> None:
    with op.batch_alter_table("attempts") as table:
        table.add_column(sa.Column("tokens", sa.BigInteger(), nullable=False, server_default="0"))
        table.add_column(sa.Column("padded_tokens", sa.BigInteger(), nullable=False, server_default="0"))
    with op.batch_alter_table("rung_reports") as table:
        table.add_column(sa.Column("at", sa.DateTime(timezone=True), nullable=True))


def downgrade() -> None:
    with op.batch_alter_table("rung_reports") as table:
        table.drop_column("at")
    with op.batch_alter_table("attempts") as table:
        table.drop_column("padded_tokens")
        table.drop_column("tokens")
