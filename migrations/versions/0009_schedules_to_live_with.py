"""Schedules that begin and end, wait for an earlier sweep or cancel it, and give sweeps a window.

Revision ID: 0009
Revises: 0008
"""

from __future__ import annotations

from typing import Any

import sqlalchemy as sa
from alembic import op

revision = "0009"
down_revision = "0008"
branch_labels = None
depends_on = None

_ADDED = ("starts", "ends", "catch_up", "until", "until_action", "sweep_name", "sweeps_made", "queued_for")


def upgrade() -> None:
    with op.batch_alter_table("schedules") as schedules:
        schedules.drop_constraint("ck_schedules_overlap", type_="check")
        schedules.create_check_constraint(
            "ck_schedules_overlap", "overlap IN ('skip', 'allow', 'queue', 'cancel_running')"
        )
        schedules.add_column(sa.Column("starts", sa.String(16), nullable=True))
        schedules.add_column(sa.Column("ends", sa.String(16), nullable=True))
        schedules.add_column(sa.Column("catch_up", sa.String(16), nullable=False, server_default="latest"))
        schedules.add_column(sa.Column("until", sa.String(5), nullable=True))
        schedules.add_column(sa.Column("until_action", sa.String(16), nullable=False, server_default="end"))
        schedules.add_column(sa.Column("sweep_name", sa.String(200), nullable=True))
        schedules.add_column(sa.Column("sweeps_made", sa.Integer(), nullable=False, server_default="0"))
        schedules.add_column(sa.Column("queued_for", sa.DateTime(timezone=True), nullable=True))
        schedules.create_check_constraint("ck_schedules_catch_up", "catch_up IN ('latest', 'none')")
        schedules.create_check_constraint(
            "ck_schedules_until_action", "until_action IN ('end', 'pause', 'continue')"
        )
    with op.batch_alter_table("schedule_events") as events:
        events.add_column(sa.Column("missed", sa.JSON(), nullable=True))
    with op.batch_alter_table("studies") as studies:
        studies.add_column(sa.Column("window_from", sa.DateTime(timezone=True), nullable=True))
    op.execute(
        "UPDATE schedules SET sweeps_made ="
        " (SELECT count(*) FROM studies WHERE studies.schedule_id = schedules.id)"
    )
    _rewrite_data_paths("{", "{{", "}", "}}")


def downgrade() -> None:
    _rewrite_data_paths("{{", "{", "}}", "}")
    with op.batch_alter_table("studies") as studies:
        studies.drop_column("window_from")
    with op.batch_alter_table("schedule_events") as events:
        events.drop_column("missed")
    op.execute("UPDATE schedules SET overlap = 'skip' WHERE overlap NOT IN ('skip', 'allow')")
    with op.batch_alter_table("schedules") as schedules:
        schedules.drop_constraint("ck_schedules_overlap", type_="check")
        schedules.drop_constraint("ck_schedules_catch_up", type_="check")
        schedules.drop_constraint("ck_schedules_until_action", type_="check")
        for name in _ADDED:
            schedules.drop_column(name)
        schedules.create_check_constraint("ck_schedules_overlap", "overlap IN ('skip', 'allow')")


def _rewrite_data_paths(*replacements: str) -> None:
    """A brace in a schedule's path of data was a brace; now it begins a field such as `{date}`."""
    schedules = sa.table("schedules", sa.column("id", sa.String), sa.column("definition", sa.JSON))
    bind = op.get_bind()
    for row in bind.execute(sa.select(schedules)).all():
        data = row.definition.get("data") if isinstance(row.definition, dict) else None
        if not isinstance(data, dict):
            continue
        paths = {key: data[key] for key in ("train", "eval") if key in data}
        rewritten = data | {key: _replaced(path, *replacements) for key, path in paths.items()}
        if rewritten != data:
            changed = {**row.definition, "data": rewritten}
            bind.execute(sa.update(schedules).where(schedules.c.id == row.id).values(definition=changed))


def _replaced(value: Any, *replacements: str) -> Any:
    if isinstance(value, str):
        for old, new in zip(replacements[::2], replacements[1::2], strict=True):
            value = value.replace(old, new)
    return value
