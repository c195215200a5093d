"""Pauses, causes of losses, devices put aside, API keys with owners, and answers kept for repeated requests.

Revision ID: 0003
Revises: 0002
"""

from __future__ import annotations

import sqlalchemy as sa
from alembic import op
from alembic.operations import BatchOperations

revision = "0003"
down_revision = "0002"
branch_labels = None
depends_on = None

_ATTEMPT_STATES = (
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
    with op.batch_alter_table("schedules") as schedules:
        schedules.add_column(sa.Column("owner", sa.String(64), nullable=False, server_default="default"))
        schedules.add_column(sa.Column("revision", sa.Integer(), nullable=False, server_default="1"))
    with op.batch_alter_table("studies") as studies:
        studies.add_column(sa.Column("owner", sa.String(64), nullable=False, server_default="default"))
        studies.add_column(sa.Column("revision", sa.Integer(), nullable=False, server_default="1"))
        studies.add_column(
            sa.Column("pause_requested", sa.Boolean(), nullable=False, server_default=sa.false())
        )
        studies.add_column(sa.Column("paused_at", sa.DateTime(timezone=True), nullable=True))
        studies.add_column(sa.Column("paused_seconds", sa.Double(), nullable=False, server_default="0"))
        studies.add_column(sa.Column("resumed_at", sa.DateTime(timezone=True), nullable=True))
        studies.add_column(sa.Column("swept_at", sa.DateTime(timezone=True), nullable=True))
        studies.create_index("ix_studies_owner", ["owner"])
    with op.batch_alter_table("attempts") as attempts:
        attempts.add_column(sa.Column("device_id", sa.String(200), nullable=True))
        attempts.add_column(
            sa.Column("resumed_at_examples", sa.Integer(), nullable=False, server_default="0")
        )
        attempts.add_column(sa.Column("last_rung", sa.Integer(), nullable=False, server_default="0"))
        attempts.add_column(sa.Column("loss_cause", sa.String(24), nullable=True))
        attempts.add_column(sa.Column("adapters_swept_at", sa.DateTime(timezone=True), nullable=True))
        attempts.create_index("ix_attempts_device_id", ["device_id"])
        _constrain_states(attempts, _ATTEMPT_STATES)
    # Studies that ended before keep all that they have, until somebody runs `nightsweep artifacts sweep`.
    op.execute("UPDATE studies SET swept_at = ended_at WHERE ended_at IS NOT NULL")
    op.create_table(
        "devices",
        sa.Column("id", sa.String(200), nullable=False),
        sa.Column("put_aside_at", sa.DateTime(timezone=True), nullable=True),
        sa.Column("restored_at", sa.DateTime(timezone=True), nullable=True),
        sa.Column("reason", sa.Text(), nullable=False),
        sa.PrimaryKeyConstraint("id", name="pk_devices"),
    )
    op.create_table(
        "api_keys",
        sa.Column("owner", sa.String(64), nullable=False),
        sa.Column("key_sha256", sa.String(64), nullable=False),
        sa.Column("created_at", sa.DateTime(timezone=True), nullable=False),
        sa.Column("revoked_at", sa.DateTime(timezone=True), nullable=True),
        sa.PrimaryKeyConstraint("owner", name="pk_api_keys"),
        sa.UniqueConstraint("key_sha256", name="uq_api_keys_key_sha256"),
    )
    op.create_table(
        "idempotency_keys",
        sa.Column("owner", sa.String(64), nullable=False),
        sa.Column("key", sa.String(255), nullable=False),
        sa.Column("request", sa.String(64), nullable=False),
        sa.Column("status", sa.Integer(), nullable=False),
        sa.Column("headers", sa.JSON(), nullable=False),
        sa.Column("body", sa.JSON(), nullable=False),
        sa.Column("created_at", sa.DateTime(timezone=True), nullable=False),
        sa.PrimaryKeyConstraint("owner", "key", name="pk_idempotency_keys"),
    )
    op.create_index("ix_idempotency_keys_created_at", "idempotency_keys", ["created_at"])


def downgrade() -> None:
    op.drop_table("idempotency_keys")
    op.drop_table("api_keys")
    op.drop_table("devices")
    # What this version put down with a checkpoint goes on from it under the version before as a lost one.
    op.execute("UPDATE attempts SET state = 'lost' WHERE state = 'paused'")
    with op.batch_alter_table("attempts") as attempts:
        _constrain_states(attempts, tuple(state for state in _ATTEMPT_STATES if state != "paused"))
        attempts.drop_index("ix_attempts_device_id")
        for column in ("adapters_swept_at", "loss_cause", "last_rung", "resumed_at_examples", "device_id"):
            attempts.drop_column(column)
    op.execute("UPDATE studies SET state = 'queued' WHERE state = 'paused'")
    with op.batch_alter_table("studies") as studies:
        studies.drop_index("ix_studies_owner")
        for column in (
            "swept_at",
            "resumed_at",
            "paused_seconds",
            "paused_at",
            "pause_requested",
            "revision",
            "owner",
        ):
            studies.drop_column(column)
    with op.batch_alter_table("schedules") as schedules:
        schedules.drop_column("revision")
        schedules.drop_column("owner")


def _constrain_states(attempts: BatchOperations, states: tuple[str, ...]) -> None:
    attempts.drop_constraint("ck_attempts_state", type_="check")
    attempts.create_check_constraint(
        "ck_attempts_state", f"state IN ({', '.join(repr(state) for state in states)})"
    )
