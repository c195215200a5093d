"""What the two databases must say of one another: pure functions over their rows."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator, Mapping

from pydantic import ValidationError

from search_spaces.definition import StudyDefinition
from search_spaces.errors import SearchSpaceError
from search_spaces.preparation import NOTHING, Preparation
from search_spaces.sampling.plan import planned_trials
from search_spaces.wording import counted
from service.maintenance.integrity.rows import OptunaRows, OptunaTrial, StudyRows, TrialRow
from service.maintenance.integrity.rules import COUNTED_LOSSES, FINAL_ATTEMPT_STATES
from service.maintenance.integrity.violations import Violation
from service.states import TERMINAL_STUDY_STATES, AttemptState, StudyState

_OPTUNA_STATES = {
    AttemptState.COMPLETED: "COMPLETE",
    AttemptState.PRUNED: "PRUNED",
    AttemptState.DIVERGED: "PRUNED",
    AttemptState.OUT_OF_MEMORY: "PRUNED",
    AttemptState.FAILED: "FAIL",
    AttemptState.CANCELLED: "FAIL",
}
"""Written down again: a rule that shares its table with the code could not contradict it."""

_STILL = TERMINAL_STUDY_STATES | {StudyState.PAUSED}


def compare(
    service: Mapping[str, StudyRows], earlier: Mapping[str, OptunaRows], later: Mapping[str, OptunaRows]
) -> list[Violation]:
    """Every broken rule between the two.

    Args:
        service: the service's studies by name.
        earlier: Optuna's, as they were before the service's were read.
        later: as they were afterwards.
    """
    found = [violation for name, rows in later.items() for violation in _known(name, rows, service)]
    for name, study in service.items():
        if study.removing:
            continue
        before, after = earlier.get(name, OptunaRows()), later.get(name, OptunaRows())
        found += _ends(name, study, before)
        found += _trials(name, study, after)
        found += _counts(name, study, after)
        found += _planned(name, study, after)
    return found


def _known(name: str, rows: OptunaRows, service: Mapping[str, StudyRows]) -> Iterator[Violation]:
    # A study without our mark was made by somebody else in the same storage.
    if rows.study_id is not None and (name not in service or service[name].id != rows.study_id):
        found = f"Optuna's storage has it with the id {rows.study_id}, which the service does not know"
        yield Violation(rule="known-studies", study=name, found=found)
    if name in service and rows.fence is not None and rows.fence > service[name].lease_number:
        found = f"its fence is at {rows.fence}, its lease at {service[name].lease_number}"
        yield Violation(rule="fences", study=name, found=found)


def _ends(name: str, study: StudyRows, optuna: OptunaRows) -> Iterator[Violation]:
    """Of trials that Optuna was told of before the service's tables were read."""
    last = study.last_attempts
    for number, trial in optuna.trials.items():
        if not trial.finished:
            continue
        attempt = last.get(number)
        if attempt is not None and attempt.live:
            found = f"it is {trial.state} in Optuna and its attempt {attempt.ordinal} is {attempt.state}"
            yield Violation(rule="not-dead-while-alive", study=name, trial=number, found=found)
            continue
        if attempt is not None and attempt.state in FINAL_ATTEMPT_STATES:
            recorded = {attempt.state}
        else:
            recorded = study.ends.get(number, set())
        if attempt is None and not trial.params and not recorded:
            continue  # its asker died, and nothing was left in the space for it
        if trial.outcome not in recorded or trial.state != _optuna_state_of(trial.outcome):
            kept = " or ".join(sorted(recorded)) or "no end"
            found = f"Optuna has {trial.state} for {trial.outcome}, the service recorded {kept}"
            yield Violation(rule="told-as-recorded", study=name, trial=number, found=found)
        elif (
            attempt is not None
            and attempt.state == AttemptState.COMPLETED
            and trial.values[:1] != [attempt.value]
        ):
            found = f"Optuna has the values {trial.values}, the attempt measured {attempt.value}"
            yield Violation(rule="value-as-measured", study=name, trial=number, found=found)
        elif (differs := _row_differs(trial, study.trials.get(number))) is not None:
            yield Violation(rule="row-as-told", study=name, trial=number, found=differs)


def _row_differs(trial: OptunaTrial, row: TrialRow | None) -> str | None:
    """What the row of a finished trial says otherwise than Optuna does."""
    if row is None:
        return "it has no row"
    # Optuna keeps the last report of a pruned trial as its value.
    values = trial.values if trial.state == "COMPLETE" else []
    told = {
        "values": values,
        "parameters": sorted(trial.params),
        "rungs": sorted(trial.rungs),
        "repeat of": trial.repeat_of,
        "seed": trial.seed,
        "evaluates": trial.evaluates,
    }
    kept = {
        "values": list(row.values),
        "parameters": sorted(row.params),
        "rungs": sorted(row.rungs),
        "repeat of": row.repeat_of,
        "seed": row.seed,
        "evaluates": row.evaluates,
    }
    what = next((name for name in told if told[name] != kept[name]), None)
    return None if what is None else f"{what}: {told[what]} in Optuna, {kept[what]} in its row"


def _optuna_state_of(outcome: str | None) -> str | None:
    return _OPTUNA_STATES.get(AttemptState(outcome)) if outcome in set(AttemptState) else None


def _trials(name: str, study: StudyRows, optuna: OptunaRows) -> Iterator[Violation]:
    """Of trials that the service's tables know."""
    for number in sorted({attempt.trial for attempt in study.attempts} - set(optuna.trials)):
        yield Violation(
            rule="known-trials", study=name, trial=number, found="it has attempts but is not in Optuna"
        )
    for number, rung in sorted(study.rungs):
        trial = optuna.trials.get(number)
        if trial is not None and rung not in trial.rungs:
            found = f"the report at {rung} examples is not in Optuna"
            yield Violation(rule="rungs", study=name, trial=number, found=found)
    if study.state not in _STILL:
        return
    ended = {a.trial: a.state for a in study.last_attempts.values() if a.state in FINAL_ATTEMPT_STATES}
    for number, trial in optuna.trials.items():
        if trial.finished:
            continue
        if study.state in TERMINAL_STUDY_STATES:
            found = f"it is {trial.state} in Optuna while the study is {study.state}"
            yield Violation(rule="none-left-running", study=name, trial=number, found=found)
        elif number in ended or number in study.ends:
            how = ended.get(number) or " or ".join(sorted(study.ends[number]))
            yield Violation(rule="told", study=name, trial=number, found=f"it ended as {how}")


def _counts(name: str, study: StudyRows, optuna: OptunaRows) -> Iterator[Violation]:
    budget = study.definition.get("budget") or {}
    parallel, retries = budget.get("max_parallel_trials"), budget.get("max_retries")
    live = sum(attempt.live for attempt in study.attempts)
    if parallel is not None and live > parallel:
        found = f"{live} attempts are alive, the budget allows {parallel}"
        yield Violation(rule="parallel-trials", study=name, found=found)
    losses = Counter(a.trial for a in study.attempts if a.loss_cause in COUNTED_LOSSES)
    for number, times in losses.items():
        if retries is not None and times > retries + 1:
            found = f"it was lost {times} times, the budget allows {counted(retries, 'further attempt')}"
            yield Violation(rule="retries", study=name, trial=number, found=found)
    repeats = Counter((t.repeat_of, t.seed) for t in optuna.trials.values() if t.repeat_of is not None)
    for (of, seed), times in repeats.items():
        if times > 1:
            found = f"{times} repeats of trial {of} have the seed {seed}"
            yield Violation(rule="distinct-points", study=name, found=found)
    roles = Counter(t.evaluates["role"] for t in optuna.trials.values() if t.evaluates is not None)
    for role, times in roles.items():
        if times > 1:
            found = f"{times} trials evaluate the {role}"
            yield Violation(rule="distinct-points", study=name, found=found)


def _planned(name: str, study: StudyRows, optuna: OptunaRows) -> Iterator[Violation]:
    """What takes the definition to know: how many trials there may be, and whether they are a grid's."""
    try:
        definition = StudyDefinition.model_validate(study.definition)
        prepared = study.preparation
        preparation = NOTHING if prepared is None else Preparation.model_validate(prepared)
        planned = planned_trials(definition, preparation)
    except (ValidationError, SearchSpaceError, ValueError) as error:
        if study.state not in TERMINAL_STUDY_STATES:
            first = str(error).splitlines()[0]
            yield Violation(rule="readable", study=name, found=f"its definition cannot be read: {first}")
        return
    every = optuna.trials.values()
    searched = [trial for trial in every if trial.repeat_of is None and trial.evaluates is None]
    if len(searched) > planned:
        found = f"it has {counted(len(searched), 'trial')}, but {planned} planned"
        yield Violation(rule="trial-count", study=name, found=found)
    if definition.search.algorithm == "grid":
        yield from _distinct(name, searched)


def _distinct(name: str, trials: list[OptunaTrial]) -> Iterator[Violation]:
    first: dict[frozenset[tuple[str, float | None]], int] = {}
    for trial in sorted(trials, key=lambda one: one.number):
        point = frozenset(trial.params.items())
        other = first.setdefault(point, trial.number)
        if other != trial.number and point:
            found = f"it has the same grid point as trial {other}"
            yield Violation(rule="distinct-points", study=name, trial=trial.number, found=found)
