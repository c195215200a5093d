"""Champions of schedules: their reigns, what each sweep decided, and what that rests on."""

from __future__ import annotations

from datetime import datetime
from typing import Any

from sqlalchemy import (
    JSON,
    CheckConstraint,
    Double,
    ForeignKey,
    Index,
    String,
    Text,
    text,
)
from sqlalchemy.orm import Mapped, mapped_column

from service.db.column_types import Sentence
from service.db.kinds import ContestDecision
from service.db.models.base import Base, one_of, utc_now


class Reign(Base):
    """An adapter while it is a schedule's champion. Append-only, but for its end.

    Of study and schedule there are names and ids, and no foreign keys: what reigned is known for ever.
    """

    __tablename__ = "reigns"
    __table_args__ = (
        # A schedule has at most one champion.
        Index(
            "uq_reigns_open",
            "schedule_id",
            unique=True,
            sqlite_where=text("until IS NULL"),
            postgresql_where=text("until IS NULL"),
        ),
        Index("ix_reigns_schedule", "schedule_id", "id"),
        Index("ix_reigns_study", "study_id", "trial_number"),
    )

    id: Mapped[int] = mapped_column(primary_key=True, autoincrement=True)
    schedule_id: Mapped[str] = mapped_column(String(32))
    study_id: Mapped[str] = mapped_column(String(32))
    study_name: Mapped[str] = mapped_column(String(200))
    trial_number: Mapped[int]
    adapter: Mapped[str] = mapped_column(Text)
    """The path or URL of its folder."""
    lineage: Mapped[dict[str, Any]]
    """What it was made of: `recipe`, `model`, `task`, `fingerprints`, `versions`."""
    since: Mapped[datetime] = mapped_column(default=utc_now)
    until: Mapped[datetime | None]
    """None: it reigns."""
    why: Mapped[str] = mapped_column(Sentence)
    ended_why: Mapped[str | None] = mapped_column(Sentence)
    contest_id: Mapped[int | None]
    """The contest that it won; None: a person promoted it."""
    promoted_by: Mapped[str | None] = mapped_column(String(64))
    """Whose API key put it there; None: a sweep did."""
    restores: Mapped[int | None]
    """Of a reign that a rollback began: the earlier reign whose adapter it is."""


class ContestRow(Base):
    """What one sweep decided about its schedule's champion."""

    __tablename__ = "contests"
    __table_args__ = (
        CheckConstraint(one_of("decision", ContestDecision), name="ck_contests_decision"),
        Index("ix_contests_schedule", "schedule_id", "id"),
        # A sweep decides once, whoever ends it.
        Index("uq_contests_study", "study_id", unique=True),
    )

    id: Mapped[int] = mapped_column(primary_key=True, autoincrement=True)
    schedule_id: Mapped[str] = mapped_column(String(32))
    study_id: Mapped[str] = mapped_column(String(32))
    study_name: Mapped[str] = mapped_column(String(200))
    at: Mapped[datetime] = mapped_column(default=utc_now)
    decision: Mapped[str] = mapped_column(String(16))
    """A `ContestDecision`."""
    why: Mapped[str] = mapped_column(Sentence)
    metric: Mapped[str] = mapped_column(String(200))
    champion_reign: Mapped[int | None]
    """Who was champion; None: nobody."""
    champion_value: Mapped[float | None] = mapped_column(Double)
    """The objective on this sweep's own eval data; None: it was not evaluated."""
    challenger_trial: Mapped[int | None]
    challenger_value: Mapped[float | None] = mapped_column(Double)
    data: Mapped[str | None] = mapped_column(String(64))
    """SHA-256 of the eval rows; None: nothing was evaluated."""
    data_changed: Mapped[bool | None]
    """Whether it differs from the latest contest's that has one; None: not known."""
    evidence: Mapped[dict[str, Any] | None] = mapped_column(JSON(none_as_null=True))
    """The comparison, where one was made."""


class EvaluationRow(Base):
    """What an evaluation saw of each eval row, or group of rows, until the study is deleted."""

    __tablename__ = "evaluations"

    study_id: Mapped[str] = mapped_column(ForeignKey("studies.id", ondelete="CASCADE"), primary_key=True)
    trial_number: Mapped[int] = mapped_column(primary_key=True, autoincrement=False)
    evaluated: Mapped[dict[str, Any]]
    """A `workers.evaluated.Evaluated` as JSON."""
