"""The service's own tables: lifecycle, attempts, trials, leases, events, schedules.

Parameters and reported values are true in Optuna's storage, from which samplers learn; `Trial` has a copy of
them for readers. A study's id and a trial's number link the two. Times are UTC with a zone. The partial
unique indexes make bad states impossible rather than unlikely.
"""

from __future__ import annotations

import time
import uuid
from collections.abc import Iterable
from datetime import UTC, datetime
from enum import StrEnum
from typing import Any

from sqlalchemy import (
    JSON,
    BigInteger,
    CheckConstraint,
    Double,
    ForeignKey,
    Index,
    MetaData,
    String,
    Text,
    false,
    text,
    true,
)
from sqlalchemy.orm import DeclarativeBase, Mapped, mapped_column

from service.db.column_types import Sentence, UtcDateTime
from service.db.kinds import Overlap, StudyKind
from service.states import TRIAL_STATES, AttemptState, StudyState


def utc_now() -> datetime:
    return datetime.now(UTC)


def new_id() -> str:
    return uuid.uuid4().hex


def _next_revision(revision: int | None) -> int:
    """Higher than any that a row of this key has had, even if that row was removed: the time, in ms."""
    return max((revision or 0) + 1, time.time_ns() // 1_000_000)


def _one_of(column: str, values: Iterable[StrEnum | str]) -> str:
    return f"{column} IN ({', '.join(repr(str(value)) for value in values)})"


class Base(DeclarativeBase):
    metadata = MetaData(
        # Named, so that a later migration can drop them on either database.
        naming_convention={
            "pk": "pk_%(table_name)s",
            "fk": "fk_%(table_name)s_%(column_0_name)s",
            "uq": "uq_%(table_name)s_%(column_0_name)s",
            "ix": "ix_%(table_name)s_%(column_0_name)s",
        }
    )
    type_annotation_map = {  # noqa: RUF012  (SQLAlchemy's own class attribute)
        datetime: UtcDateTime(),
        dict[str, Any]: JSON(),
    }


NOBODY = "default"
"""The owner of what was made without a key of its own: with the server's one key, or without any."""


class Schedule(Base):
    """A cron expression, a timezone and a definition. Each firing makes one study, a sweep."""

    __tablename__ = "schedules"
    __table_args__ = (CheckConstraint(_one_of("overlap", Overlap), name="ck_schedules_overlap"),)

    id: Mapped[str] = mapped_column(String(32), primary_key=True, default=new_id)
    name: Mapped[str] = mapped_column(String(200), unique=True)
    cron: Mapped[str] = mapped_column(String(200))
    timezone: Mapped[str] = mapped_column(String(64))
    definition: Mapped[dict[str, Any]]
    enabled: Mapped[bool] = mapped_column(default=True)
    owner: Mapped[str] = mapped_column(String(64), default=NOBODY, server_default=NOBODY)
    """The API key that made it; its sweeps are this owner's, too."""
    revision: Mapped[int] = mapped_column(default=1, server_default="1")
    """Raised by every change a person makes: the schedule's ETag."""
    created_at: Mapped[datetime] = mapped_column(default=utc_now)
    next_fire_at: Mapped[datetime | None] = mapped_column(index=True)
    last_fired_for: Mapped[datetime | None]
    overlap: Mapped[str] = mapped_column(String(16), default=Overlap.SKIP, server_default=Overlap.SKIP)
    repeat_configurations: Mapped[bool] = mapped_column(default=False, server_default=false())
    """Whether sweeps evaluate again what earlier ones have evaluated on the same data."""


class ScheduleEvent(Base):
    """One thing that happened to a schedule. Append-only, and kept when the schedule is removed."""

    __tablename__ = "schedule_events"
    __table_args__ = (Index("ix_schedule_events_schedule", "schedule_id", "id"),)

    id: Mapped[int] = mapped_column(primary_key=True, autoincrement=True)
    at: Mapped[datetime] = mapped_column(default=utc_now)
    schedule_id: Mapped[str] = mapped_column(String(32))
    """No foreign key: the schedule may have been removed."""
    schedule_name: Mapped[str] = mapped_column(String(200), index=True)
    """At that time."""
    kind: Mapped[str] = mapped_column(String(40))
    """A `ScheduleEventKind`."""
    asked_by: Mapped[str | None] = mapped_column(String(64))
    """The API key of who asked for it; none: a coordinator, at its time."""
    message: Mapped[str] = mapped_column(Sentence)
    changes: Mapped[dict[str, Any] | None] = mapped_column(JSON(none_as_null=True))
    """What was changed: key -> {"from": ..., "to": ...}."""
    fired_for: Mapped[datetime | None]
    """The cron instant of a firing that was skipped or failed."""


class Study(Base):
    """One search, or one learning-rate range test. `definition` never changes after acceptance."""

    __tablename__ = "studies"
    __table_args__ = (
        CheckConstraint(_one_of("state", StudyState), name="ck_studies_state"),
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
    revision: Mapped[int] = mapped_column(default=1, server_default="1")
    """Raised by every change of its state and by every request for one: the study's ETag."""
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
    range_test_id: Mapped[str | None] = mapped_column(ForeignKey("studies.id", ondelete="SET NULL"))
    """The range test that is this study's first stage, once it has been made."""
    preparation: Mapped[dict[str, Any] | None] = mapped_column(JSON(none_as_null=True))
    """A `search_spaces.preparation.Preparation`, written once. A study that needs one waits for it."""
    optuna_number: Mapped[int | None]
    """Optuna's own number of it, as in the dashboard's addresses; none before a coordinator has taken it."""
    importance: Mapped[dict[str, Any] | None] = mapped_column(JSON(none_as_null=True))
    """An `Importance` of its hyperparameters, written at its end."""

    # The lease: who may write, until when by the database's clock, under which fencing number.
    lease_owner: Mapped[str | None] = mapped_column(String(64))
    lease_expires_at: Mapped[datetime | None]
    lease_number: Mapped[int] = mapped_column(default=0)


class Attempt(Base):
    """One execution of a trial on one worker."""

    __tablename__ = "attempts"
    __table_args__ = (
        CheckConstraint(_one_of("state", AttemptState), name="ck_attempts_state"),
        Index("uq_attempts_ordinal", "study_id", "trial_number", "ordinal", unique=True),
        # A trial has at most one live attempt.
        Index(
            "uq_attempts_live",
            "study_id",
            "trial_number",
            unique=True,
            sqlite_where=text("state IN ('dispatched', 'running')"),
            postgresql_where=text("state IN ('dispatched', 'running')"),
        ),
        Index("ix_attempts_study_state", "study_id", "state"),
    )

    id: Mapped[int] = mapped_column(primary_key=True, autoincrement=True)
    study_id: Mapped[str] = mapped_column(ForeignKey("studies.id", ondelete="CASCADE"))
    trial_number: Mapped[int]
    ordinal: Mapped[int]
    """1 for the first attempt of a trial, and so on."""
    state: Mapped[str] = mapped_column(String(16), default=AttemptState.DISPATCHED)
    reason: Mapped[str] = mapped_column(Sentence, default="")
    worker_id: Mapped[str] = mapped_column(String(100))
    device: Mapped[str | None] = mapped_column(String(100))
    gpus: Mapped[float] = mapped_column(Double, default=0.0)
    """GPUs the attempt's worker holds, for GPU-hour budgets."""
    artifact_dir: Mapped[str] = mapped_column(Text)
    verdict_reason: Mapped[str | None] = mapped_column(Sentence)
    """Set once when the pruner decided against it; final even if the training ended first."""
    device_id: Mapped[str | None] = mapped_column(String(200), index=True)
    """The GPU it ran on, the same one for as long as the machine has it; none on a CPU."""
    resumed_at_examples: Mapped[int] = mapped_column(default=0, server_default="0")
    """Training examples that the checkpoint it went on from had seen; 0: from the beginning."""
    last_rung: Mapped[int] = mapped_column(default=0, server_default="0")
    """The last rung it reported; 0: none."""
    loss_cause: Mapped[str | None] = mapped_column(String(24))
    """A `LossCause`, of lost attempts only."""
    dispatched_at: Mapped[datetime] = mapped_column(default=utc_now)
    started_at: Mapped[datetime | None]
    ended_at: Mapped[datetime | None]
    total_examples: Mapped[int | None]
    examples_seen: Mapped[int] = mapped_column(default=0)
    step: Mapped[int] = mapped_column(default=0)
    train_loss: Mapped[float | None] = mapped_column(Double)
    last_event_seq: Mapped[int] = mapped_column(default=0)
    """The worker's event number up to which this attempt's events have been applied."""
    adapters_swept_at: Mapped[datetime | None]
    """When it was decided that its adapters are not kept; the files go after that."""
    outcome: Mapped[dict[str, Any] | None] = mapped_column(JSON(none_as_null=True))
    """Metrics, seconds, peak memory and adapter folders, as the worker reported them."""


class Trial(Base):
    """A trial as readers see it, without a look at Optuna or at other trials.

    Written in the transactions that move the trial (`service.db.trials`), and made again from attempts,
    events and Optuna's storage where it differs (`service.trials.rebuilding`).
    """

    __tablename__ = "trials"
    __table_args__ = (
        CheckConstraint(_one_of("state", TRIAL_STATES), name="ck_trials_state"),
        Index("ix_trials_state", "study_id", "state", "repeat_of"),
        Index("ix_trials_best", "study_id", "repeat_of", "feasible", "value", "number"),
    )

    study_id: Mapped[str] = mapped_column(ForeignKey("studies.id", ondelete="CASCADE"), primary_key=True)
    number: Mapped[int] = mapped_column(primary_key=True, autoincrement=False)
    state: Mapped[str] = mapped_column(String(16))
    """Its last attempt's; or how it ended without one; or `waiting`."""
    reason: Mapped[str] = mapped_column(Sentence)
    params: Mapped[dict[str, Any]]
    """As Optuna holds them."""
    repeat_of: Mapped[int | None]
    seed: Mapped[int | None] = mapped_column(BigInteger)
    """Of a repeat: the recipe's."""
    value: Mapped[float | None] = mapped_column(Double)
    """The objective, of a completed trial."""
    costs: Mapped[list[float]] = mapped_column(JSON, default=list)
    """In the order of `objective.costs`, of a completed trial."""
    feasible: Mapped[bool] = mapped_column(default=True, server_default=true())
    rungs: Mapped[list[Any]] = mapped_column(JSON, default=list)
    """[rung, objective] as Optuna was told, ascending; null in place of what is not finite."""
    best_rung: Mapped[int | None]
    started_at: Mapped[datetime | None]
    """The first start of an attempt."""
    ended_at: Mapped[datetime | None]
    """The end of the last attempt."""
    findings: Mapped[list[Any] | None] = mapped_column(JSON(none_as_null=True))
    """What the diagnosis says: verdict, evidence, rung. None: it has not been made."""
    revision: Mapped[int] = mapped_column(BigInteger)
    """Raised by every change of the row: what was made from an ended trial stays right while it stands."""

    __mapper_args__ = {  # noqa: RUF012  (SQLAlchemy's own class attribute)
        "version_id_col": revision,
        "version_id_generator": _next_revision,
    }


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


class ApiKey(Base):
    """Who may come in beside the holder of `NIGHTSWEEP_API_KEY`, and as whom. The key itself is not kept."""

    __tablename__ = "api_keys"

    owner: Mapped[str] = mapped_column(String(64), primary_key=True)
    key_sha256: Mapped[str] = mapped_column(String(64), unique=True)
    """In hexadecimal. A key is 256 random bits, so a plain hash cannot be guessed back."""
    created_at: Mapped[datetime] = mapped_column(default=utc_now)
    revoked_at: Mapped[datetime | None]


class IdempotencyKey(Base):
    """An answer that is given again to whoever sends the same request with the same `Idempotency-Key`.

    Written in the transaction that did what was asked, so either both are there or neither.
    """

    __tablename__ = "idempotency_keys"

    owner: Mapped[str] = mapped_column(String(64), primary_key=True)
    key: Mapped[str] = mapped_column(String(255), primary_key=True)
    request: Mapped[str] = mapped_column(String(64))
    """SHA-256 of method, path, query and body: the same key for another request is refused."""
    status: Mapped[int]
    headers: Mapped[dict[str, Any]]
    body: Mapped[dict[str, Any]]
    created_at: Mapped[datetime] = mapped_column(default=utc_now, index=True)


class RungReport(Base):
    """What a trial reported at a rung beside its objective, which is Optuna's. One row per rung and trial."""

    __tablename__ = "rung_reports"
    __table_args__ = (Index("uq_rung_reports", "study_id", "trial_number", "rung", unique=True),)

    id: Mapped[int] = mapped_column(primary_key=True, autoincrement=True)
    study_id: Mapped[str] = mapped_column(ForeignKey("studies.id", ondelete="CASCADE"))
    trial_number: Mapped[int]
    rung: Mapped[int]
    attempt_id: Mapped[int]
    examples_seen: Mapped[int]
    step: Mapped[int]
    epoch: Mapped[float] = mapped_column(Double)
    metrics: Mapped[dict[str, Any]]
    train_loss: Mapped[float | None] = mapped_column(Double)
    train_seconds: Mapped[float] = mapped_column(Double)
    gradient_noise_scale: Mapped[float | None] = mapped_column(Double)


class EventRow(Base):
    """One thing that happened. Append-only."""

    __tablename__ = "events"
    __table_args__ = (Index("ix_events_study", "study_id", "id"),)

    id: Mapped[int] = mapped_column(primary_key=True, autoincrement=True)
    at: Mapped[datetime] = mapped_column(default=utc_now)
    study_id: Mapped[str | None] = mapped_column(ForeignKey("studies.id", ondelete="CASCADE"))
    trial_number: Mapped[int | None]
    kind: Mapped[str] = mapped_column(String(40))
    message: Mapped[str] = mapped_column(Sentence)
    data: Mapped[dict[str, Any] | None] = mapped_column(JSON(none_as_null=True))
    """What the message was made from, where the service reads that again; words are never read."""
