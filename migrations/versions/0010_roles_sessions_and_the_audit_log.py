"""Several keys for an owner, roles, sharing, sessions of browsers, and the audit log.

Revision ID: 0010
Revises: 0009
"""

from __future__ import annotations

import hashlib
from typing import Any

import sqlalchemy as sa
from alembic import op

revision = "0010"
down_revision = "0009"
branch_labels = None
depends_on = None

_KEYS_BEFORE = sa.table(
    "api_keys",
    sa.column("owner", sa.String()),
    sa.column("key_sha256", sa.String()),
    sa.column("created_at", sa.DateTime(timezone=True)),
    sa.column("revoked_at", sa.DateTime(timezone=True)),
)
_KEYS = sa.table(
    "api_keys",
    sa.column("id", sa.String()),
    sa.column("label", sa.String()),
    sa.column("role", sa.String()),
    sa.column("expires_at", sa.DateTime(timezone=True)),
    *(sa.column(column.name, column.type) for column in _KEYS_BEFORE.columns),
)


def _time(name: str, *, nullable: bool = False) -> sa.Column[Any]:
    return sa.Column(name, sa.DateTime(timezone=True), nullable=nullable)


def upgrade() -> None:
    for table in ("studies", "schedules"):
        with op.batch_alter_table(table) as changed:
            changed.add_column(sa.Column("shared", sa.JSON(), nullable=True))
    _replace_keys()
    op.create_table(
        "login_sessions",
        sa.Column("id", sa.String(12), nullable=False),
        sa.Column("token_sha256", sa.String(64), nullable=False),
        sa.Column("owner", sa.String(64), nullable=False),
        sa.Column("key_id", sa.String(12), nullable=True),
        sa.Column("server_key", sa.String(64), nullable=True),
        sa.Column("subject", sa.String(255), nullable=True),
        sa.Column("identity", sa.JSON(), nullable=True),
        _time("created_at"),
        _time("last_seen_at"),
        _time("expires_at"),
        sa.PrimaryKeyConstraint("id", name="pk_login_sessions"),
        sa.UniqueConstraint("token_sha256", name="uq_login_sessions_token_sha256"),
    )
    op.create_index("ix_login_sessions_key_id", "login_sessions", ["key_id"])
    op.create_index("ix_login_sessions_expires_at", "login_sessions", ["expires_at"])
    op.create_table(
        "login_failures",
        sa.Column("kind", sa.String(8), nullable=False),
        sa.Column("value", sa.String(64), nullable=False),
        sa.Column("failures", sa.Integer(), nullable=False),
        _time("failed_at"),
        _time("blocked_until", nullable=True),
        sa.PrimaryKeyConstraint("kind", "value", name="pk_login_failures"),
    )
    op.create_index("ix_login_failures_failed_at", "login_failures", ["failed_at"])
    op.create_table(
        "pending_logins",
        sa.Column("state_sha256", sa.String(64), nullable=False),
        sa.Column("browser_sha256", sa.String(64), nullable=False),
        sa.Column("nonce", sa.String(64), nullable=False),
        sa.Column("code_verifier", sa.String(128), nullable=False),
        sa.Column("next", sa.Text(), nullable=False),
        _time("created_at"),
        sa.PrimaryKeyConstraint("state_sha256", name="pk_pending_logins"),
    )
    op.create_index("ix_pending_logins_created_at", "pending_logins", ["created_at"])
    _create_audit_log()


def _replace_keys() -> None:
    """The primary key becomes the key's id. Every key that there was may do what it could before: all."""
    connection = op.get_bind()
    rows = connection.execute(sa.select(_KEYS_BEFORE).order_by(_KEYS_BEFORE.c.owner)).mappings().all()
    op.drop_table("api_keys")
    op.create_table(
        "api_keys",
        sa.Column("id", sa.String(12), nullable=False),
        sa.Column("owner", sa.String(64), nullable=False),
        sa.Column("label", sa.String(100), nullable=False),
        sa.Column("role", sa.String(16), nullable=False),
        sa.Column("key_sha256", sa.String(64), nullable=False),
        _time("created_at"),
        _time("expires_at", nullable=True),
        _time("last_used_at", nullable=True),
        sa.Column("replaced_by", sa.String(12), nullable=True),
        _time("revoked_at", nullable=True),
        sa.CheckConstraint("role IN ('viewer', 'submitter', 'admin')", name="ck_api_keys_role"),
        sa.PrimaryKeyConstraint("id", name="pk_api_keys"),
        sa.UniqueConstraint("key_sha256", name="uq_api_keys_key_sha256"),
    )
    op.create_index("ix_api_keys_owner", "api_keys", ["owner"])
    if rows:
        # An id that tells nothing of the key, and is the same wherever this is done.
        op.bulk_insert(
            _KEYS,
            [
                {
                    **row,
                    "id": hashlib.sha256(f"id of {row['key_sha256']}".encode()).hexdigest()[:12],
                    "label": "",
                    "role": "admin",
                }
                for row in rows
            ],
        )


def _create_audit_log() -> None:
    op.create_table(
        "audit_entries",
        sa.Column("id", sa.Integer(), autoincrement=True, nullable=False),
        _time("at"),
        sa.Column("owner", sa.String(64), nullable=True),
        sa.Column("role", sa.String(16), nullable=True),
        sa.Column("via", sa.String(16), nullable=False),
        sa.Column("key_id", sa.String(12), nullable=True),
        sa.Column("session_id", sa.String(12), nullable=True),
        sa.Column("subject", sa.String(255), nullable=True),
        sa.Column("method", sa.String(8), nullable=False),
        sa.Column("route", sa.String(200), nullable=False),
        sa.Column("object_kind", sa.String(20), nullable=True),
        sa.Column("object_id", sa.String(200), nullable=True),
        sa.Column("object_name", sa.String(200), nullable=True),
        sa.Column("summary", sa.Text(), nullable=False),
        sa.Column("outcome", sa.String(16), nullable=False),
        sa.Column("address", sa.String(64), nullable=True),
        sa.Column("user_agent", sa.String(200), nullable=True),
        sa.PrimaryKeyConstraint("id", name="pk_audit_entries"),
    )
    op.create_index("ix_audit_entries_at", "audit_entries", ["at"])
    for column in ("owner", "object_id", "object_name"):
        op.create_index(f"ix_audit_entries_{column}", "audit_entries", [column, "id"])


def downgrade() -> None:
    for table in ("audit_entries", "pending_logins", "login_failures", "login_sessions"):
        op.drop_table(table)
    _put_back_keys()
    for table in ("studies", "schedules"):
        with op.batch_alter_table(table) as changed:
            changed.drop_column("shared")


def _put_back_keys() -> None:
    """One key for an owner. A key that may do less than everything, or not for ever, is not made to: only an
    admin's newest that does not expire is kept, and all others are revoked."""
    connection = op.get_bind()
    rows = connection.execute(sa.select(_KEYS).order_by(_KEYS.c.created_at)).mappings().all()
    kept: dict[str, dict[str, Any]] = {}
    for row in rows:
        lasting = row["role"] == "admin" and row["expires_at"] is None and row["revoked_at"] is None
        before = kept.get(row["owner"])
        if before is None or lasting or before["revoked_at"] is not None:
            revoked_at = None if lasting else row["revoked_at"] or row["created_at"]
            kept[row["owner"]] = {
                "owner": row["owner"],
                "key_sha256": row["key_sha256"],
                "created_at": row["created_at"],
                "revoked_at": revoked_at,
            }
    op.drop_table("api_keys")
    op.create_table(
        "api_keys",
        sa.Column("owner", sa.String(64), nullable=False),
        sa.Column("key_sha256", sa.String(64), nullable=False),
        _time("created_at"),
        _time("revoked_at", nullable=True),
        sa.PrimaryKeyConstraint("owner", name="pk_api_keys"),
        sa.UniqueConstraint("key_sha256", name="uq_api_keys_key_sha256"),
    )
    if kept:
        op.bulk_insert(_KEYS_BEFORE, list(kept.values()))
