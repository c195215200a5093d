"""The rules, each with its sentence; those that one database can answer are one query each.

A query gives a row per violation: study's name, trial's number or null, what was found. All are written in
the SQL that SQLite and PostgreSQL share.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from enum import StrEnum

from service.maintenance.integrity.clocks import CLOCKS
from service.states import (
    LIVE_ATTEMPT_STATES,
    TERMINAL_ATTEMPT_STATES,
    TERMINAL_STUDY_STATES,
    UNFINISHED_ATTEMPT_STATES,
    LossCause,
    StudyState,
)


@dataclass(frozen=True, kw_only=True)
class Rule:
    name: str
    holds: str
    """What is true while the rule is kept."""
    broken: str
    """The query for where it is not."""


FINAL_ATTEMPT_STATES = TERMINAL_ATTEMPT_STATES - UNFINISHED_ATTEMPT_STATES
"""Ends of an attempt that are its trial's, too."""
COUNTED_LOSSES = frozenset({LossCause.WORKER_DIED, LossCause.UNREACHABLE, LossCause.STALLED})
"""Losses that `budget.max_retries` bounds."""


def _listed(values: Iterable[StrEnum | str]) -> str:
    return "(" + ", ".join(f"'{value}'" for value in sorted(values)) + ")"


_LIVE = _listed(LIVE_ATTEMPT_STATES)
_FINAL = _listed(FINAL_ATTEMPT_STATES)
_UNFINISHED = _listed(UNFINISHED_ATTEMPT_STATES)
_OVER = _listed(TERMINAL_STUDY_STATES)
_ENDED = _listed(f"attempt_{state}" for state in TERMINAL_ATTEMPT_STATES)
_WON = "('crowned', 'dethroned', 'succeeded')"
_TRIAL_ENDS = _listed(f"{who}_{state}" for who in ("attempt", "trial") for state in FINAL_ATTEMPT_STATES)

SERVICE_RULES = (
    Rule(
        name="live-in-a-still-study",
        holds="A study that has ended or is paused has no live attempts.",
        broken=f"""
            SELECT s.name, a.trial_number, 'attempt ' || a.ordinal || ' is ' || a.state || ' in a study '
                || 'that is ' || s.state
            FROM attempts a JOIN studies s ON s.id = a.study_id
            WHERE a.state IN {_LIVE} AND (s.state IN {_OVER} OR s.state = '{StudyState.PAUSED}')
        """,
    ),
    Rule(
        name="one-end",
        holds="A trial ends once: no attempt follows the one that ended it.",
        broken=f"""
            SELECT s.name, later.trial_number, 'attempt ' || later.ordinal || ' (' || later.state
                || ') follows attempt ' || final.ordinal || ', which ended the trial as ' || final.state
            FROM attempts final
            JOIN attempts later ON later.study_id = final.study_id
                AND later.trial_number = final.trial_number AND later.ordinal > final.ordinal
            JOIN studies s ON s.id = final.study_id
            WHERE final.state IN {_FINAL}
        """,
    ),
    Rule(
        name="recorded-once",
        holds="The end of a trial is recorded once.",
        broken=f"""
            SELECT s.name, e.trial_number, 'its end was recorded ' || count(*) || ' times'
            FROM events e JOIN studies s ON s.id = e.study_id
            WHERE e.kind IN {_TRIAL_ENDS}
            GROUP BY s.name, e.trial_number HAVING count(*) > 1
        """,
    ),
    Rule(
        name="events-in-order",
        holds="Every event has a place in the order of all events, which the counter has passed.",
        broken="""
            SELECT coalesce(s.name, 'no study'), e.trial_number, 'the event ' || e.kind || ' has '
                || coalesce('the position ' || e.position, 'no position')
            FROM (
                SELECT study_id, trial_number, kind, position FROM events
                UNION ALL SELECT NULL, NULL, kind, position FROM schedule_events
            ) e LEFT JOIN studies s ON s.id = e.study_id
            WHERE e.position IS NULL OR e.position > coalesce((SELECT max(last) FROM event_counter), 0)
        """,
    ),
    Rule(
        name="ordinals",
        holds="The attempts of a trial are numbered 1, 2, 3 without a gap.",
        broken="""
            SELECT s.name, a.trial_number, count(*) || ' attempts, the last of which is number '
                || max(a.ordinal)
            FROM attempts a JOIN studies s ON s.id = a.study_id
            GROUP BY s.name, a.trial_number HAVING count(*) <> max(a.ordinal) OR min(a.ordinal) <> 1
        """,
    ),
    Rule(
        name="no-overlap",
        # By the order of the events, not by their times: coordinators' clocks need not agree.
        holds="An attempt is dispatched only after the previous one has ended, and ends once.",
        broken=f"""
            SELECT s.name, moves.trial_number, moves.kind || ' was recorded '
                || CASE WHEN moves.previous IS NULL THEN 'first' ELSE 'straight after ' || moves.previous END
            FROM (
                SELECT study_id, trial_number, kind,
                    lag(kind) OVER (PARTITION BY study_id, trial_number ORDER BY id) AS previous
                FROM events WHERE kind = 'attempt_dispatched' OR kind IN {_ENDED}
            ) moves JOIN studies s ON s.id = moves.study_id
            WHERE CASE WHEN moves.kind = 'attempt_dispatched'
                THEN moves.previous = 'attempt_dispatched'
                ELSE coalesce(moves.previous, '') <> 'attempt_dispatched' END
        """,
    ),
    Rule(
        name="times-of-attempts",
        holds="An attempt has an end time if and only if it has ended, and a cause of loss only if lost.",
        broken=f"""
            SELECT s.name, a.trial_number, 'attempt ' || a.ordinal || ' is ' || a.state || ', ended at '
                || coalesce(CAST(a.ended_at AS TEXT), 'no time') || ', lost by '
                || coalesce(a.loss_cause, 'nothing')
            FROM attempts a JOIN studies s ON s.id = a.study_id
            WHERE (a.state IN {_LIVE}) <> (a.ended_at IS NULL)
                OR (a.loss_cause IS NOT NULL AND a.state <> 'lost')
        """,
    ),
    Rule(
        name="times-of-studies",
        holds="A study has the start, pause and end times that its state requires.",
        broken=f"""
            SELECT s.name, NULL, 'it is ' || s.state || ', started at '
                || coalesce(CAST(s.started_at AS TEXT), 'no time') || ', paused at '
                || coalesce(CAST(s.paused_at AS TEXT), 'no time') || ', ended at '
                || coalesce(CAST(s.ended_at AS TEXT), 'no time')
            FROM studies s
            WHERE (s.state IN {_OVER}) <> (s.ended_at IS NOT NULL)
                OR (s.state = '{StudyState.RUNNING}' AND s.started_at IS NULL)
                OR (s.state = '{StudyState.PAUSED}' AND s.paused_at IS NULL)
        """,
    ),
    Rule(
        name="leases",
        holds="A lease has both an owner and an expiry, or neither; nobody holds a paused study.",
        broken=f"""
            SELECT s.name, NULL, 'it is ' || s.state || ', held by ' || coalesce(s.lease_owner, 'nobody')
                || ' until ' || coalesce(CAST(s.lease_expires_at AS TEXT), 'no time')
            FROM studies s
            WHERE (s.lease_owner IS NULL) <> (s.lease_expires_at IS NULL)
                OR (s.state = '{StudyState.PAUSED}' AND s.lease_owner IS NOT NULL)
        """,
    ),
    Rule(
        name="reports-of-attempts",
        holds="Each rung report belongs to an attempt of the same trial.",
        broken="""
            SELECT s.name, r.trial_number, 'the report at ' || r.rung || ' examples is of attempt row '
                || r.attempt_id || ', which is not this trial''s'
            FROM rung_reports r JOIN studies s ON s.id = r.study_id
            LEFT JOIN attempts a ON a.id = r.attempt_id AND a.study_id = r.study_id
                AND a.trial_number = r.trial_number
            WHERE a.id IS NULL
        """,
    ),
    Rule(
        name="rows-of-trials",
        holds="Every trial that has an attempt has a row.",
        broken="""
            SELECT s.name, a.trial_number, 'it has ' || count(*) || ' attempts and no row'
            FROM attempts a JOIN studies s ON s.id = a.study_id
            LEFT JOIN trials t ON t.study_id = a.study_id AND t.number = a.trial_number
            WHERE t.number IS NULL GROUP BY s.name, a.trial_number
        """,
    ),
    Rule(
        name="row-as-recorded",
        holds="A trial's row has the state of its last attempt, or of the event that ended the trial.",
        broken=f"""
            SELECT s.name, t.number, 'its row says ' || t.state || ', its last attempt '
                || coalesce(a.state, 'nothing')
            FROM trials t JOIN studies s ON s.id = t.study_id
            LEFT JOIN attempts a ON a.study_id = t.study_id AND a.trial_number = t.number
                AND a.ordinal = (SELECT max(ordinal) FROM attempts
                    WHERE study_id = t.study_id AND trial_number = t.number)
            WHERE t.state <> coalesce(a.state, 'waiting')
                AND NOT (t.state IN {_FINAL} AND coalesce(a.state, 'lost') IN {_UNFINISHED}
                    AND EXISTS (SELECT 1 FROM events e WHERE e.study_id = t.study_id
                        AND e.trial_number = t.number AND e.kind = 'trial_' || t.state))
        """,
    ),
    Rule(
        name="sweeps",
        holds="A study that a schedule has made has the schedule's name and the instant of its firing.",
        broken="""
            SELECT s.name, NULL, 'it is of schedule ' || s.schedule_id || ', called '
                || coalesce(s.schedule_name, 'nothing') || ', for '
                || coalesce(CAST(s.fired_for AS TEXT), 'no time')
            FROM studies s
            WHERE s.schedule_id IS NOT NULL AND (s.schedule_name IS NULL OR s.fired_for IS NULL)
        """,
    ),
    Rule(
        name="windows",
        holds="Only a sweep of a schedule has a window of its own.",
        broken="""
            SELECT s.name, NULL, 'its window begins at ' || CAST(s.window_from AS TEXT)
            FROM studies s WHERE s.window_from IS NOT NULL AND s.fired_for IS NULL
        """,
    ),
    Rule(
        name="waiting-firings",
        holds="Only an enabled schedule has a firing that waits.",
        broken="""
            SELECT '', NULL, 'the schedule ' || c.name || ' is disabled, and its firing of '
                || CAST(c.queued_for AS TEXT) || ' waits'
            FROM schedules c WHERE c.queued_for IS NOT NULL AND NOT c.enabled
        """,
    ),
    Rule(
        name="deletions",
        holds="A study that is deleted has ended, and has the time until which it can be restored.",
        broken=f"""
            SELECT s.name, NULL, 'it is ' || s.state || ', deleted at '
                || coalesce(CAST(s.deleted_at AS TEXT), 'no time') || ', to be removed at '
                || coalesce(CAST(s.removal_at AS TEXT), 'no time')
            FROM studies s
            WHERE (s.deleted_at IS NULL) <> (s.removal_at IS NULL)
                OR (s.deleted_at IS NULL) <> (s.deleted_by IS NULL)
                OR (s.deleted_at IS NULL AND s.removing_at IS NOT NULL)
                OR (s.deleted_at IS NOT NULL AND s.state NOT IN {_OVER})
        """,
    ),
    Rule(
        name="children-of-studies",
        holds="Every attempt, event, report, evaluation, row of a trial, tag, stop and recipe belongs to an"
        " existing study.",
        broken="""
            SELECT '', child.trial_number, child.what || ' of study ' || child.study_id || ', which is gone'
            FROM (
                SELECT study_id, trial_number, 'an attempt' AS what FROM attempts
                UNION ALL SELECT study_id, trial_number, 'an event' FROM events
                UNION ALL SELECT study_id, trial_number, 'a report' FROM rung_reports
                UNION ALL SELECT study_id, number, 'the row of a trial' FROM trials
                UNION ALL SELECT study_id, trial_number, 'an evaluation' FROM evaluations
                UNION ALL SELECT study_id, NULL, 'a tag' FROM study_tags
                UNION ALL SELECT study_id, trial_number, 'a stop' FROM trial_stops
                UNION ALL SELECT study_id, trial_number, 'a recipe' FROM enqueued_recipes
            ) child LEFT JOIN studies s ON s.id = child.study_id
            WHERE child.study_id IS NOT NULL AND s.id IS NULL
        """,
    ),
    Rule(
        name="reigns",
        holds="A champion's reign that has ended says why, and the champion of a schedule that was removed "
        "reigns no more.",
        broken="""
            SELECT r.study_name, r.trial_number, 'reign ' || r.id || ' of schedule ' || r.schedule_id
                || ' is open until ' || coalesce(CAST(r.until AS TEXT), 'today') || ', ended because '
                || coalesce(r.ended_why, 'of nothing')
            FROM reigns r LEFT JOIN schedules s ON s.id = r.schedule_id
            WHERE (r.until IS NULL) <> (r.ended_why IS NULL) OR (r.until IS NULL AND s.id IS NULL)
        """,
    ),
    Rule(
        name="contests",
        holds="A sweep decides about its schedule's champion when it ends, and its winner reigns if it won.",
        broken=f"""
            SELECT c.study_name, c.challenger_trial, 'it was ' || c.decision || ', the study is '
                || coalesce(s.state, 'gone') || ', and it began ' || count(r.id) || ' reigns'
            FROM contests c LEFT JOIN studies s ON s.id = c.study_id
            LEFT JOIN reigns r ON r.contest_id = c.id
            GROUP BY c.id, c.study_name, c.challenger_trial, c.decision, s.state
            HAVING count(r.id) <> CASE WHEN c.decision IN {_WON} THEN 1 ELSE 0 END
                OR (s.state IS NOT NULL AND s.state NOT IN {_OVER})
        """,
    ),
)

OPTUNA_RULES = (
    Rule(
        name="numbers",
        holds="Optuna's trials of a study are numbered 0, 1, 2 without a gap.",
        broken="""
            SELECT s.study_name, NULL, count(*) || ' trials with ' || count(DISTINCT t.number)
                || ' numbers, the highest of which is ' || coalesce(CAST(max(t.number) AS TEXT), 'none')
            FROM trials t JOIN studies s ON s.study_id = t.study_id
            GROUP BY s.study_name
            HAVING count(DISTINCT t.number) <> count(*) OR max(t.number) <> count(*) - 1
        """,
    ),
    Rule(
        name="values",
        # Optuna keeps the last report of a pruned trial as its value.
        holds="A completed trial has a value for each objective; a running or failed trial has none.",
        broken="""
            SELECT s.study_name, t.number, 'it is ' || t.state || ' with ' || t.given || ' of '
                || t.wanted || ' values'
            FROM (
                SELECT study_id, number, state,
                    (SELECT count(*) FROM trial_values v WHERE v.trial_id = trials.trial_id) AS given,
                    (SELECT count(*) FROM study_directions d WHERE d.study_id = trials.study_id) AS wanted
                FROM trials
            ) t JOIN studies s ON s.study_id = t.study_id
            WHERE t.state <> 'PRUNED'
                AND t.given <> CASE WHEN t.state = 'COMPLETE' THEN t.wanted ELSE 0 END
        """,
    ),
    Rule(
        name="finished",
        holds="A trial has an end time if and only if it has finished, and no trial is WAITING.",
        broken="""
            SELECT s.study_name, t.number, 'it is ' || t.state || ', ended at '
                || coalesce(CAST(t.datetime_complete AS TEXT), 'no time')
            FROM trials t JOIN studies s ON s.study_id = t.study_id
            WHERE t.state = 'WAITING' OR (t.state = 'RUNNING') <> (t.datetime_complete IS NULL)
        """,
    ),
)

COMPARISONS = {
    "known-trials": "Every attempt and report belongs to a trial that Optuna has.",
    "known-studies": "The service still knows every study that it created in Optuna's storage.",
    "told-as-recorded": "Optuna's outcome of a trial agrees with the trial's last attempt or event.",
    "told": "Optuna was told the end of every ended trial of a study that has ended or is paused.",
    "none-left-running": "No trial of a study that has ended is RUNNING in Optuna.",
    "not-dead-while-alive": "No trial that is finished in Optuna has a live attempt.",
    "value-as-measured": "The value in Optuna is the one that the attempt measured.",
    "row-as-told": "The row of a trial that has ended has the values, rungs and repeats that Optuna has.",
    "rungs": "Every rung report is also in Optuna.",
    "fences": "No fence in Optuna's storage has a higher number than the study's lease.",
    "distinct-points": "No two trials of a grid have the same point, no two repeats the same seed, no two "
    "evaluations the same role.",
    "trial-count": "A study has no more trials than its definition plans.",
    "parallel-trials": "No more attempts are alive than `budget.max_parallel_trials` allows.",
    "retries": "No trial was lost more often than `budget.max_retries` allows.",
    "readable": "The definition of a study that has not ended can be read.",
}

SENTENCES = {rule.name: rule.holds for rule in (*SERVICE_RULES, *OPTUNA_RULES)} | COMPARISONS | CLOCKS
"""What each rule says, by its name."""
