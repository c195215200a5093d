"""A schedule's champion through its nights: the right one reigns each morning, whoever dies on the way."""

from __future__ import annotations

import random
from collections.abc import Callable
from dataclasses import dataclass, field
from datetime import UTC, datetime, timedelta
from functools import partial
from pathlib import Path
from typing import Any

import pytest
from sqlalchemy import select

from search_spaces.parsing.document import parse_definition
from service.db import reigns
from service.db.kinds import ContestDecision as Decision
from service.db.models import ContestRow, EventRow, Reign, Schedule, Study
from service.optuna_store.studies import read_trials
from service.schedules.sweeps import fire
from service.states import StudyState
from service.studies.results import best_of_each, counts_of
from tests.support.fakes.training import evaluated, loss_of
from tests.support.service.coordinator import DEFINITION, CoordinatorLab
from workers.contract import OutcomeStatus, TrialOrder, TrialOutcome

ROWS = 200


@dataclass
class World:
    """What adapters really are worth, by their places, and what tonight's eval rows make of them."""

    data: str = "monday"
    shift: float = 0.0
    """Of every loss: today's rows are harder."""
    noise: float = 0.01
    """Of a row's loss from adapter to adapter."""
    better: float = 0.0
    """By how much tonight's adapters really are better than those of the night before."""
    lucky: float = 0.0
    """By how much the search's own values are too good tonight."""
    rows: int = ROWS
    unusable: set[str] = field(default_factory=set)
    worth: dict[str, float] = field(default_factory=dict)

    def ending(self, order: TrialOrder) -> TrialOutcome | None:
        if order.evaluates is not None:
            return self._evaluation(order)
        place = f"{order.artifact_dir}/best"
        self.worth[place] = loss_of(order.recipe, 100) - self.better
        value = self.worth[place] + self.shift - self.lucky
        return TrialOutcome(
            attempt_id=order.attempt_id,
            status=OutcomeStatus.COMPLETED,
            reason="trained",
            value=value,
            metrics={"eval_loss": value},
            best_adapter_dir=place,
        )

    def _evaluation(self, order: TrialOrder) -> TrialOutcome:
        place = str(order.evaluates)
        if place in self.unusable:
            return TrialOutcome(
                attempt_id=order.attempt_id,
                status=OutcomeStatus.FAILED,
                reason="The adapter is gone.",
                unusable_adapter=True,
            )
        value = self.worth[place] + self.shift
        return TrialOutcome(
            attempt_id=order.attempt_id,
            status=OutcomeStatus.COMPLETED,
            reason="evaluated",
            value=value,
            metrics={"eval_loss": value},
            evaluated=evaluated(value, data=self.data, rows=self.rows, noise=self.noise),
        )


class Nights:
    """A schedule with a champion, and its nights one after another."""

    def __init__(self, lab: CoordinatorLab, world: World, folder: Path, **document: Any) -> None:
        self.lab, self.world = lab, world
        for name in ("train", "eval"):
            (folder / f"{name}.jsonl").write_text("{}\n")
        data = {name: str(folder / f"{name}.jsonl") for name in ("train", "eval")}
        search = {**DEFINITION["search"], "algorithm": "random", "trials": 3}
        definition = parse_definition({**DEFINITION, "data": data, "search": search, **document})
        with lab.database.write() as session:
            schedule = Schedule(
                name="nightly",
                cron="30 2 * * *",
                timezone="UTC",
                definition=definition.model_dump(mode="json"),
            )
            session.add(schedule)
        self.schedule_id = schedule.id
        self.at = datetime(2026, 1, 1, 2, 30, tzinfo=UTC)

    def change(self, **columns: Any) -> None:
        with self.lab.database.write() as session:
            for name, value in columns.items():
                setattr(session.get_one(Schedule, self.schedule_id), name, value)

    def begin(self) -> str:
        self.change(next_fire_at=self.at)
        study = self.lab.database.transact(partial(fire, schedule_id=self.schedule_id, now=self.at))
        self.at += timedelta(days=1)
        assert study is not None
        return study.id

    def next(self, **world: Any) -> ContestRow:
        """Tonight's sweep, to its end: what it decided."""
        for name, value in world.items():
            setattr(self.world, name, value)
        self.lab.run(self.begin())
        return self.contests[-1]

    @property
    def contests(self) -> list[ContestRow]:
        with self.lab.database.read() as session:
            return list(session.scalars(select(ContestRow).order_by(ContestRow.id)))

    @property
    def reigns(self) -> list[Reign]:
        with self.lab.database.read() as session:
            return list(session.scalars(select(Reign).order_by(Reign.id)))

    @property
    def champion(self) -> Reign:
        with self.lab.database.read() as session:
            reign = reigns.reigning(session, self.schedule_id)
        assert reign is not None
        return reign


Make = Callable[..., Nights]


@pytest.fixture
def nights(make_lab: Callable[..., CoordinatorLab], tmp_path: Path) -> Make:
    def make(cpus: int = 1, **document: Any) -> Nights:
        world = World()
        folder = tmp_path / f"data-{random.getrandbits(64)}"
        folder.mkdir()
        return Nights(make_lab(cpus, ending=world.ending), world, folder, **document)

    return make


def test_the_right_one_reigns_after_each_of_five_nights(nights: Make) -> None:
    schedule = nights()
    first = schedule.next()
    assert (first.decision, first.data_changed, first.champion_value) == (Decision.CROWNED, None, None)
    crowned = schedule.champion
    assert (crowned.study_id, crowned.trial_number) == (first.study_id, first.challenger_trial)

    lucky = schedule.next(lucky=0.5, better=-0.2)  # the search's own values look better, and are worse
    assert (lucky.decision, lucky.data_changed) == (Decision.DEFENDED, False)
    assert schedule.champion.id == crowned.id

    harder = schedule.next(lucky=0.0, better=0.0, data="wednesday", shift=1.0)
    assert (harder.decision, harder.data_changed) == (Decision.DEFENDED, True)
    assert harder.champion_value == pytest.approx(first.challenger_value + 1.0)  # type: ignore[operator]

    real = schedule.next(better=2.0)
    assert (real.decision, real.data_changed) == (Decision.DETHRONED, False)
    assert "better by" in real.why
    assert "95 % interval" in real.why
    assert (schedule.champion.study_id, schedule.champion.contest_id) == (real.study_id, real.id)

    regression = schedule.next(better=0.0, data="friday", shift=-0.5)
    assert (regression.decision, regression.data_changed) == (Decision.DEFENDED, True)
    assert schedule.champion.study_id == real.study_id
    ended = schedule.reigns[0]
    assert (ended.until == schedule.champion.since, ended.ended_why) == (True, real.why)


def test_a_sweep_evaluates_the_champion_first_and_its_winner_last(nights: Make) -> None:
    schedule = nights()
    schedule.next()
    second = schedule.next(better=-3.0)
    study = schedule.lab.study(second.study_id)
    found = read_trials(schedule.lab.storage, study.name)
    assert [(t.evaluates or {}).get("role") for t in found] == ["champion", None, None, None, "challenger"]
    orders = [o for o in schedule.lab.cluster.orders if o.study_id == study.id]
    assert [o.evaluates is not None for o in orders] == [True, False, False, False, True]
    assert orders[0].evaluates == schedule.reigns[0].adapter
    assert orders[0].recipe.lora_r == schedule.reigns[0].lineage["recipe"]["lora_r"]
    kinds = ("champion_evaluated", "challenger_evaluated", "champion_defended", "study_completed")
    with schedule.lab.database.read() as session:
        events = select(EventRow.kind).where(EventRow.study_id == study.id, EventRow.kind.in_(kinds))
        assert session.scalars(events.order_by(EventRow.id)).all() == list(kinds)


def test_an_evaluation_is_no_trial_of_the_search(nights: Make) -> None:
    schedule = nights()
    schedule.next()
    contest = schedule.next(better=-3.0)  # so that the champion's value is the best of all
    study = schedule.lab.study(contest.study_id)
    with schedule.lab.database.read() as session:
        best = best_of_each(session, {study.id: "minimize"})[study.id]
        counts = counts_of(session, [study])[study.id]
    assert best.number == contest.challenger_trial
    assert (counts.total, counts.evaluations) == (5, 2)
    assert study.reason == "all 3 trials ended"


def test_a_sweep_searches_what_its_definition_searches_alone(nights: Make) -> None:
    schedule = nights(search={**DEFINITION["search"], "algorithm": "qmc", "trials": 3})
    schedule.next()
    contest = schedule.next()
    sweep = schedule.lab.study(contest.study_id)
    alone = schedule.lab.submit(**{**sweep.definition, "name": "alone"})
    schedule.lab.run(alone)
    params = [
        [t.params for t in read_trials(schedule.lab.storage, name) if t.searched]
        for name in (sweep.name, "alone")
    ]
    assert params[0] == params[1]


def test_a_sweep_that_ends_by_its_budget_decides_all_the_same(nights: Make) -> None:
    schedule = nights(budget={"max_parallel_trials": 1, "timeout": "1h"})
    lab = schedule.lab
    study_id = schedule.begin()
    lab.rounds(lambda: any(a.state == "completed" for a in lab.attempts()))
    lab.let_time_pass(7200)
    lab.run(study_id)
    study = lab.study(study_id)
    assert study.state == StudyState.COMPLETED
    assert study.reason.startswith("budget.timeout")
    assert schedule.contests[-1].decision == Decision.CROWNED


def test_a_cancelled_sweep_leaves_the_champion_where_it_is(nights: Make) -> None:
    schedule = nights()
    schedule.next()
    study_id = schedule.begin()
    schedule.lab.rounds(lambda: schedule.lab.study(study_id).started_at is not None)
    with schedule.lab.database.write() as session:
        session.get_one(Study, study_id).cancel_requested = True
    schedule.lab.run(study_id)
    assert schedule.contests[-1].decision == Decision.UNCHALLENGED
    assert "cancelled" in schedule.contests[-1].why
    assert len(schedule.reigns) == 1


def test_a_champion_that_is_gone_is_followed(nights: Make) -> None:
    schedule = nights()
    schedule.next()
    contest = schedule.next(unusable={schedule.champion.adapter}, better=-1.0)
    assert contest.decision == Decision.SUCCEEDED
    assert "The adapter is gone" in contest.why
    assert schedule.champion.study_id == contest.study_id


def test_a_champion_of_another_base_is_followed_and_not_evaluated(nights: Make) -> None:
    schedule = nights()
    schedule.next()
    with schedule.lab.database.write() as session:
        row = session.get_one(Schedule, schedule.schedule_id)
        row.definition = {**row.definition, "model": {**row.definition["model"], "id": "org/other"}}
    contest = schedule.next(better=-1.0)
    assert (contest.decision, contest.champion_value) == (Decision.SUCCEEDED, None)
    assert "its base model is org/model, and the schedule's is org/other now" in contest.why


def test_too_few_rows_decide_nothing(nights: Make) -> None:
    schedule = nights()
    schedule.next()
    contest = schedule.next(better=5.0, rows=19)
    assert contest.decision == Decision.DEFENDED
    assert "19 eval rows cannot tell them apart; 20 are needed" in contest.why


def test_a_champion_that_was_changed_during_a_sweep_stays(nights: Make) -> None:
    schedule = nights()
    schedule.next()
    schedule.world.better = 5.0
    study_id = schedule.begin()
    lab = schedule.lab
    lab.rounds(lambda: any(a.study_id == study_id and a.state == "completed" for a in lab.attempts()))
    before = schedule.champion
    with lab.database.write() as session:
        reigns.enthrone(
            session,
            session.get_one(Schedule, schedule.schedule_id),
            study_id=before.study_id,
            study_name=before.study_name,
            trial_number=before.trial_number,
            adapter=before.adapter,
            lineage=before.lineage,
            why="promoted by 'ann'",
            ended_why="another was promoted",
            promoted_by="ann",
        )
    lab.run(study_id)
    assert schedule.contests[-1].decision == Decision.DEFENDED
    assert "was changed while this sweep ran" in schedule.contests[-1].why
    assert schedule.champion.promoted_by == "ann"


def test_a_schedule_without_a_champion_evaluates_nothing(nights: Make) -> None:
    schedule = nights()
    schedule.change(champion=False)
    study_id = schedule.begin()
    schedule.lab.run(study_id)
    assert schedule.contests == []
    assert not any(order.evaluates for order in schedule.lab.cluster.orders)


def test_it_is_decided_once_through_deaths(nights: Make, monkeypatch: pytest.MonkeyPatch) -> None:
    calm, stormy = nights(), nights(cpus=2)
    dice = random.Random(1)
    for schedule in (calm, stormy):
        schedule.world.noise = 0.0
    deaths = 0
    for better in (0.0, 2.0, 0.0):
        calm.next(better=better)
        stormy.world.better = better
        deaths += stormy.lab.run_through_deaths(stormy.begin(), dice, monkeypatch)
    assert deaths > 3
    told = [
        [(c.decision, c.challenger_trial, c.challenger_value, c.champion_value, c.why) for c in s.contests]
        for s in (calm, stormy)
    ]
    assert told[0] == told[1]
    assert [r.trial_number for r in stormy.reigns] == [r.trial_number for r in calm.reigns]
    assert [r.until is None for r in stormy.reigns] == [False, True]
