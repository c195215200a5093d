"""What must be true of a study whatever was done to its processes, read straight from SQL.

Nothing here goes through the product's own queries: a fault in them must not hide one in what they read.
"""

from __future__ import annotations

import json
import math
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from datetime import datetime
from typing import Any

from sqlalchemy import Connection, text

from tests.soak.faults import audit
from tests.soak.faults.deployment import Deployment

EXACT = 1e-6
"""Relative. A trial that has its worker to itself computes the same numbers, however often it is resumed."""
IN_A_PACK = 1e-4
"""Relative. In a pack the sums depend on who the mates are, to rounding."""

_LIVE = {"dispatched", "running"}
_UNFINISHED = {"lost", "paused"}
_TOLD_AS = {
    "completed": "COMPLETE",
    "pruned": "PRUNED",
    "diverged": "PRUNED",
    "out_of_memory": "PRUNED",
    "failed": "FAIL",
    "cancelled": "FAIL",
}


@dataclass(frozen=True)
class Attempt:
    id: int
    ordinal: int
    state: str
    reason: str
    dispatched_at: datetime
    ended_at: datetime | None
    worker_id: str


@dataclass(frozen=True)
class Trial:
    """One trial, from both databases."""

    number: int
    trial_id: int
    state: str
    """Optuna's."""
    params: dict[str, str]
    value: float | None
    rungs: dict[int, float]
    outcome: str | None
    attempts: tuple[Attempt, ...]
    reports: tuple[int, ...]
    """Rungs whose report the service has kept."""


@dataclass(frozen=True)
class Record:
    """A study as both databases have it."""

    id: str
    name: str
    state: str
    reason: str
    minimize: bool
    trials: tuple[Trial, ...]
    strays: int
    """Trials that two askers at once have left: none, where only the holder of the lease asks."""

    @property
    def best(self) -> float | None:
        values = [t.value for t in self.trials if t.state == "COMPLETE" and t.value is not None]
        return (min if self.minimize else max)(values, default=None)


def read(deployment: Deployment, name: str) -> Record:
    """A study and its trials. Raises `LookupError` when there is no such study."""
    with deployment.service_engine.connect() as service, deployment.optuna_engine.connect() as optuna:
        row = service.execute(
            text("SELECT id, state, reason FROM studies WHERE name = :n"), {"n": name}
        ).one_or_none()
        if row is None:
            raise LookupError(name)
        attempts = _attempts(service, row.id)
        reports: dict[int, list[int]] = {}
        kept = text("SELECT trial_number, rung FROM rung_reports WHERE study_id = :s ORDER BY rung")
        for number, rung in service.execute(kept, {"s": row.id}):
            reports.setdefault(number, []).append(rung)
        number = optuna.scalar(text("SELECT study_id FROM studies WHERE study_name = :n"), {"n": name})
        direction = optuna.scalar(
            text("SELECT direction FROM study_directions WHERE study_id = :s AND objective = 0"),
            {"s": number},
        )
        trials, strays = _trials(optuna, number, attempts, reports)
        return Record(row.id, name, row.state, row.reason, direction != "MAXIMIZE", trials, strays)


def _attempts(service: Connection, study_id: str) -> dict[int, list[Attempt]]:
    rows = service.execute(
        text(
            "SELECT id, trial_number, ordinal, state, reason, dispatched_at, ended_at, worker_id"
            " FROM attempts WHERE study_id = :s ORDER BY trial_number, ordinal"
        ),
        {"s": study_id},
    )
    found: dict[int, list[Attempt]] = {}
    for id_, number, ordinal, state, reason, dispatched, ended, worker in rows:
        found.setdefault(number, []).append(
            Attempt(id_, ordinal, state, reason, _time(dispatched), ended and _time(ended), worker)
        )
    return found


def _time(value: Any) -> datetime:
    return value if isinstance(value, datetime) else datetime.fromisoformat(value)


def _trials(
    optuna: Connection, study: int | None, attempts: dict[int, list[Attempt]], reports: dict[int, list[int]]
) -> tuple[tuple[Trial, ...], int]:
    def by_trial(query: str) -> dict[int, dict[Any, Any]]:
        found: dict[int, dict[Any, Any]] = {}
        for trial_id, key, value in optuna.execute(text(query), {"s": study}):
            assert key not in found.get(trial_id, {}), f"trial {trial_id} has {key} twice: {query}"
            found.setdefault(trial_id, {})[key] = value
        return found

    of_study = "JOIN trials t ON t.trial_id = x.trial_id WHERE t.study_id = :s"
    params = by_trial(f"SELECT x.trial_id, x.param_name, x.param_value FROM trial_params x {of_study}")
    choices = by_trial(f"SELECT x.trial_id, x.param_name, x.distribution_json FROM trial_params x {of_study}")
    values = by_trial(f"SELECT x.trial_id, x.objective, x.value FROM trial_values x {of_study}")
    rungs = by_trial(
        f"SELECT x.trial_id, x.step, x.intermediate_value FROM trial_intermediate_values x {of_study}"
    )
    user = by_trial(f"SELECT x.trial_id, x.key, x.value_json FROM trial_user_attributes x {of_study}")
    system = by_trial(f"SELECT x.trial_id, x.key, x.value_json FROM trial_system_attributes x {of_study}")
    query = text("SELECT trial_id, number, state FROM trials WHERE study_id = :s ORDER BY number")
    trials, strays = [], 0
    for trial_id, number, state in optuna.execute(query, {"s": study}):
        drawn_for = system.get(trial_id, {}).get("nightsweep:drawn_for")
        if drawn_for is not None and json.loads(drawn_for) != number:
            strays += 1
            continue
        told = user.get(trial_id, {}).get("outcome")
        shown = {
            name: f"{value!r} of {choices[trial_id][name]}"
            for name, value in params.get(trial_id, {}).items()
        }
        trials.append(
            Trial(
                number=number,
                trial_id=trial_id,
                state=state,
                params=shown,
                value=values.get(trial_id, {}).get(0),
                rungs=dict(sorted(rungs.get(trial_id, {}).items())),
                outcome=None if told is None else json.loads(told),
                attempts=tuple(attempts.get(number, ())),
                reports=tuple(reports.get(number, ())),
            )
        )
    return tuple(trials), strays


# -- of every study ----------------------------------------------------------------------------------


def check(record: Record, *, trials: int | None, ends: str = "completed", distinct: bool = True) -> list[str]:
    """What is wrong with a study that has ended.

    Args:
        record: The study.
        trials: Exactly as many; None: a study that somebody has cancelled.
        ends: The state it must be in.
        distinct: Whether no two trials may have the same parameters.
    """
    wrong = []
    if record.state != ends:
        wrong.append(f"the study is {record.state}, not {ends}: {record.reason}")
    if trials is not None and len(record.trials) != trials:
        wrong.append(f"{len(record.trials)} trials, not {trials}")
    if trials is not None and [t.number for t in record.trials] != list(range(len(record.trials))):
        wrong.append(f"trial numbers {[t.number for t in record.trials]}")
    if record.strays:
        wrong.append(f"{record.strays} strays: two coordinators have asked at once")
    points = Counter(tuple(sorted(t.params.items())) for t in record.trials)
    if distinct and any(count > 1 for count in points.values()):
        wrong.append(f"parameters given out more than once: {[p for p, n in points.items() if n > 1]}")
    for trial in record.trials:
        wrong += [f"trial {trial.number}: {fault}" for fault in _check_trial(trial)]
    return [f"{record.name}: {fault}" for fault in wrong]


def _check_trial(trial: Trial) -> list[str]:
    wrong = []
    if trial.state not in ("COMPLETE", "PRUNED", "FAIL"):
        wrong.append(f"{trial.state} in Optuna though the study is over")
    if [a.ordinal for a in trial.attempts] != list(range(1, len(trial.attempts) + 1)):
        wrong.append(f"attempts {[a.ordinal for a in trial.attempts]}")
    live = [a.ordinal for a in trial.attempts if a.state in _LIVE or a.ended_at is None]
    if live:
        wrong.append(f"attempts {live} have not ended")
    ended = [a for a in trial.attempts if a.state not in _LIVE | _UNFINISHED]
    if len(ended) > 1 or (ended and ended[0] is not trial.attempts[-1]):
        wrong.append(f"ended by attempts {[(a.ordinal, a.state) for a in ended]}, not by its last one alone")
    if ended and (trial.outcome != ended[0].state or trial.state != _TOLD_AS.get(ended[0].state)):
        wrong.append(f"Optuna was told {trial.outcome} ({trial.state}); the attempt is {ended[0].state}")
    if not ended and trial.state == "COMPLETE":
        wrong.append("complete in Optuna without an attempt that is")
    for one, following in zip(trial.attempts, trial.attempts[1:], strict=False):
        if one.ended_at is None or one.ended_at > following.dispatched_at:
            wrong.append(f"attempt {following.ordinal} began before attempt {one.ordinal} had ended")
    if tuple(trial.rungs) != trial.reports:
        wrong.append(f"rungs {list(trial.rungs)} in Optuna, {list(trial.reports)} in the service")
    if trial.state == "COMPLETE" and trial.value is None:
        wrong.append("complete without a value")
    return wrong


class Writes:
    """Everything that was written to both databases so far, read once."""

    def __init__(self, deployment: Deployment) -> None:
        self.service: dict[tuple[str, str], list[audit.Write]] = {}
        self.optuna: dict[tuple[str, str], list[audit.Write]] = {}
        for engine, found in (
            (deployment.service_engine, self.service),
            (deployment.optuna_engine, self.optuna),
        ):
            for write in audit.read(engine):
                kind = write.relation if write.relation in _OF_THEIR_OWN else "rest"
                found.setdefault((kind, write.key), []).append(write)

    def of_service(self, record: Record) -> list[audit.Write]:
        """A study's, its events', its reports' and its attempts', in order."""
        attempts = [("attempts", str(a.id)) for trial in record.trials for a in trial.attempts]
        found = [w for key in (("rest", record.id), *attempts) for w in self.service.get(key, [])]
        return sorted(found, key=lambda write: write.id)

    def of_optuna(self, record: Record) -> list[audit.Write]:
        """Its fences' and its trials', in order."""
        keys = [("nightsweep_fences", record.name), *(("rest", str(t.trial_id)) for t in record.trials)]
        return sorted((w for key in keys for w in self.optuna.get(key, [])), key=lambda write: write.id)


_OF_THEIR_OWN = {"attempts", "nightsweep_fences"}
"""Tables whose keys are not a study's id, or not a trial's."""


def check_writes(writes: Writes, record: Record) -> list[str]:
    """Each trial was created once and told once, and nothing was written to it afterwards."""
    wrong = []
    for trial in record.trials:
        found = writes.optuna.get(("rest", str(trial.trial_id)), [])
        made = [w for w in found if w.relation == "trials" and w.operation == "INSERT"]
        told = [w for w in found if w.relation == "trials" and w.operation == "UPDATE" and w.new != "RUNNING"]
        if len(made) != 1:
            wrong.append(f"trial {trial.number} was created {len(made)} times")
        if len(told) != 1:
            wrong.append(f"trial {trial.number} was told {len(told)} times: {told}")
        later = [w for w in found if told and w.id > told[-1].id and w.relation != "trial_values"]
        if later:
            wrong.append(f"trial {trial.number} was written to after its end: {later}")
    inserted = (w for w in writes.of_service(record) if w.operation == "INSERT")  # each is numbered later
    events = (w.new for w in inserted if w.relation == "events")
    ends = [kind for kind in events if kind in _STUDY_ENDS]
    if len(ends) != 1:
        wrong.append(f"the study ended {len(ends)} times: {ends}")
    return [f"{record.name}: {fault}" for fault in wrong]


def check_fencing(writes: Writes, record: Record) -> list[str]:
    """While a study's lease was one process's, no other coordinator has written to it, in either database.

    Both histories are in the order of their own transactions: whoever took the lease, or raised the fence,
    had waited for every earlier writer's.
    """
    wrong = []
    holder: str | None = None
    for write in writes.of_service(record):
        if write.relation == "studies" and write.operation == "UPDATE":
            (_, number, owner), (_, earlier, _) = write.new.split(), str(write.old).split()
            if int(number) > int(earlier):
                holder = write.writer
            elif owner == "-":
                holder = None
        if holder is not None and _is_intruder(write.writer, holder):
            wrong.append(f"{write.writer} wrote while {holder} held the lease: {write}")
    holder = None
    for write in writes.of_optuna(record):
        if write.relation == "nightsweep_fences":
            holder = write.writer
        elif holder is not None and _is_intruder(write.writer, holder):
            wrong.append(f"{write.writer} wrote to Optuna behind the fence of {holder}: {write}")
    return [f"{record.name}: {fault}" for fault in wrong]


def _is_intruder(writer: str, holder: str) -> bool:
    return writer.startswith("coordinator") and writer != holder


_STUDY_ENDS = {"study_completed", "study_failed", "study_cancelled"}


# -- against the undisturbed run ---------------------------------------------------------------------


def compare(stormy: Record, calm: Record, *, tolerance: float = EXACT) -> list[str]:
    """What differs between a disturbed study and its undisturbed twin: parameters, ends, rungs, values."""
    wrong = []
    if len(stormy.trials) != len(calm.trials):
        wrong.append(f"{len(stormy.trials)} trials, undisturbed {len(calm.trials)}")
    for ours, theirs in zip(stormy.trials, calm.trials, strict=False):
        where = f"trial {ours.number}"
        if ours.params != theirs.params:
            wrong.append(f"{where} got {ours.params}, undisturbed {theirs.params}")
        if (ours.state, ours.outcome) != (theirs.state, theirs.outcome):
            wrong.append(
                f"{where} is {ours.state}/{ours.outcome}, undisturbed {theirs.state}/{theirs.outcome}"
            )
        if list(ours.rungs) != list(theirs.rungs):
            wrong.append(f"{where} has rungs {list(ours.rungs)}, undisturbed {list(theirs.rungs)}")
        elif not _close(list(ours.rungs.values()), list(theirs.rungs.values()), tolerance):
            wrong.append(f"{where} reported {ours.rungs}, undisturbed {theirs.rungs}")
        if not _close([ours.value], [theirs.value], tolerance):
            wrong.append(f"{where} is worth {ours.value}, undisturbed {theirs.value}")
    if not _close([stormy.best], [calm.best], tolerance):
        wrong.append(f"best value {stormy.best}, undisturbed {calm.best}")
    return [f"{stormy.name}: {fault}" for fault in wrong]


def _close(ours: Sequence[float | None], theirs: Sequence[float | None], tolerance: float) -> bool:
    return all(
        a is b is None or (a is not None and b is not None and math.isclose(a, b, rel_tol=tolerance))
        for a, b in zip(ours, theirs, strict=True)
    )
