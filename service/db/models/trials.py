"""Trials, their attempts, and what they reported."""

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
    text,
    true,
)
from sqlalchemy.orm import Mapped, mapped_column

from service.db.column_types import Sentence
from service.db.models.base import Base, next_revision, one_of, utc_now
from service.states import TRIAL_STATES, AttemptState


class Attempt(Base):
    """One execution of a trial on one worker."""

    __tablename__ = "attempts"
    __table_args__ = (
        CheckConstraint(one_of("state", AttemptState), name="ck_attempts_state"),
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
    tokens: Mapped[int] = mapped_column(BigInteger, default=0, server_default="0")
    """In the trial's training passes so far, those of the attempts that it resumed included."""
    padded_tokens: Mapped[int] = mapped_column(BigInteger, default=0, server_default="0")
    """Positions of the same passes, padding included."""
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
        CheckConstraint(one_of("state", TRIAL_STATES), name="ck_trials_state"),
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
    evaluates: Mapped[dict[str, Any] | None] = mapped_column(JSON(none_as_null=True))
    """Of a trial that does not train: whose adapter it evaluates, and where that is."""
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
        "version_id_generator": next_revision,
    }


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
    at: Mapped[datetime | None] = mapped_column(default=utc_now)
    """When it was written down; none in rows of versions that did not say."""
