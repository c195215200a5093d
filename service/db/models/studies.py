"""Studies and what happened in them."""

from __future__ import annotations

from datetime import datetime
from typing import Any

from sqlalchemy import (
    JSON,
    BigInteger,
    CheckConstraint,
    Double,
    ForeignKey,
    Index,
    String,
    Text,
    false,
)
from sqlalchemy.orm import Mapped, mapped_column

from service.db.column_types import Sentence
from service.db.kinds import StudyKind
from service.db.models.base import NOBODY, Base, new_id, one_of, utc_now
from service.states import StudyState


class Study(Base):
    """One search, or one learning-rate range test. `definition` never changes after acceptance."""

    __tablename__ = "studies"
    __table_args__ = (
        CheckConstraint(one_of("state", StudyState), name="ck_studies_state"),
        # Exactly one study per firing, whoever fires it.
        Index("uq_studies_firing", "schedule_id", "fired_for", unique=True),
    )

    id: Mapped[str] = mapped_column(String(32), primary_key=True, default=new_id)
    name: Mapped[str] = mapped_column(String(200), unique=True)
    """Also the name of its Optuna study."""
    kind: Mapped[str] = mapped_column(String(16), default=StudyKind.SEARCH, server_default=StudyKind.SEARCH)
    definition: Mapped[dict[str, Any]]
    state: Mapped[str] = mapped_column(String(16), default=StudyState.QUEUED, index=True)
    reason: Mapped[str] = mapped_column(Sentence, default="")
    """Why it is in this state, in words."""
    owner: Mapped[str] = mapped_column(String(64), default=NOBODY, server_default=NOBODY, index=True)
    """The API key that submitted it."""
    shared: Mapped[list[str] | None] = mapped_column(JSON(none_as_null=True))
    """Owners who may change it beside its own; `*`: all of them. None: nobody else but admins."""
    revision: Mapped[int] = mapped_column(default=1, server_default="1")
    """Raised by every change of its state and by every request for one: the study's ETag."""
    note: Mapped[str | None] = mapped_column(Text)
    """What people have written down about it. Its tags are rows of their own (`StudyTag`)."""
    cancel_requested: Mapped[bool] = mapped_column(default=False)
    pause_requested: Mapped[bool] = mapped_column(default=False, server_default=false())
    paused_at: Mapped[datetime | None]
    """When its present pause began; none while it is not paused."""
    paused_seconds: Mapped[float] = mapped_column(Double, default=0.0, server_default="0")
    """All pauses before the present one together. `budget.timeout` does not count them."""
    resumed_at: Mapped[datetime | None]
    """When its last pause ended; `budget.until` looks for the next such time of day from here."""
    created_at: Mapped[datetime] = mapped_column(default=utc_now, index=True)
    started_at: Mapped[datetime | None]
    ended_at: Mapped[datetime | None]
    archived_at: Mapped[datetime | None]
    """Since when lists leave it out; nothing else follows from it."""
    deleted_at: Mapped[datetime | None]
    """When somebody asked for its removal, of an ended study only."""
    deleted_by: Mapped[str | None] = mapped_column(String(64))
    """The API key of who did."""
    removal_at: Mapped[datetime | None] = mapped_column(index=True)
    """Until when that can be taken back, by the database's clock."""
    removing_at: Mapped[datetime | None]
    """When a coordinator began to remove it: its artifacts and its trials in Optuna may be gone."""
    swept_at: Mapped[datetime | None]
    """When a coordinator removed the artifacts that are no longer needed, after its end."""
    schedule_id: Mapped[str | None] = mapped_column(String(32))
    """No foreign key: a sweep keeps it when its schedule is removed."""
    schedule_name: Mapped[str | None] = mapped_column(String(200), index=True)
    """The schedule's name when it fired."""
    fired_for: Mapped[datetime | None]
    """The instant this sweep belongs to: of its schedule's cron expression, or of the request to run now."""
    base_seed: Mapped[int | None] = mapped_column(BigInteger)
    """The schedule's `search.seed`, from which and `fired_for` that of this sweep's definition follows."""
    window_from: Mapped[datetime | None]
    """From when `budget.until` looks for its time of day, whether the study has started or not: the firing of
    a schedule that has an `until`. None: from the study's start."""
    range_test_id: Mapped[str | None] = mapped_column(ForeignKey("studies.id", ondelete="SET NULL"))
    """The range test that is this study's first stage, once it has been made."""
    preparation: Mapped[dict[str, Any] | None] = mapped_column(JSON(none_as_null=True))
    """A `search_spaces.preparation.Preparation`, written once. A study that needs one waits for it."""
    extensions: Mapped[list[Any] | None] = mapped_column(JSON(none_as_null=True))
    """What it was given beyond `definition`, oldest first (`service.definitions.stored`)."""
    optuna_number: Mapped[int | None]
    """Optuna's own number of it, as in the dashboard's addresses; none before a coordinator has taken it."""
    importance: Mapped[dict[str, Any] | None] = mapped_column(JSON(none_as_null=True))
    """An `Importance` of its hyperparameters, written at its end."""

    # The lease: who may write, until when by the database's clock, under which fencing number.
    lease_owner: Mapped[str | None] = mapped_column(String(64))
    lease_expires_at: Mapped[datetime | None]
    lease_number: Mapped[int] = mapped_column(default=0)


class EventRow(Base):
    """One thing that happened. Append-only."""

    __tablename__ = "events"
    __table_args__ = (
        Index("ix_events_study", "study_id", "id"),
        Index("ix_events_study_position", "study_id", "position"),
    )

    id: Mapped[int] = mapped_column(primary_key=True, autoincrement=True)
    at: Mapped[datetime] = mapped_column(default=utc_now)
    study_id: Mapped[str | None] = mapped_column(ForeignKey("studies.id", ondelete="CASCADE"))
    trial_number: Mapped[int | None]
    kind: Mapped[str] = mapped_column(String(40))
    message: Mapped[str] = mapped_column(Sentence)
    data: Mapped[dict[str, Any] | None] = mapped_column(JSON(none_as_null=True))
    """What the message was made from, where the service reads that again; words are never read."""
    position: Mapped[int | None] = mapped_column(BigInteger, index=True, unique=True)
    """Its place in the one order of all events, which the REST API calls its id. A trigger gives it when the
    transaction is committed, so no position becomes visible after a higher one; see `EventCounter`."""


class EventCounter(Base):
    """The position of the newest event of all. One row, from the first event on.

    A position is one more than the last, and at least the time in milliseconds: so none is given twice, not
    even after the newest events were deleted, or a backup was restored that knows none of them.
    """

    __tablename__ = "event_counter"

    id: Mapped[int] = mapped_column(primary_key=True, autoincrement=False)
    last: Mapped[int] = mapped_column(BigInteger)
