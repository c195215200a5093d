"""GPUs, coordinators and what is known of passes."""

from __future__ import annotations

from datetime import datetime

from sqlalchemy import (
    Double,
    String,
)
from sqlalchemy.orm import Mapped, mapped_column

from service.db.column_types import Sentence
from service.db.models.base import Base


class Device(Base):
    """A GPU that was put aside, or was once. One that never gave trouble has no row."""

    __tablename__ = "devices"

    id: Mapped[str] = mapped_column(String(200), primary_key=True)
    """As in `Attempt.device_id`."""
    put_aside_at: Mapped[datetime | None]
    """None: it was given back to the workers."""
    restored_at: Mapped[datetime | None]
    """Trouble before this does not count any more."""
    reason: Mapped[str] = mapped_column(Sentence, default="")


class PassCostsRow(Base):
    """What a worker has learnt of passes in one setting, as `workers.contract.PassCosts` has it."""

    __tablename__ = "pass_costs"

    key: Mapped[str] = mapped_column(String(64), primary_key=True)
    form: Mapped[str] = mapped_column(String(16), primary_key=True)
    device: Mapped[str] = mapped_column(String(200), primary_key=True)
    threads: Mapped[int] = mapped_column(primary_key=True)
    fixed_s: Mapped[float] = mapped_column(Double)
    per_token_s: Mapped[float] = mapped_column(Double)
    per_trial_s: Mapped[float] = mapped_column(Double)
    bytes_per_token: Mapped[float | None] = mapped_column(Double)
    passes: Mapped[int]
    learnt_at: Mapped[datetime]


class Coordinator(Base):
    """A coordinator process that lives, or did. Of the moment only, and in no backup."""

    __tablename__ = "coordinators"

    owner: Mapped[str] = mapped_column(String(100), primary_key=True)
    """As in `Study.lease_owner`."""
    seen_at: Mapped[datetime]
    """When it last wrote that it lives, by the database's clock."""
    trouble: Mapped[str | None] = mapped_column(Sentence)
    """What keeps it from working, such as a full disk; None: nothing."""
