"""Whole studies for which people enqueue recipes, on a cluster that trains nothing."""

from __future__ import annotations

import random
from collections.abc import Callable
from typing import Any

import pytest
from sqlalchemy import update

from service.control import recipes, requests
from service.control.schemas import RecipeView
from service.db.models import EnqueuedRecipe
from service.errors import AlreadyTried, NoTrialsLeft
from service.maintenance import integrity
from service.rest.preconditions import ANYTHING
from service.states import StudyState
from service.studies.commands import request_cancel
from tests.support.service.coordinator import DEFINITION, GRID, CoordinatorLab, Killed

RANDOM = {**DEFINITION["search"], "algorithm": "random", "trials": 6}
POINT = {"learning_rate": 0.01, "lora_r": 8}


def enqueue(lab: CoordinatorLab, study_id: str, **params: Any) -> RecipeView:
    return lab.database.transact(
        lambda session: recipes.enqueue(session, study_id, params, ANYTHING, asked_by="ada")
    )


def enqueued(lab: CoordinatorLab, study_id: str) -> list[tuple[str, int | None, str | None]]:
    with lab.database.read() as session:
        found = recipes.list_recipes(session, lab.study(study_id), after=0, limit=100)
    return [(recipe.state, recipe.trial_number, recipe.reason) for recipe in found]


def test_a_recipe_is_the_next_trial_and_one_of_the_search_s(
    make_lab: Callable[..., CoordinatorLab],
) -> None:
    lab = make_lab(2)
    study_id = lab.submit(search=RANDOM, budget={"max_parallel_trials": 2})
    lab.rounds(lambda: len(lab.attempts()) == 2)
    enqueue(lab, study_id, **POINT)
    enqueue(lab, study_id, lora_r=4)
    lab.run(study_id)
    values = lab.values()
    assert (len(values), values[2][2], values[3][2]["lora_r"]) == (6, POINT, 4)
    assert enqueued(lab, study_id) == [("asked", 2, None), ("asked", 3, None)]
    assert integrity.find_violations(lab.settings) == []


def test_a_grid_still_visits_each_of_its_points_once(make_lab: Callable[..., CoordinatorLab]) -> None:
    lab = make_lab()
    study_id = lab.submit(search=GRID)
    enqueue(lab, study_id, epochs=2, lora_r=8)
    lab.run(study_id)
    points = [params for _, _, params in lab.values().values()]
    assert (points[0]["epochs"], points[0]["lora_r"]) == (2, 8)
    assert len({tuple(sorted(point.items())) for point in points}) == len(points) == 8
    assert integrity.find_violations(lab.settings) == []


def test_no_more_are_taken_than_there_are_trials(make_lab: Callable[..., CoordinatorLab]) -> None:
    lab = make_lab()
    study_id = lab.submit(search={**RANDOM, "trials": 2})
    enqueue(lab, study_id, **POINT)
    with pytest.raises(AlreadyTried, match="enqueued already, as number 1"):
        enqueue(lab, study_id, **POINT)
    enqueue(lab, study_id, lora_r=4)
    with pytest.raises(NoTrialsLeft, match="has 2 trials: 0 asked for and 2 recipes enqueued"):
        enqueue(lab, study_id, lora_r=8)


def test_what_an_ended_study_did_not_come_to_is_said(make_lab: Callable[..., CoordinatorLab]) -> None:
    lab = make_lab()
    study_id = lab.submit(search=RANDOM)
    enqueue(lab, study_id, **POINT)
    with lab.database.write() as session:
        request_cancel(session, study_id)
    lab.run(study_id)
    assert enqueued(lab, study_id) == [("dropped", None, "the study ended before it")]
    said = "the recipe enqueued by 'ada' as number 1 gets no trial: the study ended before it"
    assert lab.events("recipe_dropped") == [said]


def test_a_recipe_whose_configuration_a_trial_got_meanwhile_is_dropped(
    make_lab: Callable[..., CoordinatorLab],
) -> None:
    lab = make_lab(1)
    space = {"lora_r": {"choices": [4, 8, 16]}}
    study_id = lab.submit(search={"algorithm": "random", "trials": 3, "space": space})
    for rank in (4, 8):
        enqueue(lab, study_id, lora_r=rank)
    with lab.database.write() as session:  # as if the first had come a moment later
        session.execute(update(EnqueuedRecipe).values(params={"lora_r": 4}))
    lab.run(study_id)
    assert enqueued(lab, study_id) == [
        ("asked", 0, None),
        ("dropped", None, "this configuration has had a trial"),
    ]
    assert sorted(params["lora_r"] for _, _, params in lab.values().values()) == [4, 8, 16]


def test_a_coordinator_that_died_after_the_ask_asks_no_second_time(
    make_lab: Callable[..., CoordinatorLab], monkeypatch: pytest.MonkeyPatch
) -> None:
    lab = make_lab()
    study_id = lab.submit(search=RANDOM)
    enqueue(lab, study_id, **POINT)

    def die(*_: Any) -> None:
        raise Killed

    with monkeypatch.context() as deadly:
        deadly.setattr(requests, "note_asked", lambda _session, _study, found: die() if found else None)
        with pytest.raises(Killed):
            lab.rounds(lambda: False, limit=20)
    lab.crash()
    lab.run(study_id)
    assert enqueued(lab, study_id) == [("asked", 0, None)]
    assert [params for _, _, params in lab.values().values()].count(POINT) == 1


@pytest.mark.parametrize("seed", range(4))
def test_recipes_are_asked_for_once_through_deaths_of_coordinators(
    make_lab: Callable[..., CoordinatorLab], monkeypatch: pytest.MonkeyPatch, seed: int
) -> None:
    lab = make_lab()
    study_id = lab.submit(search=RANDOM)
    enqueue(lab, study_id, **POINT)
    enqueue(lab, study_id, lora_r=4)
    lab.run_through_deaths(study_id, random.Random(seed), monkeypatch, chance=0.05)
    assert lab.study(study_id).state == StudyState.COMPLETED
    assert [row[:2] for row in enqueued(lab, study_id)] == [("asked", 0), ("asked", 1)]
    values = lab.values()
    assert (values[0][2], values[1][2]["lora_r"], len(values)) == (POINT, 4, 6)
    assert integrity.find_violations(lab.settings) == []
