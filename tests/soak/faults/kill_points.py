"""The named points at which a process is killed, is stopped, or has a thread that hangs.

Data: each names a function of the product by its path.

A point's passing is the moment right before, or right after, a call of its target; with `during`, only of
the nth such call within a call of that function.
"""

from __future__ import annotations

import importlib
import re
from dataclasses import asdict, dataclass
from functools import reduce
from typing import Any, Literal

Process = Literal["coordinator", "ray", "api", "upgrade"]
"""Workers are children of Ray, so theirs is `ray`."""

Scenario = Literal[
    *("search", "pruned", "paused", "warm", "schedule", "queued", "cancelling", "continued", "champion"),
    *("submission", "migration", "frozen", "hung"),
]
"""What has to happen for a point to be passed; see `tests.soak.faults.scenarios`."""


@dataclass(frozen=True, kw_only=True)
class Point:
    """Where a process dies."""

    name: str
    process: Process
    scenario: Scenario
    target: str
    """`module:function` or `module:Class.method`."""
    when: Literal["before", "after"]
    during: str | None = None
    """Only while this function runs, which the same thread has called."""
    nth: int = 1
    """Which call of the target within one call of `during`."""
    given: str | None = None
    """Only when an argument is of a type of this name."""
    returning: bool = False
    """Only when something was returned."""
    passings: int = 4
    """Of how many passings one is chosen; it is passed as often at least while its scenario runs."""
    after_end: bool = False
    """It comes only after the study's end was recorded."""
    locks: bool = False
    """Inside a transaction that writes."""

    @property
    def file(self) -> str:
        """The name of the file that arms it."""
        return re.sub(r"\W+", "-", self.name)

    def as_document(self) -> dict[str, Any]:
        return {**asdict(self), "file": self.file}


def missing(point: Point) -> list[str]:
    """Names of a point that the product does not have, or no longer has."""
    absent = []
    for name in filter(None, (point.target, point.during)):
        module, _, path = name.partition(":")
        *owners, last = path.split(".")
        try:
            owner = reduce(getattr, owners, importlib.import_module(module))
            found = callable(owner.__dict__[last])
        except (ImportError, AttributeError, KeyError):
            found = False
        if not found:
            absent.append(name)
    return absent


def _coordinator(
    name: str, when: Literal["before", "after"], target: str, *, scenario: Scenario = "search", **more: Any
) -> Point:
    return Point(name=name, process="coordinator", scenario=scenario, target=target, when=when, **more)


def _worker(
    name: str, when: Literal["before", "after"], target: str, *, scenario: Scenario = "search", **more: Any
) -> Point:
    return Point(name=name, process="ray", scenario=scenario, target=target, when=when, **more)


def _upgrade(name: str, when: Literal["before", "after"], target: str, **more: Any) -> Point:
    return Point(name=name, process="upgrade", scenario="migration", target=target, when=when, **more)


_EVENTS = "service.coordinator.study.worker_events:WorkerEvents"
_ATTEMPTS = "service.coordinator.study.attempts"
_RECOVERY = "service.coordinator.study.recovery"
_WORKERS = "service.coordinator.cluster.worker_group:WorkerGroup"
_RAY = "service.coordinator.cluster.ray_workers:RayWorkers"
_STUDY = "service.coordinator.study.leased_study:LeasedStudy"
_LEASES = "service.coordinator.leases"
_STORE = "service.optuna_store"
_CONTESTS = "service.coordinator.study.contests"
_CHAMPION: dict[str, Any] = {"scenario": "champion", "passings": 2}

POINTS: tuple[Point, ...] = (
    # Taking a study.
    _coordinator(
        "after the leases were taken, before their commit",
        "after",
        f"{_LEASES}:take",
        returning=True,
        passings=1,
    ),
    _coordinator("before the study is begun", "before", f"{_STUDY}.begin", passings=1),
    _coordinator("before the study is reconciled", "before", f"{_RECOVERY}:reconcile", passings=1),
    _coordinator("after the study was reconciled", "after", f"{_RECOVERY}:reconcile", passings=1),
    _coordinator("after its workers were found", "after", f"{_WORKERS}.attach", passings=1),
    _coordinator("in a lease renewal", "after", f"{_LEASES}:renew"),
    # Asking and sending out.
    _coordinator("between ask and the trial's row", "before", "service.db.trials:add"),
    _coordinator("after ask", "after", f"{_STUDY}.ask"),
    _coordinator("after the attempt row", "after", f"{_ATTEMPTS}:open_attempt"),
    _coordinator("after dispatch", "after", f"{_WORKERS}.submit"),
    # What the workers say.
    _coordinator("on start recorded", "after", f"{_EVENTS}.on_started"),
    _coordinator(
        "after report to Optuna", "after", "optuna.storages:RDBStorage.set_trial_intermediate_value"
    ),
    _coordinator("after the report's record", "after", f"{_EVENTS}.on_report"),
    _coordinator("before events are acknowledged", "before", f"{_WORKERS}.on_delivered"),
    _coordinator(
        "between the verdict and its record",
        "after",
        f"{_STORE}.reporting:should_prune",
        returning=True,
        scenario="pruned",
        passings=2,
    ),
    _coordinator(
        "after the verdict's record",
        "after",
        f"{_EVENTS}.on_report",
        returning=True,
        scenario="pruned",
        passings=2,
    ),
    _coordinator("after the verdict is sent", "after", f"{_WORKERS}.send", scenario="pruned", passings=2),
    # Anywhere.
    _coordinator("before a commit", "before", "sqlalchemy.engine.base:Connection._commit_impl", passings=30),
    _coordinator("after a commit", "after", "sqlalchemy.engine.base:Connection._commit_impl", passings=30),
    # Ends.
    _coordinator("between outcome and tell", "before", f"{_STUDY}.tell_of", during=f"{_EVENTS}.on_outcome"),
    _coordinator("in mid tell", "before", "optuna.study:Study.tell", during=f"{_STORE}.telling:tell"),
    _coordinator(
        "between tell and the trial's verdicts", "before", "service.coordinator.study.verdicts:write"
    ),
    _coordinator("after tell", "after", f"{_STUDY}.tell_of", during=f"{_EVENTS}.on_outcome"),
    _coordinator("between end of trials and end of study", "before", f"{_STUDY}.end", passings=1),
    _coordinator("after the end of the study", "after", f"{_STUDY}.end", passings=1, after_end=True),
    # Workers.
    _worker("on an order's arrival", "after", "workers.actor.gpu_worker:GpuWorker.submit"),
    _worker(
        "in mid checkpoint",
        "before",
        "workers.artifacts.folders:_write",
        during="workers.artifacts.checkpoints:write_checkpoint",
        nth=2,
    ),
    _worker("after a checkpoint, before its report", "after", "workers.pack.attempt:Attempt.checkpoint"),
    _worker(
        "after a report was appended, before it is acknowledged",
        "after",
        "workers.actor.event_log:EventLog.append",
        given="Report",
    ),
    _worker(
        "in mid adapter save",
        "before",
        "workers.artifacts.folders:_move",
        during="workers.artifacts.folders:ArtifactFolder.save_adapter",
    ),
    _worker(
        "after an outcome was appended, before it is acknowledged",
        "after",
        "workers.actor.event_log:EventLog.append",
        given="TrialOutcome",
    ),
    # Warm workers.
    _worker(
        "while it waits in the pool",
        "after",
        "workers.actor.gpu_worker:GpuWorker.attend",
        scenario="warm",
        after_end=True,
    ),
    _worker(
        "between assignment and first order",
        "after",
        "workers.actor.gpu_worker:GpuWorker.assign",
        scenario="warm",
    ),
    _worker(
        "while it goes back to the pool",
        "before",
        "workers.pack.pack:Pack.leave_study",
        scenario="warm",
        after_end=True,
    ),
    _coordinator("between assignment and dispatch", "after", f"{_RAY}.start", scenario="warm", passings=1),
    _coordinator("while workers are given back", "after", f"{_RAY}.release", scenario="warm", passings=1),
    # REST.
    Point(
        name="in mid submission",
        process="api",
        scenario="submission",
        target="service.studies.commands:submit",
        when="after",
    ),
    Point(
        name="after a submission, before its answer",
        process="api",
        scenario="submission",
        target="sqlalchemy.engine.base:Connection._commit_impl",
        when="after",
    ),
    # Pauses.
    Point(
        name="in mid request for a pause",
        process="api",
        scenario="paused",
        target="service.studies.pauses:request_pause",
        when="after",
        passings=2,
    ),
    _coordinator(
        "after a pause was sent to a worker", "after", f"{_WORKERS}.send", scenario="paused", passings=2
    ),
    _worker("before a trial is put down", "before", "workers.pack.pack:Pack._pause", scenario="paused"),
    _worker("after a trial was put down", "after", "workers.pack.pack:Pack._pause", scenario="paused"),
    _coordinator("while pausing", "before", f"{_STUDY}.pause", scenario="paused", passings=2),
    _coordinator("after the pause was recorded", "after", f"{_STUDY}.pause", scenario="paused", passings=2),
    Point(
        name="while resuming",
        process="api",
        scenario="paused",
        target="service.studies.pauses:request_resume",
        when="after",
        passings=2,
    ),
    # Schedules.
    _coordinator(
        "in mid firing",
        "after",
        "service.schedules.sweeps:make_sweep",
        returning=True,
        scenario="schedule",
        passings=1,
    ),
    _coordinator(
        "while a firing begins to wait",
        "after",
        "service.schedules.sweeps:_wait",
        scenario="queued",
        passings=1,
    ),
    _coordinator(
        "while the firing that waited is made",
        "after",
        "service.schedules.sweeps:_make_waiting",
        returning=True,
        scenario="queued",
        passings=1,
    ),
    _coordinator(
        "between the next sweep and the cancel of the earlier one",
        "after",
        "service.schedules.sweeps:cancel",
        scenario="cancelling",
        passings=1,
    ),
    _coordinator(
        "while a firing continues a paused sweep",
        "after",
        "service.studies.pauses:resume",
        scenario="continued",
        passings=1,
    ),
    # Champions.
    _coordinator(
        "between an evaluation's ask and its row",
        "before",
        "service.db.trials:add",
        during=f"{_STUDY}.ask_evaluation",
        scenario="champion",
        passings=2,
    ),
    _coordinator("after an evaluation was asked for", "after", f"{_CONTESTS}:ask", **_CHAMPION),
    _coordinator("in mid record of an evaluation", "after", f"{_CONTESTS}:keep", **_CHAMPION),
    _coordinator("between a contest's verdict and its record", "before", f"{_CONTESTS}:_settle", **_CHAMPION),
    _coordinator(
        "in mid enthronement", "after", "service.db.reigns:enthrone", scenario="champion", passings=1
    ),
    _coordinator("after a contest's record, before its commit", "after", f"{_CONTESTS}:_settle", **_CHAMPION),
    _worker(
        "while an adapter is put on its base",
        "before",
        "workers.pack.evaluations.attempt:_put_in",
        scenario="champion",
    ),
    _worker(
        "after an evaluation, before its outcome is said",
        "after",
        "workers.pack.evaluations.attempt:EvaluationAttempt.complete",
        scenario="champion",
    ),
    Point(
        name="in mid promotion",
        process="api",
        scenario="champion",
        target="service.champions.commands:promote",
        when="after",
        passings=1,
    ),
    # Upgrades.
    _upgrade(
        "in mid migration", "after", "alembic.runtime.migration:HeadMaintainer.update_to_step", passings=3
    ),
    _upgrade("between the two schemas", "before", f"{_STORE}.storage:create_tables", passings=1),
    _upgrade("after Optuna's tables", "after", f"{_STORE}.storage:create_tables", passings=1),
)


def _frozen(name: str, when: Literal["before", "after"], target: str, **more: Any) -> Point:
    return Point(name=name, process="coordinator", scenario="frozen", target=target, when=when, **more)


_RDB = "optuna.storages:RDBStorage"

FREEZE_POINTS: tuple[Point, ...] = (
    _frozen("before the write of an ask", "before", f"{_RDB}._create_new_trial"),
    _frozen("before the write of a report", "before", f"{_RDB}.set_trial_intermediate_value"),
    _frozen("after a look at the lease", "after", f"{_LEASES}:hold", locks=True),
    _frozen(
        "before the commit of a report",
        "before",
        "sqlalchemy.engine.base:Connection._commit_impl",
        during=f"{_RDB}.set_trial_intermediate_value",
        locks=True,
    ),
    _frozen("before the write of a tell", "before", f"{_RDB}.set_trial_state_values"),
)
"""Where a coordinator that holds a study is stopped, for longer than its lease. In this order: a study of
a few trials has asked for all of them early."""


def _hung(name: str, target: str) -> Point:
    return Point(name=name, process="ray", scenario="hung", target=target, when="before")


HANG_POINTS: tuple[Point, ...] = (
    _hung("a training thread hangs in a pass", "workers.training.shared_pass:SharedPasses.train"),
    _hung("a training thread hangs in an evaluation", "workers.training.shared_pass:SharedPasses.evaluate"),
    _hung("a training thread hangs while it loads", "workers.pack.loaded:LoadedStudies.load"),
)
"""Where a worker's training thread stands still for ever, while its other threads answer."""
