"""A trial's log: its events and rungs in the order of time, on both databases."""

from __future__ import annotations

from datetime import UTC, datetime, timedelta
from typing import Any

import pytest
from sqlalchemy import null
from starlette.testclient import TestClient

from service.db import trials
from service.db.database import Database
from service.db.models import Attempt, EventRow, RungReport, Study
from tests.support.service.api import expect_problem

BEGAN = datetime(2026, 7, 1, 22, tzinfo=UTC)


@pytest.fixture
def study(service_database: Database) -> Study:
    def write(session: Any) -> Study:
        study = Study(name="tone", definition={})
        session.add(study)
        session.flush()
        trials.add(session, study.id, 0, {})
        trials.add(session, study.id, 1, {})
        of = {"study_id": study.id, "trial_number": 0}
        attempt = Attempt(**of, ordinal=2, worker_id="w-1", artifact_dir="/a", dispatched_at=BEGAN)
        session.add(attempt)
        session.flush()
        for seconds, number, kind in ((0, 0, "attempt_running"), (1, 1, "moved"), (20, 0, "trial_failed")):
            event = EventRow(study_id=study.id, trial_number=number, kind=kind, message=f"at {seconds}")
            event.at = BEGAN + timedelta(seconds=seconds)
            session.add(event)
        for rung, at in ((8, null()), (64, BEGAN + timedelta(seconds=10))):
            session.add(
                RungReport(
                    **of,
                    rung=rung,
                    attempt_id=attempt.id,
                    examples_seen=rung,
                    step=rung // 4,
                    epoch=0.5,
                    metrics={"eval_loss": 1.25, "accuracy": None},
                    train_loss=1.5,
                    train_seconds=9.0,
                    at=at,
                )
            )
        return study

    return service_database.transact(write)


def test_events_and_rungs_of_a_trial_are_in_the_order_of_time(client: TestClient, study: Study) -> None:
    items = client.get(f"/v1/studies/{study.id}/trials/0/log").json()["items"]
    assert [(item["kind"], item["message"]) for item in items] == [
        ("rung", "8 examples, step 2, epoch 0.5: eval_loss 1.25, train_loss 1.5"),
        ("attempt_running", "at 0"),
        ("rung", "64 examples, step 16, epoch 0.5: eval_loss 1.25, train_loss 1.5"),
        ("trial_failed", "at 20"),
    ]
    assert (items[2]["attempt"], items[2]["rung"]) == (2, 64)
    assert items[2]["metrics"] == {"eval_loss": 1.25, "accuracy": None}
    assert [item["at"] is None for item in items] == [True, False, False, False]


def test_a_trial_that_is_not_there_has_no_log(client: TestClient, study: Study) -> None:
    problem = expect_problem(client.get(f"/v1/studies/{study.id}/trials/7/log"), 404)
    assert problem["detail"] == "The study 'tone' has no trial 7."
