"""The rules between the rows of both databases: kept by whole studies, and each one found when broken."""

from __future__ import annotations

from typing import Any

import pytest
from sqlalchemy import create_engine, text

from service.maintenance import integrity, schema
from service.settings import Settings
from service.states import TERMINAL_STUDY_STATES
from tests.support.service.searches import GRID as GRID_STUDY
from tests.support.service.searches import rows_of, service_of

GRID = "study_id = (SELECT id FROM studies WHERE name = 'grid')"
GRIDS_TRIAL = "study_id = (SELECT study_id FROM studies WHERE study_name = 'grid') AND number"
TRIAL_1 = f"trial_id = (SELECT trial_id FROM trials WHERE {GRIDS_TRIAL} = 1)"
INSERT_ATTEMPT = (
    "INSERT INTO attempts (study_id, trial_number, ordinal, state, loss_cause, reason, worker_id, gpus,"
    " artifact_dir, dispatched_at, ended_at, examples_seen, step, last_event_seq)"
)
INSERT_EVENT = "INSERT INTO events (at, study_id, trial_number, kind, message)"
REOPEN = "UPDATE studies SET state = '{}', ended_at = NULL WHERE name = 'grid'"
REVIVE = "UPDATE attempts SET state = 'running', ended_at = NULL WHERE ordinal = 1 AND " + GRID

BREAKS: dict[str, tuple[str, ...]] = {
    "live-in-a-still-study": (f"{REVIVE} AND trial_number = 1",),
    "one-end": (
        f"{INSERT_ATTEMPT} SELECT id, 1, 2, 'lost', NULL, '', 'w', 0, '/', created_at, ended_at, 0, 0, 0"
        " FROM studies WHERE name = 'grid'",
    ),
    "recorded-once": (
        f"{INSERT_EVENT} SELECT created_at, id, 1, 'trial_failed', '' FROM studies WHERE name = 'grid'",
    ),
    "ordinals": (f"UPDATE attempts SET ordinal = 7 WHERE {GRID} AND trial_number = 1",),
    "no-overlap": (
        f"{INSERT_EVENT} SELECT created_at, id, 1, 'attempt_lost', '' FROM studies WHERE name = 'grid'",
    ),
    "times-of-attempts": (f"UPDATE attempts SET ended_at = NULL WHERE {GRID} AND trial_number = 1",),
    "times-of-studies": ("UPDATE studies SET ended_at = NULL WHERE name = 'grid'",),
    "leases": ("UPDATE studies SET lease_owner = 'x', lease_expires_at = NULL WHERE name = 'grid'",),
    "reports-of-attempts": (f"UPDATE rung_reports SET attempt_id = 999 WHERE {GRID} AND trial_number = 1",),
    "rows-of-trials": (f"DELETE FROM trials WHERE {GRID} AND number = 1",),
    "row-as-recorded": (f"UPDATE trials SET state = 'waiting' WHERE {GRID} AND number = 1",),
    "row-as-told": (f"UPDATE trials SET value = 12.5 WHERE {GRID} AND number = 1",),
    "sweeps": ("UPDATE studies SET schedule_id = 'x' WHERE name = 'grid'",),
    "windows": ("UPDATE studies SET window_from = created_at WHERE name = 'grid'",),
    "waiting-firings": (
        "INSERT INTO schedules (id, name, cron, timezone, definition, enabled, created_at, queued_for)"
        " SELECT id, name, '0 2 * * *', 'UTC', '{}', false, created_at, created_at"
        " FROM studies WHERE name = 'grid'",
    ),
    "deletions": ("UPDATE studies SET deleted_at = created_at WHERE name = 'grid'",),
    "children-of-studies": ("UPDATE events SET study_id = 'gone' WHERE kind = 'study_running'",),
    "events-in-order": ("UPDATE events SET position = NULL WHERE kind = 'study_running'",),
    "reigns": (
        "INSERT INTO reigns (schedule_id, study_id, study_name, trial_number, adapter, lineage, since, why)"
        " SELECT 'gone', id, name, 1, '/a', '{}', created_at, '' FROM studies WHERE name = 'grid'",
    ),
    "contests": (
        "INSERT INTO contests (schedule_id, study_id, study_name, at, decision, why, metric)"
        " SELECT 'gone', id, name, created_at, 'crowned', '', 'eval_loss' FROM studies WHERE name = 'grid'",
    ),
    "numbers": (f"optuna: UPDATE trials SET number = 77 WHERE {GRIDS_TRIAL} = 1",),
    "values": (f"optuna: DELETE FROM trial_values WHERE {TRIAL_1}",),
    "finished": (f"optuna: UPDATE trials SET datetime_complete = NULL WHERE {TRIAL_1}",),
    "known-trials": (f"optuna: UPDATE trials SET number = 77 WHERE {GRIDS_TRIAL} = 1",),
    "known-studies": ("UPDATE studies SET name = 'renamed' WHERE name = 'grid'",),
    "told-as-recorded": (f"optuna: UPDATE trials SET state = 'FAIL' WHERE {GRIDS_TRIAL} = 1",),
    "told": (
        REOPEN.format("paused"),
        f"optuna: UPDATE trials SET state = 'RUNNING' WHERE {GRIDS_TRIAL} = 1",
    ),
    "none-left-running": (f"optuna: UPDATE trials SET state = 'RUNNING' WHERE {GRIDS_TRIAL} = 1",),
    "not-dead-while-alive": (REOPEN.format("running"), f"{REVIVE} AND trial_number = 1"),
    "value-as-measured": (f"optuna: UPDATE trial_values SET value = 12.5 WHERE {TRIAL_1}",),
    "rungs": (f"optuna: DELETE FROM trial_intermediate_values WHERE {TRIAL_1}",),
    "fences": ("optuna: UPDATE nightsweep_fences SET number = 99 WHERE study_name = 'grid'",),
    "distinct-points": (
        "optuna: UPDATE trial_params SET param_value = 0 WHERE trial_id IN"
        f" (SELECT trial_id FROM trials WHERE {GRIDS_TRIAL} IN (1, 2))",
    ),
    "trial-count": ("optuna: DELETE FROM trial_user_attributes WHERE key = 'repeat_of'",),
    "parallel-trials": (REOPEN.format("running"), f"{REVIVE} AND trial_number > 0"),
    "retries": (
        f"{INSERT_ATTEMPT} SELECT study_id, 1, 100 + id, 'lost', 'worker_died', '', 'w', 0, '/', at, at, 0,"
        f" 0, 0 FROM events WHERE {GRID}",
    ),
    "leases-in-reach": (
        REOPEN.format("running"),
        "UPDATE studies SET lease_owner = 'x', lease_expires_at = '2999-01-01 00:00:00.000000'"
        " WHERE name = 'grid'",
    ),
    "firings-in-reach": (
        "INSERT INTO schedules (id, name, cron, timezone, definition, enabled, created_at, next_fire_at)"
        " SELECT id, name, '0 2 * * *', 'UTC', '{}', true, created_at, '2999-01-01 02:00:00.000000'"
        " FROM studies WHERE name = 'grid'",
    ),
    "readable": (REOPEN.format("queued"), "UPDATE studies SET definition = '{}' WHERE name = 'grid'"),
}
"""Rule -> statements that break it, on the service's tables or on Optuna's."""


def _break(settings: Settings, statement: str) -> None:
    """One statement, on whose rows no foreign key is looked at."""
    url = settings.optuna_url if statement.startswith("optuna: ") else settings.database_url
    engine = create_engine(url)
    with engine.begin() as connection:
        if engine.dialect.name == "postgresql":
            connection.execute(text("SET LOCAL session_replication_role = replica"))
        result = connection.execute(text(statement.removeprefix("optuna: ")))
        assert result.rowcount > 0
    engine.dispose()


def test_a_study_that_lost_a_worker_breaks_no_rule(searched: Settings) -> None:
    assert integrity.find_violations(searched) == []


@pytest.mark.parametrize("rule", sorted(integrity.SENTENCES))
def test_each_rule_finds_what_breaks_it(searched: Settings, rule: str) -> None:
    for statement in BREAKS[rule]:
        _break(searched, statement)
    assert rule in {violation.rule for violation in integrity.find_violations(searched)}


ROWS = (
    f"DELETE FROM trials WHERE {GRID} AND number = 1",
    f"UPDATE trials SET state = 'waiting', findings = NULL WHERE {GRID} AND number = 2",
    f"UPDATE trials SET value = 12.5, rungs = '[]', ended_at = NULL WHERE {GRID} AND number = 0",
    "INSERT INTO trials (study_id, number, state, reason, params, costs, rungs, revision) SELECT id, 99,"
    " 'waiting', '', '{}', '[]', '[]', 1 FROM studies WHERE name = 'random'",
)


def test_a_repair_makes_the_rows_of_trials_again(searched: Settings) -> None:
    before = rows_of(searched)["service/trials"]
    assert schema.rebuild_trials(searched) == 0
    for statement in ROWS:
        _break(searched, statement)
    assert schema.rebuild_trials(searched) == len(ROWS)
    assert integrity.find_violations(searched) == []
    assert [_without_revision(row) for row in rows_of(searched)["service/trials"]] == [
        _without_revision(row) for row in before
    ]


def _without_revision(row: dict[str, Any]) -> dict[str, Any]:
    return {name: value for name, value in row.items() if name != "revision"}


def test_a_violation_says_where_it_is(searched: Settings) -> None:
    _break(searched, BREAKS["value-as-measured"][0])
    (violation,) = integrity.find_violations(searched)
    assert str(violation).startswith(
        "study grid, trial 1: Optuna has the values [12.5], the attempt measured "
    )


def test_a_running_service_breaks_no_rule_at_any_moment(settings: Settings) -> None:
    """Between two steps of the coordinator the databases may be out of step, but never against the rules."""
    with service_of(settings) as service:
        service.submit(GRID_STUDY)
        for _ in range(200):
            if service.states()["grid"] in TERMINAL_STUDY_STATES:
                break
            service.coordinator.round()
            assert integrity.find_violations(settings) == []
        assert service.states()["grid"] == "completed"
