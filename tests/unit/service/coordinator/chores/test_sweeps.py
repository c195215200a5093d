"""The nights of a schedule, through the real loop, SQL and Optuna: each goes on where those before ended."""

from __future__ import annotations

import random
import threading
from collections.abc import Callable, Iterator
from datetime import UTC, datetime, timedelta
from functools import partial
from pathlib import Path
from typing import Any

import pytest

from search_spaces.definition import StudyDefinition
from search_spaces.parsing.document import parse_definition
from search_spaces.preparation import Preparation
from service.coordinator.chores import fingerprints, preparation
from service.coordinator.chores.fingerprints import Fingerprints
from service.coordinator.policy.waiting import WAITING
from service.db.models import Schedule, Study
from service.optuna_store.studies import read_trials
from service.schedules.sweeps import fire
from service.schedules.templates import Files, with_files
from service.states import READING, StudyState
from service.studies.pauses import request_pause, request_resume
from tests.support.service.coordinator import DEFINITION, GRID, CoordinatorLab
from workers.contract import OutcomeStatus, TrialOrder, TrialOutcome

SEARCH = {**DEFINITION["search"], "algorithm": "random", "trials": 3}
THREE_OF_GRID = {**GRID, "trials": 3}
"""Of 8 points."""


class Nights:
    """A schedule in a lab, and its nights one after another."""

    def __init__(self, lab: CoordinatorLab, data: Path, document: dict[str, Any], **options: Any) -> None:
        self.lab = lab
        self.data = {name: data / f"{name}.jsonl" for name in ("train", "eval")}
        for name, path in self.data.items():
            path.write_text(f'{{"text": "{name}"}}\n')
        self.document = {
            **DEFINITION,
            "data": {name: str(path) for name, path in self.data.items()},
            "search": SEARCH,
            **document,
        }
        with lab.database.write() as session:
            schedule = Schedule(
                name="nightly", cron="30 2 * * *", timezone="UTC", definition=self._definition(), **options
            )
            session.add(schedule)
        self.schedule_id = schedule.id
        self.at = datetime(2026, 1, 1, 2, 30, tzinfo=UTC)

    def _definition(self) -> dict[str, Any]:
        return parse_definition(self.document).model_dump(mode="json")

    def change(self, options: dict[str, Any] | None = None, **sections: Any) -> None:
        """Change the schedule's definition, and its own columns."""
        self.document = {**self.document, **sections}
        with self.lab.database.write() as session:
            schedule = session.get_one(Schedule, self.schedule_id)
            schedule.definition = self._definition()
            for name, value in (options or {}).items():
                setattr(schedule, name, value)

    def begin(self) -> str:
        """The next night's sweep, queued."""
        with self.lab.database.write() as session:
            session.get_one(Schedule, self.schedule_id).next_fire_at = self.at

        def attempt(files: Files) -> Study | None:
            fired = partial(fire, schedule_id=self.schedule_id, now=self.at, files=files)
            return self.lab.database.transact(fired)

        study = with_files(attempt, [self.data["train"].parent.resolve()])
        self.at += timedelta(days=1)
        assert study is not None
        return study.id

    def next(self, each: Callable[[], None] = lambda: None) -> Study:
        """The next night, to its end."""
        study_id = self.begin()
        self.lab.run(study_id, each=each)
        return self.lab.study(study_id)

    def params(self, study: Study) -> list[dict[str, Any]]:
        """Of the search's trials."""
        trials = read_trials(self.lab.storage, study.name)
        return [dict(trial.params) for trial in trials if trial.searched]

    def said(self) -> list[str]:
        return self.lab.events(preparation.EARLIER_SWEEPS)


Make = Callable[..., Nights]


@pytest.fixture
def nights(make_lab: Callable[..., CoordinatorLab], tmp_path: Path) -> Iterator[Make]:
    def make(
        cluster: dict[str, Any] | None = None, options: dict[str, Any] | None = None, **document: Any
    ) -> Nights:
        folder = tmp_path / f"data-{random.getrandbits(64)}"
        folder.mkdir()
        return Nights(make_lab(1, **(cluster or {})), folder, document, **(options or {}))

    return make


def keys(params: list[dict[str, Any]]) -> list[tuple[Any, ...]]:
    return [tuple(sorted(one.items())) for one in params]


@pytest.mark.parametrize("warm", [{}, {"warm_start": {"from": "nightly"}}], ids=["cold", "warm"])
def test_three_firings_evaluate_different_configurations_and_none_twice(
    nights: Make, warm: dict[str, Any]
) -> None:
    schedule = nights(**warm)
    evaluated = [key for _ in range(3) for key in keys(schedule.params(schedule.next()))]
    assert len(set(evaluated)) == len(evaluated) == 9


@pytest.mark.parametrize("how", ["enqueue", "prior"])
def test_sweeps_with_a_file_each_know_by_its_content_what_was_evaluated(nights: Make, how: str) -> None:
    schedule = nights(search={**SEARCH, "algorithm": "tpe"}, warm_start={"from": "nightly", "as": how})
    folder = schedule.data["train"].parent
    schedule.change(data={**schedule.document["data"], "train": f"{folder}/{{date}}.jsonl"})
    rows = schedule.data["train"].read_bytes()
    for day, content in ((1, rows), (2, rows), (3, b'{"text": "another"}\n')):
        (folder / f"2026-01-0{day}.jsonl").write_bytes(content)
    first, second, third = (schedule.next() for _ in range(3))
    paths = [study.definition["data"]["train"] for study in (first, second, third)]
    assert paths == [str((folder / f"2026-01-0{day}.jsonl").resolve()) for day in (1, 2, 3)]
    assert [study.state for study in (first, second, third)] == [StudyState.COMPLETED] * 3
    same = keys([*schedule.params(first), *schedule.params(second)])
    assert len(set(same)) == len(same) == 6
    said = schedule.said()
    assert any("3 configurations are left out" in message for message in said)
    assert any("data.train has changed since the sweep before" in message for message in said)
    taken = schedule.lab.events(preparation.WARM_START)
    assert "no other completed sweep yet" in taken[0]
    if how == "prior":
        assert any("data.train has changed since" in message for message in taken)
    else:
        assert keys(schedule.params(third))[0] in same


def test_a_sweep_whose_file_is_not_there_has_failed_and_the_next_goes_on(nights: Make) -> None:
    schedule = nights()
    folder = schedule.data["train"].parent
    schedule.change(data={**schedule.document["data"], "train": f"{folder}/{{date}}.jsonl"})
    missing = schedule.lab.study(schedule.begin())
    assert (missing.state, "2026-01-01.jsonl does not exist" in missing.reason) == (StudyState.FAILED, True)
    (folder / "2026-01-02.jsonl").write_bytes(schedule.data["train"].read_bytes())
    assert schedule.next().state == StudyState.COMPLETED


def test_the_same_firings_evaluate_the_same_again_elsewhere(nights: Make) -> None:
    values = []
    for _ in range(2):
        schedule = nights(search={**SEARCH, "algorithm": "tpe"}, budget={"max_parallel_trials": 1})
        values.append([schedule.params(schedule.next()) for _ in range(3)])
    assert values[0] == values[1]


def test_a_sweep_is_repeated_by_submitting_its_definition(nights: Make) -> None:
    schedule = nights()
    schedule.next()
    second = schedule.next()
    assert second.definition["search"]["seed"] != 0
    again = schedule.lab.submit(**{**second.definition, "name": "again"})
    schedule.lab.run(again)
    assert schedule.params(schedule.lab.study(again)) == schedule.params(second)


def test_a_grid_is_gone_through_over_the_nights_and_then_says_that_nothing_is_left(nights: Make) -> None:
    schedule = nights(search=THREE_OF_GRID)
    made = [schedule.next() for _ in range(3)]
    assert [len(schedule.params(study)) for study in made] == [3, 3, 2]
    assert len({key for study in made for key in keys(schedule.params(study))}) == 8
    last = schedule.next()
    assert (last.state, schedule.params(last)) == (StudyState.COMPLETED, [])
    best = min(
        (trial.value, study.name, trial.number)
        for study in made
        for trial in read_trials(schedule.lab.storage, study.name)
        if trial.value is not None and trial.searched
    )
    assert last.reason == (
        "nothing is left to evaluate: earlier sweeps of the schedule 'nightly' have evaluated all 8 points "
        f"of the grid on the same data; the best of them, eval_loss {best[0]:.6g}, "
        f"is trial {best[2]} of {best[1]!r}"
    )
    assert schedule.said() == [
        f"{count} configurations are left out: earlier sweeps of the schedule have evaluated them on the "
        "same data"
        for count in (3, 6, 8)
    ]
    assert schedule.next().reason == last.reason


@pytest.mark.parametrize("algorithm", ["random", "qmc", "tpe", "gp"])
def test_a_finite_space_is_exhausted_over_the_nights(nights: Make, algorithm: str) -> None:
    schedule = nights(search={**THREE_OF_GRID, "algorithm": algorithm}, budget={"max_parallel_trials": 1})
    evaluated = [keys(schedule.params(schedule.next())) for _ in range(4)]
    assert [len(night) for night in evaluated] == [3, 3, 2, 0]
    assert len({key for night in evaluated for key in night}) == 8


@pytest.mark.parametrize("name", ["train", "eval"])
def test_changed_data_is_evaluated_again_and_data_as_it_was_is_not(nights: Make, name: str) -> None:
    schedule = nights(search=GRID)
    assert len(schedule.params(schedule.next())) == 8
    content = schedule.data[name].read_text()
    schedule.data[name].write_text(content + content)
    assert len(schedule.params(schedule.next())) == 8
    assert schedule.said() == [
        f"data.{name} has changed since the sweep before: what was evaluated on the other content may be "
        "evaluated again"
    ]
    schedule.data[name].write_text(content)
    assert schedule.params(schedule.next()) == []


def test_data_under_another_name_is_the_same_data(nights: Make) -> None:
    schedule = nights(search=GRID)
    schedule.next()
    moved = schedule.data["train"].rename(schedule.data["train"].with_name("moved.jsonl"))
    schedule.change(data={"train": str(moved), "eval": str(schedule.data["eval"])})
    assert schedule.params(schedule.next()) == []


def test_a_local_model_that_was_replaced_is_another_model(nights: Make, tmp_path: Path) -> None:
    weights = tmp_path / "model" / "model.safetensors"
    weights.parent.mkdir()
    weights.write_bytes(b"0" * 100)
    schedule = nights(search=GRID, model={"id": str(weights.parent)})
    schedule.next()
    assert schedule.params(schedule.next()) == []
    weights.write_bytes(b"1" * 100)
    assert len(schedule.params(schedule.next())) == 8
    assert schedule.said()[-1].startswith("model has changed since the sweep before")


def test_data_that_nobody_can_tell_of_is_taken_for_changed(nights: Make) -> None:
    hub = {"hub": "org/data", "split": "train"}
    schedule = nights(search=GRID, data={"train": hub, "eval": {**hub, "revision": "a" * 40}})
    for _ in range(2):
        assert len(schedule.params(schedule.next())) == 8
    assert schedule.said()[0] == (
        "nothing is left out, since it is not known whether its data has changed: data.train is a hub data "
        "set that may change at any time (give the commit as its revision)"
    )
    pinned = {**hub, "revision": "b" * 40}
    schedule.change(data={"train": pinned, "eval": {**hub, "revision": "a" * 40}})
    assert [len(schedule.params(schedule.next())) for _ in range(2)] == [8, 0]


def test_data_that_cannot_be_read_is_taken_for_changed(nights: Make) -> None:
    schedule = nights(search=GRID)
    schedule.next()
    schedule.data["eval"].unlink()
    assert len(schedule.params(schedule.next())) == 8  # whose trials would have failed with more than a fake
    assert schedule.said()[-1].endswith("data.eval cannot be read here (No such file or directory)")


def test_what_failed_or_was_cancelled_is_evaluated_by_the_next_night(nights: Make) -> None:
    broken = {4}

    def ending(order: TrialOrder) -> TrialOutcome | None:
        if order.recipe.lora_r not in broken:
            return None
        return TrialOutcome(attempt_id=order.attempt_id, status=OutcomeStatus.FAILED, reason="broken")

    schedule = nights({"ending": ending}, search=GRID)
    schedule.next()
    broken.clear()
    second = schedule.params(schedule.next())
    assert [params["lora_r"] for params in second] == [4] * 4
    assert schedule.params(schedule.next()) == []


def test_what_was_pruned_counts_under_the_same_pruning(nights: Make) -> None:
    pruning = {"algorithm": "median", "n_startup_trials": 1}
    worst_last = {**GRID, "space": {**GRID["space"], "learning_rate": {"choices": [1e-3, 1e-4]}}}
    schedule = nights(search=worst_last, pruning=pruning, budget={"max_parallel_trials": 1})
    first = schedule.next()
    ends = [t.user_attrs["outcome"] for t in read_trials(schedule.lab.storage, first.name)]
    pruned = ends.count("pruned")
    assert 0 < pruned < 8
    assert schedule.params(schedule.next()) == []
    schedule.change(pruning={"algorithm": "none"})
    assert len(schedule.params(schedule.next())) == pruned


@pytest.mark.parametrize(
    ("sections", "left"),
    [
        ({"budget": {"max_parallel_trials": 2}}, 0),
        ({"resources": {"workers": 1}}, 0),
        ({"objective": {"costs": ["trainable_parameters"]}}, 8),
        ({"evaluation": {"every_examples": 20}}, 8),
        ({"model": {"id": "org/model", "quantization": "none"}}, 8),
        ({"model": {"id": "org/other"}}, 8),
        ({"recipe": {"lora_dropout": 0.5}}, 8),
        ({"recipe": {"seed": 43}}, 8),
        ({"recipe": {"seed": 42}}, 0),
        ({"search": {**GRID, "space": {**GRID["space"], "lora_r": {"choices": [4, 16]}}}}, 4),
        ({"search": {**GRID, "space": {**GRID["space"], "batch_size": {"choices": [16, 32]}}}}, 8),
        ({"search": {**GRID, "algorithm": "random", "trials": 5}}, 0),
    ],
    ids=lambda value: str(value)[:40],
)
def test_a_changed_definition_evaluates_what_its_numbers_would_not_mean_the_same_for(
    nights: Make, sections: dict[str, Any], left: int
) -> None:
    schedule = nights(search=GRID)
    schedule.next()
    schedule.change(**sections)
    assert len(schedule.params(schedule.next())) == left


def test_everything_is_evaluated_again_where_the_schedule_says_so(nights: Make) -> None:
    schedule = nights(search=GRID, options={"repeat_configurations": True})
    assert [len(schedule.params(schedule.next())) for _ in range(2)] == [8, 8]
    assert schedule.said()[-1] == "nothing is left out: the schedule has repeat_configurations"
    schedule.change({"repeat_configurations": False})
    assert schedule.params(schedule.next()) == []


def test_another_schedules_sweeps_and_a_persons_studies_leave_nothing_out(nights: Make) -> None:
    schedule = nights(search=GRID)
    schedule.next()
    by_hand = schedule.lab.submit(**{**schedule.document, "name": "by-hand"})
    schedule.lab.run(by_hand)
    assert len(schedule.params(schedule.lab.study(by_hand))) == 8


def test_a_warm_start_evaluates_the_best_of_all_nights_again_on_changed_data_only(nights: Make) -> None:
    schedule = nights(search=THREE_OF_GRID, warm_start={"from": "nightly", "top_k": 2})
    made = [schedule.next() for _ in range(2)]
    assert [Preparation.model_validate(study.preparation).enqueued for study in made] == [(), ()]
    assert schedule.lab.events(preparation.WARM_START)[-1] == (
        f"warm start from the schedule 'nightly' (its sweep {made[0].name!r}): 2 of its best recipes are not "
        "evaluated again: earlier sweeps have done so on the same data"
    )
    ranked = sorted(
        (trial.value, age, trial.number, dict(trial.params))
        for age, study in enumerate(reversed(made))
        for trial in read_trials(schedule.lab.storage, study.name)
        if trial.value is not None and trial.searched
    )
    schedule.data["train"].write_text("other\n")
    third = schedule.next()
    assert schedule.params(third)[:2] == [params for *_, params in ranked[:2]]
    said = schedule.lab.events(preparation.WARM_START)[-1]
    both = f"(its sweep {made[1].name!r} and 1 before it on the same data)"
    assert said.startswith(f"warm start from the schedule 'nightly' {both}: its 2 best recipes are evaluated")


def test_a_prior_holds_the_results_of_all_nights_on_the_same_data(nights: Make) -> None:
    search = {**SEARCH, "algorithm": "tpe"}
    schedule = nights(search=search, warm_start={"from": "nightly", "as": "prior"})
    made = [schedule.next() for _ in range(3)]
    assert [len(Preparation.model_validate(study.preparation).prior) for study in made] == [0, 3, 6]
    schedule.data["train"].write_text("other\n")
    schedule.next()
    assert "data.train has changed since: these results are of the earlier content" in schedule.lab.events(
        preparation.WARM_START
    )


def test_a_night_that_found_nothing_left_is_no_warm_start_for_the_next(nights: Make) -> None:
    schedule = nights(search=GRID, warm_start={"from": "nightly", "top_k": 1})
    schedule.next()
    assert schedule.params(schedule.next()) == []
    schedule.data["train"].write_text("other\n")
    third = schedule.next()
    assert len(Preparation.model_validate(third.preparation).enqueued) == 1


def test_a_night_whose_coordinators_die_is_as_one_whose_do_not(
    nights: Make, monkeypatch: pytest.MonkeyPatch
) -> None:
    seen = []
    for deadly in (False, True):
        schedule = nights(
            search={**THREE_OF_GRID, "algorithm": "random"},
            budget={"max_parallel_trials": 1, "max_retries": 1000},
        )
        schedule.next()
        study_id = schedule.begin()
        if deadly:
            assert schedule.lab.run_through_deaths(study_id, random.Random(1), monkeypatch, chance=0.05) > 0
        else:
            schedule.lab.run(study_id)
        study = schedule.lab.study(study_id)
        assert study.preparation is not None
        seen.append((schedule.params(study), study.preparation["evaluated"]))
    assert seen[0] == seen[1]


def test_a_sweep_waits_while_its_data_is_read(nights: Make, monkeypatch: pytest.MonkeyPatch) -> None:
    schedule = nights()
    reader = schedule.lab.coordinator._fingerprints
    real, asked = reader.of, []

    def slow(*arguments: Any) -> Any:
        asked.append(arguments[0])
        return None if len(asked) < 3 else real(*arguments)

    monkeypatch.setattr(reader, "of", slow)
    study = schedule.next()
    assert asked == [study.id] * 3
    assert (study.state, schedule.lab.events(WAITING).count(READING)) == (StudyState.COMPLETED, 1)


def test_what_was_read_before_a_sweep_was_paused_is_read_again_once_it_is_resumed(
    nights: Make, monkeypatch: pytest.MonkeyPatch
) -> None:
    schedule = nights(search=THREE_OF_GRID)
    before = schedule.next().preparation
    assert before is not None
    read, go_on = fingerprints.read_fingerprints, threading.Event()

    def slowly(definition: StudyDefinition) -> Fingerprints:
        found = read(definition)
        assert go_on.wait(60)
        return found

    monkeypatch.setattr(fingerprints, "_WAIT_SECONDS", 0.0)
    monkeypatch.setattr(fingerprints, "read_fingerprints", slowly)
    lab, study_id = schedule.lab, schedule.begin()
    lab.rounds(lambda: lab.study(study_id).reason == READING)
    reading = lab.coordinator._fingerprints._readings[study_id]
    lab.database.transact(partial(request_pause, ref=study_id))
    lab.coordinator.round()
    go_on.set()
    reading.join(60)
    schedule.data["train"].write_text('{"text": "other"}\n')
    lab.database.transact(partial(request_resume, ref=study_id))
    lab.run(study_id)
    after = lab.study(study_id).preparation
    assert after is not None
    assert after["fingerprints"]["data.train"] != before["fingerprints"]["data.train"]


def test_a_sweep_that_an_earlier_version_began_goes_on_as_it_was(nights: Make) -> None:
    schedule = nights(search=GRID)
    schedule.next()
    study_id = schedule.begin()
    with schedule.lab.database.write() as session:
        study = session.get_one(Study, study_id)
        study.started_at = study.created_at  # paused by that version, and resumed
    schedule.lab.run(study_id)
    study = schedule.lab.study(study_id)
    assert (study.preparation, len(schedule.params(study))) == (None, 8)


def test_one_configuration_that_is_left_out_is_spoken_of_as_one(nights: Make) -> None:
    schedule = nights(search={**GRID, "trials": 1})
    schedule.next()
    schedule.next()
    assert schedule.said() == [
        "1 configuration is left out: earlier sweeps of the schedule have evaluated it on the same data"
    ]


@pytest.mark.parametrize("then", ["renamed", "removed"])
def test_a_sweep_finds_its_schedule_though_it_was_renamed_or_removed_before_it_began(
    nights: Make, then: str
) -> None:
    schedule = nights(search=THREE_OF_GRID, warm_start={"from": "nightly", "as": "enqueue"})
    schedule.next()
    study_id = schedule.begin()
    with schedule.lab.database.write() as session:
        row = session.get_one(Schedule, schedule.schedule_id)
        if then == "removed":
            session.delete(row)
        row.name = "dawn"
    schedule.lab.run(study_id)
    study = schedule.lab.study(study_id)
    assert (study.state, len(schedule.params(study))) == (StudyState.COMPLETED, 3)
    assert study.preparation is not None
    assert len(study.preparation["evaluated"]) == 3
