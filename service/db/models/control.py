"""What people ask of studies after their submission, and what is left of removed ones."""

from __future__ import annotations

from datetime import datetime
from typing import Any

from sqlalchemy import ForeignKey, Index, Integer, String
from sqlalchemy.orm import Mapped, mapped_column

from service.db.column_types import Sentence
from service.db.models.base import Base, utc_now


class StudyTag(Base):
    """One tag of a study."""

    __tablename__ = "study_tags"
    __table_args__ = (Index("ix_study_tags_tag", "tag", "study_id"),)

    study_id: Mapped[str] = mapped_column(ForeignKey("studies.id", ondelete="CASCADE"), primary_key=True)
    tag: Mapped[str] = mapped_column(String(50), primary_key=True)


class TrialStop(Base):
    """A person's wish that a trial ends, which its coordinator carries out. It stays as a record."""

    __tablename__ = "trial_stops"

    study_id: Mapped[str] = mapped_column(ForeignKey("studies.id", ondelete="CASCADE"), primary_key=True)
    trial_number: Mapped[int] = mapped_column(Integer, primary_key=True, autoincrement=False)
    asked_by: Mapped[str] = mapped_column(String(64))
    """The owner of the API key."""
    reason: Mapped[str] = mapped_column(Sentence)
    """Why the trial ends, in words, with who asked for it."""
    at: Mapped[datetime] = mapped_column(default=utc_now)


class RemovedStudy(Base):
    """What is left of a study that was removed, so that who looks for it learns what became of it."""

    __tablename__ = "removed_studies"

    id: Mapped[str] = mapped_column(String(32), primary_key=True)
    name: Mapped[str] = mapped_column(String(200), index=True)
    """Which another study may have by now."""
    kind: Mapped[str] = mapped_column(String(16))
    owner: Mapped[str] = mapped_column(String(64))
    state: Mapped[str] = mapped_column(String(16))
    """How it had ended."""
    schedule_id: Mapped[str | None] = mapped_column(String(32))
    fired_for: Mapped[datetime | None]
    trials: Mapped[int]
    """How many it had, repeats included."""
    created_at: Mapped[datetime]
    ended_at: Mapped[datetime | None]
    deleted_at: Mapped[datetime]
    deleted_by: Mapped[str] = mapped_column(String(64))
    removed_at: Mapped[datetime]


class EnqueuedRecipe(Base):
    """Parameters that the next trial of a study is to have, all of them or some."""

    __tablename__ = "enqueued_recipes"
    __table_args__ = (Index("ix_enqueued_recipes_study", "study_id", "id"),)

    id: Mapped[int] = mapped_column(primary_key=True, autoincrement=True)
    study_id: Mapped[str] = mapped_column(ForeignKey("studies.id", ondelete="CASCADE"))
    params: Mapped[dict[str, Any]]
    """Recipe field -> value, as people write it."""
    asked_by: Mapped[str] = mapped_column(String(64))
    at: Mapped[datetime] = mapped_column(default=utc_now)
    trial_number: Mapped[int | None]
    """The trial that has them; Optuna's trial names this row, so it can be written again."""
    dropped: Mapped[str | None] = mapped_column(Sentence)
    """Why there will be no such trial, in words."""
