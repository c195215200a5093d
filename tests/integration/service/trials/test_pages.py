"""Pages of trials in both orders, against the whole list; and what is kept of trials that have ended."""

from __future__ import annotations

import random
from collections.abc import Callable
from typing import Any, get_args

import pytest
from starlette.testclient import TestClient

from service.db.database import Database
from service.db.models import Attempt
from service.optuna_store.storage import Storage
from service.states import AttemptState
from service.trials.queries import TrialField
from service.trials.rendered import Rendered
from service.trials.schemas import TrialView
from tests.support.service.api import expect_problem
from tests.support.service.database_lab import Lab

Make = Callable[..., dict[str, Any]]


@pytest.mark.parametrize("direction", ["minimize", "maximize"])
def test_pages_are_the_whole_list_in_pieces(
    client: TestClient, definition: Make, service_database: Database, storage: Storage, direction: str
) -> None:
    objective = {"metric": "eval_loss" if direction == "minimize" else "exact_match"}
    document = definition(objective=objective, constraints={"perplexity": {"max": 10.0}})
    lab = Lab(client.post("/v1/studies", json=document).json(), service_database, storage)
    dice = random.Random(1)
    for _ in range(14):
        end = dice.choice([AttemptState.COMPLETED, AttemptState.COMPLETED, AttemptState.PRUNED])
        violations = {"perplexity": dice.choice([-1.0, 1.0])} if end is AttemptState.COMPLETED else None
        lab.complete(dice.choice([1.0, 1.5, 2.0, 2.5]), violations=violations, end=end)
    lab.ask()
    path = "/v1/studies/support-tone/trials"
    everything = client.get(path).json()["items"]
    assert [trial["number"] for trial in everything] == list(range(15))
    sign = 1 if direction == "minimize" else -1
    ranked = sorted(
        everything,
        key=lambda t: (t["value"] is None, not t["feasible"], sign * (t["value"] or 0.0), t["number"]),
    )
    assert len({trial["feasible"] for trial in everything if trial["value"] is not None}) == 2
    for sort, expected in (("number", everything), ("best", ranked)):
        for states in ([], ["completed"], ["pruned", "waiting"]):
            wanted = [trial for trial in expected if not states or trial["state"] in states]
            for limit in (1, 4, 100):
                found, cursor = [], None
                while True:
                    query = {"sort": sort, "state": states, "limit": limit}
                    query |= {} if cursor is None else {"cursor": cursor}
                    page = client.get(path, params=query).json()
                    found += page["items"]
                    if (cursor := page["next_cursor"]) is None:
                        break
                assert found == wanted
    assert client.get("/v1/studies/support-tone/best").json()["number"] == ranked[0]["number"]
    [listed] = client.get("/v1/studies").json()["items"]
    assert listed["best"]["trial_number"] == ranked[0]["number"]


def test_a_list_has_the_fields_that_were_asked_for(
    client: TestClient, definition: Make, service_database: Database, storage: Storage
) -> None:
    lab = Lab(client.post("/v1/studies", json=definition()).json(), service_database, storage)
    for value in (2.0, 1.0):
        lab.complete(value)
    assert get_args(TrialField) == tuple(TrialView.model_fields)
    path = "/v1/studies/support-tone/trials"
    everything = client.get(path).json()["items"]
    for asked in (["number"], ["rungs", "value"], list(TrialView.model_fields)):
        page = client.get(path, params={"fields": asked, "sort": "best", "limit": 1}).json()
        [best] = page["items"]
        assert best == {name: everything[1][name] for name in asked}
        assert page["next_cursor"] == 1


def test_a_field_that_trials_do_not_have_is_refused(client: TestClient, definition: Make) -> None:
    client.post("/v1/studies", json=definition())
    answer = client.get("/v1/studies/support-tone/trials?fields=value&fields=parms")
    [fault] = expect_problem(answer, 422)["faults"]
    assert (fault["path"], fault["value"], fault["nearest"]) == ("query.fields", "parms", "params")
    assert "final_metrics" in fault["allowed"]


def test_pages_of_attempts_are_all_attempts_in_the_order_in_which_they_were_sent(
    client: TestClient, definition: Make, service_database: Database, storage: Storage
) -> None:
    labs = []
    for name in ("support-tone", "another"):
        study = client.post("/v1/studies", json=definition(name=name)).json()
        labs.append(Lab(study, service_database, storage))
    for _ in range(5):
        for lab in labs:
            lab.attempt(lab.ask()[0])
    path = "/v1/studies/support-tone/attempts"
    trials = client.get("/v1/studies/support-tone/trials").json()["items"]
    wanted = [{**a, "trial_number": trial["number"]} for trial in trials for a in trial["attempts"]]
    assert len(wanted) == 5
    assert client.get(path).json() == {"items": wanted, "next_cursor": None}
    found, query = [], {"limit": 2}
    while True:
        page = client.get(path, params=query).json()
        found.append(page["items"])
        if page["next_cursor"] is None:
            break
        query["cursor"] = page["next_cursor"]
    assert found == [wanted[:2], wanted[2:4], wanted[4:]]


def test_what_is_kept_of_trials_is_bounded_and_the_last_used_stays() -> None:
    kept = Rendered(max_bytes=30)
    for number in range(3):
        kept.put(("s", number, 1), b"0123456789")
    assert kept.get(("s", 0, 1)) == b"0123456789"
    kept.put(("s", 3, 1), b"0123456789")
    assert kept.get(("s", 1, 1)) is None
    assert kept.get(("s", 0, 1)) is not None
    kept.put(("s", 0, 1), b"x")
    kept.put(("s", 4, 1), b"0123456789")
    assert [number for number in range(5) if kept.get(("s", number, 1)) is not None] == [0, 3, 4]


def test_a_trial_that_goes_on_is_shown_as_it_is_now(
    client: TestClient, definition: Make, service_database: Database, storage: Storage
) -> None:
    lab = Lab(client.post("/v1/studies", json=definition()).json(), service_database, storage)
    number, _ = lab.ask()
    lab.attempt(number)
    path = f"/v1/studies/support-tone/trials/{number}"
    assert client.get(path).json()["progress"]["step"] == 0
    with service_database.write() as session:
        for attempt in session.query(Attempt):
            attempt.step = 7
    assert client.get(path).json()["progress"]["step"] == 7
