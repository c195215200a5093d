"""What workers have learnt of their passes, kept for the workers that come after them."""

from __future__ import annotations

from dataclasses import asdict, fields
from hashlib import sha256

from sqlalchemy import select
from sqlalchemy.orm import Session

from service.db.database import database_now
from service.db.models import PassCostsRow
from service.db.rows import insert_unless
from workers.contract import PassCosts, TrialOrder

_MOST = 16
"""Settings whose costs go along with an order: a cluster has few kinds of device."""


def cost_key(order: TrialOrder) -> str:
    """What an order's passes have in common with others that cost the same: `PassCosts.key`.

    The base, its task, whether activations are recomputed, whether decoded weights are kept, and
    `data.max_length` up to a power of two.
    """
    length = 1 << (order.data.max_length - 1).bit_length()
    settings = (order.task, order.gradient_checkpointing, order.keep_decoded, length)
    return sha256(f"{order.model.model_dump_json()} {settings}".encode()).hexdigest()


def keep(session: Session, costs: PassCosts) -> None:
    """Write down what a worker has learnt, over what was known in the same setting.

    Args:
        session: a writing transaction. Another study's coordinator may write the same row at once.
    """
    values = {**asdict(costs), "learnt_at": database_now(session)}
    setting = [column.name for column in PassCostsRow.__table__.primary_key]
    learnt = {name: value for name, value in values.items() if name not in setting}
    statement = insert_unless(session.get_bind(), PassCostsRow).values(values)
    session.execute(statement.on_conflict_do_update(index_elements=setting, set_=learnt))


def known(session: Session, key: str) -> tuple[PassCosts, ...]:
    """What was learnt under a key, on any device; the newest first."""
    rows = session.scalars(
        select(PassCostsRow)
        .where(PassCostsRow.key == key)
        .order_by(PassCostsRow.learnt_at.desc())
        .limit(_MOST)
    )
    names = [field.name for field in fields(PassCosts)]
    return tuple(PassCosts(**{name: getattr(row, name) for name in names}) for row in rows)
