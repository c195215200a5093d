"""Small studies that really train: every algorithm, pruner, stop and warm start, end to end but for Ray.

Each goes from a definition through SQL, Optuna and the coordinator to packs of a tiny quantized base.
"""

from __future__ import annotations

import re
import shutil
from collections.abc import Callable, Iterator
from datetime import UTC, datetime
from functools import partial
from pathlib import Path
from typing import Any

import pytest
from sqlalchemy import select

from search_spaces.parsing.document import parse_definition
from service.db.kinds import ContestDecision
from service.db.models import ContestRow, EvaluationRow, Reign, Schedule, Study
from service.optuna_store.studies import read_summary, read_trials
from service.optuna_store.values import TrialValues
from service.schedules.sweeps import fire
from service.states import StudyState
from tests.support.service.coordinator import CoordinatorLab
from tests.support.workers.models import build_tiny_base
from tests.support.workers.pack_cluster import PackCluster
from tests.support.workers.trials import write_data

pytestmark = pytest.mark.filterwarnings("ignore:`is_gradient_checkpointing` is deprecated:FutureWarning")

ROWS, EVERY = 24, 8
SPACE: dict[str, Any] = {
    "learning_rate": {"min": 1e-5, "max": 1e-1, "scale": "log"},
    "lora_r": {"choices": [2, 4, 8]},
}


@pytest.fixture(scope="module")
def base(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return build_tiny_base(tmp_path_factory.mktemp("base"))


Run = Callable[..., Study]


class Lab(CoordinatorLab):
    """A lab whose studies train on a tiny base."""

    def __init__(self, home: Path, base: Path, cluster: PackCluster) -> None:
        super().__init__(home, cluster)  # type: ignore[arg-type]  # a cluster like any other
        self.eval_file = home / "e.jsonl"
        train, evaluation = write_data(home / "t.jsonl", ROWS), write_data(self.eval_file, 6, seed=1)
        self._common = {
            "model": {"id": str(base)},
            "data": {"train": str(train), "eval": str(evaluation), "max_length": 64},
            "recipe": {"batch_size": 8},
            "evaluation": {"every_examples": EVERY},
            "budget": {"max_parallel_trials": 3},
        }

    def search(self, name: str = "s", **sections: Any) -> Study:
        """Runs a study to its end."""
        search = {"algorithm": "random", "trials": 4, "seed": 3, "space": SPACE, **sections.pop("search", {})}
        for section in ("recipe", "budget", "evaluation"):
            sections[section] = {**self._common[section], **sections.get(section, {})}
        document = {**self._common, "name": name, "search": search, **sections}
        with self.database.write() as session:
            definition = parse_definition(document).model_dump(mode="json")
            study = Study(name=name, definition=definition)
            session.add(study)
        self.run(study.id)
        return self.study(study.id)

    def nights(
        self, count: int, *, between: Callable[[list[Study]], object] = lambda _: None, **sections: Any
    ) -> list[Study]:
        """Runs the sweeps of a schedule's first nights to their ends; `between` is called after each."""
        document = {**self._common, "name": "nightly", **sections}
        definition = parse_definition(document).model_dump(mode="json")
        made = []
        with self.database.write() as session:
            schedule = Schedule(name="nightly", cron="0 2 * * *", timezone="UTC", definition=definition)
            session.add(schedule)
        for night in range(count):
            at = datetime(2026, 1, 1 + night, 2, tzinfo=UTC)
            with self.database.write() as session:
                session.get_one(Schedule, schedule.id).next_fire_at = at
            sweep = self.database.transact(partial(fire, schedule_id=schedule.id, now=at))
            assert sweep is not None
            self.run(sweep.id)
            made.append(self.study(sweep.id))
            between(made)
        return made

    def trials(self, name: str = "s") -> list[TrialValues]:
        return read_trials(self.storage, name)

    def outcomes(self, name: str = "s") -> list[str]:
        return [trial.user_attrs["outcome"] for trial in self.trials(name)]

    def reasons(self, name: str = "s", outcome: str = "pruned") -> list[str]:
        return [t.user_attrs["reason"] for t in self.trials(name) if t.user_attrs["outcome"] == outcome]


@pytest.fixture
def new_lab(tmp_path: Path, base: Path) -> Iterator[Callable[..., Lab]]:
    labs: list[Lab] = []

    def new(**cluster: Any) -> Lab:
        labs.append(Lab(tmp_path, base, PackCluster(**cluster)))
        return labs[-1]

    yield new
    for lab in labs:
        lab.close()


@pytest.fixture
def lab(new_lab: Callable[..., Lab]) -> Lab:
    return new_lab()


# -- algorithms --------------------------------------------------------------------------------------


@pytest.mark.parametrize("algorithm", ["random", "tpe", "qmc", "gp", "cmaes"])
def test_algorithm(lab: Lab, algorithm: str) -> None:
    study = lab.search(search={"algorithm": algorithm, "trials": 6})
    assert study.state == StudyState.COMPLETED, study.reason
    assert "6 trials" in study.reason
    configurations = {tuple(sorted(trial.params.items())) for trial in lab.trials()}
    assert len(configurations) == len(lab.trials()) == 6
    assert {trial.value is None for trial in lab.trials() if trial.user_attrs["outcome"] == "completed"} == {
        False
    }


def test_grid_with_conditions(lab: Lab) -> None:
    space = {
        "optimizer": {"choices": ["adamw", "sgd"]},
        "learning_rate": {"min": 1e-4, "max": 1e-2, "scale": "log", "points": 2},
        "sgd_momentum": {"choices": [0.0, 0.9]},
    }
    study = lab.search(search={"algorithm": "grid", "trials": None, "space": space})
    assert study.state == StudyState.COMPLETED, study.reason
    params = [dict(trial.params) for trial in lab.trials()]
    assert len(params) == 6
    assert [p for p in params if p["optimizer"] == "adamw"] == [
        {"optimizer": "adamw", "learning_rate": rate} for rate in (1e-4, 1e-2)
    ]
    trained = {(o.recipe.optimizer, o.recipe.learning_rate, o.recipe.sgd_momentum) for o in _orders(lab)}
    assert len(trained) == 6


def test_bases_of_two_quantizations(new_lab: Callable[..., Lab]) -> None:
    lab = new_lab(cpus=1)
    space = {"quantization": {"choices": ["nf4", "none"]}, "learning_rate": {"choices": [1e-3, 1e-2]}}
    study = lab.search(search={"algorithm": "grid", "trials": None, "space": space})
    assert study.state == StudyState.COMPLETED, study.reason
    assert lab.outcomes() == ["completed"] * 4
    assert {(o.model.quantization, o.recipe.learning_rate) for o in _orders(lab)} == {
        (quantization, rate) for quantization in ("nf4", "none") for rate in (1e-3, 1e-2)
    }
    assert len({a.worker_id for a in lab.attempts()}) <= 2  # no attempt was lost on the wrong base
    assert {a.state for a in lab.attempts()} == {"completed"}


# -- pruners -----------------------------------------------------------------------------------------

BAD_LAST = {"learning_rate": {"choices": [1e-2, 5e-3, 1e-7, 1e-1]}}
"""A grid whose last points hardly learn, and forget: at 0.1 the loss rises from 5.3 to 6.5 and is still
above 5.3 a rung later, so that it has stopped to improve. At the other rates it falls from rung to rung."""


@pytest.mark.parametrize(
    ("pruning", "reason"),
    [
        ({"algorithm": "median", "n_startup_trials": 1}, r"eval_loss [\d.]+ at \d+ examples, cut-off"),
        (
            {"algorithm": "percentile", "percentile": 50, "n_startup_trials": 1},
            r"cut-off [\d.]+ of \d peers?",
        ),
        (
            {"algorithm": "asha", "min_examples": EVERY, "reduction_factor": 3, "n_min_trials": 1},
            r"cut-off [\d.]+ of \d peers?",
        ),
        ({"algorithm": "threshold", "upper": 0.01}, r"eval_loss [\d.]+ at \d+ examples"),
        ({"algorithm": "patient", "patience_examples": EVERY}, r"eval_loss [\d.]+ at \d+ examples"),
        ({"algorithm": "wilcoxon", "p_threshold": 0.3}, r"p "),
    ],
    ids=lambda value: value["algorithm"] if isinstance(value, dict) else "",
)
def test_pruner(new_lab: Callable[..., Lab], pruning: dict[str, Any], reason: str) -> None:
    lab = new_lab(slots=1)
    study = lab.search(
        search={"algorithm": "grid", "trials": None, "space": BAD_LAST},
        pruning=pruning,
        recipe={"epochs": 2},
        budget={"max_parallel_trials": 1},
    )
    pruned = lab.reasons()
    assert pruned, [trial.rungs for trial in lab.trials()]
    assert all(re.search(reason, text) for text in pruned), pruned
    assert study.state in (StudyState.COMPLETED, StudyState.FAILED)  # a threshold may spare nobody
    best = {t.params["learning_rate"]: t.user_attrs["outcome"] for t in lab.trials()}
    if pruning["algorithm"] != "threshold":
        assert best[1e-2] == "completed"
    if pruning["algorithm"] == "patient":
        assert [rate for rate, outcome in best.items() if outcome == "pruned"] == [1e-1]


@pytest.mark.parametrize("algorithm", ["none", "hyperband"])
def test_pruner_that_may_spare_everyone(lab: Lab, algorithm: str) -> None:
    pruning = {"algorithm": algorithm} | ({"min_examples": EVERY} if algorithm == "hyperband" else {})
    study = lab.search(search={"algorithm": "grid", "trials": None, "space": BAD_LAST}, pruning=pruning)
    assert study.state == StudyState.COMPLETED
    assert set(lab.outcomes()) <= ({"completed"} if algorithm == "none" else {"completed", "pruned"})


def test_exit_of_a_trial_that_overfits(lab: Lab) -> None:
    study = lab.search(
        search={"algorithm": "grid", "trials": None, "space": {"learning_rate": {"choices": [3e-2]}}},
        recipe={"epochs": 30, "lora_r": 16},
        evaluation={"overfit_rungs": 1},
    )
    (trial,) = lab.trials()
    assert study.state == StudyState.COMPLETED
    assert trial.user_attrs["outcome"] == "completed"
    assert "because it overfits" in trial.user_attrs["reason"]
    assert trial.rungs[-1][0] < 30 * ROWS
    assert trial.value == min(value for _, value in trial.rungs)


# -- stops -------------------------------------------------------------------------------------------


def test_stop_at_a_target(lab: Lab) -> None:
    study = lab.search(search={"trials": 30}, budget={"target_value": 100.0, "max_parallel_trials": 2})
    assert study.state == StudyState.COMPLETED
    assert "target_value" in study.reason
    assert len(lab.trials()) <= 4


def test_stop_without_improvement(lab: Lab) -> None:
    space = {"learning_rate": {"choices": [1e-2, 1e-6, 2e-6, 3e-6, 4e-6, 5e-6]}}
    study = lab.search(
        search={"algorithm": "grid", "trials": None, "space": space},
        budget={"no_improvement_trials": 2, "max_parallel_trials": 1},
    )
    assert study.state == StudyState.COMPLETED
    assert "no_improvement_trials" in study.reason
    assert len(lab.trials()) == 3


def test_stop_of_a_search_that_has_tried_everything(lab: Lab) -> None:
    space = {"learning_rate": {"choices": [1e-3, 1e-2]}, "lora_r": {"choices": [2, 4]}}
    study = lab.search(search={"algorithm": "tpe", "trials": 10, "space": space})
    assert study.state == StudyState.COMPLETED
    assert len({tuple(sorted(t.params.items())) for t in lab.trials()}) == len(lab.trials()) == 4


def test_stop_at_a_timeout(lab: Lab) -> None:
    study = lab.search(search={"trials": 1000}, budget={"timeout": "2s"})
    assert "timeout" in study.reason
    assert 0 < len(lab.trials()) < 1000


def test_stop_at_gpu_hours(new_lab: Callable[..., Lab]) -> None:
    lab = new_lab(gpus=1.0)
    study = lab.search(search={"trials": 1000}, budget={"max_gpu_hours": 1 / 3600})
    assert "max_gpu_hours" in study.reason
    assert 0 < len(lab.trials()) < 1000


def test_stop_at_failed_trials(lab: Lab) -> None:
    space = {"target_modules": {"choices": [["nowhere"], ["no_such"], ["neither"], ["q_proj"]]}}
    study = lab.search(
        search={"algorithm": "grid", "trials": None, "space": space},
        budget={"max_failed_trials": 1, "max_parallel_trials": 1},
    )
    assert study.state == StudyState.FAILED
    assert "max_failed_trials" in study.reason
    assert lab.outcomes() == ["failed", "failed"]


# -- nights -------------------------------------------------------------------------------------------


def test_three_nights_train_different_recipes_to_different_values(lab: Lab) -> None:
    search = {"algorithm": "random", "trials": 2, "seed": 3, "space": SPACE}
    nights = lab.nights(3, search=search, warm_start={"from": "nightly", "top_k": 1})
    trials = [trial for night in nights for trial in lab.trials(night.name) if trial.searched]
    assert [night.state for night in nights] == ["completed"] * 3
    assert len({tuple(sorted(trial.params.items())) for trial in trials}) == 6
    assert len({trial.value for trial in trials}) == 6


# -- what comes before and after a search ------------------------------------------------------------


def test_warm_start_with_the_best_recipes_of_another_study(lab: Lab) -> None:
    lab.search("first", search={"trials": 5})
    study = lab.search("second", search={"trials": 4, "seed": 9}, warm_start={"from": "first", "top_k": 2})
    assert study.state == StudyState.COMPLETED, study.reason
    best = sorted((t for t in lab.trials("first") if t.value is not None), key=lambda t: t.value or 0.0)
    began = [dict(trial.params) for trial in lab.trials("second")[:2]]
    assert began == [dict(trial.params) for trial in best[:2]]
    assert len(lab.trials("second")) == 4


def test_warm_start_with_the_results_of_another_study(lab: Lab) -> None:
    lab.search("first", search={"trials": 6})
    changes: dict[str, Any] = {"search": {"algorithm": "tpe", "trials": 3, "seed": 9}}
    study = lab.search("warm", warm_start={"from": "first", "top_k": 6, "as": "prior"}, **changes)
    assert study.state == StudyState.COMPLETED, study.reason
    assert study.preparation is not None
    assert len(study.preparation["prior"]) == 6
    lab.search("cold", **changes)
    assert [t.params for t in lab.trials("warm")] != [t.params for t in lab.trials("cold")]


def test_range_test_as_the_first_stage(lab: Lab) -> None:
    space = {"learning_rate": {"min": 1e-6, "max": 1.0, "scale": "log"}}
    study = lab.search(search={"trials": 2, "space": space, "learning_rate_range_test": {"steps": 40}})
    assert study.state == StudyState.COMPLETED, study.reason
    assert study.preparation is not None
    low, high = study.preparation["learning_rate_bounds"]
    assert 1e-6 <= low < high <= 1.0
    assert high / low < 1e5
    assert all(low <= trial.params["learning_rate"] <= high for trial in lab.trials())
    test = lab.study(study.range_test_id or "")
    assert test.state == StudyState.COMPLETED


def test_repeats_of_the_best(lab: Lab) -> None:
    study = lab.search(search={"trials": 4}, repeats={"top_k": 2, "seeds": 2})
    assert study.state == StudyState.COMPLETED, study.reason
    trials = lab.trials()
    searched, repeats = trials[:4], trials[4:]
    best = sorted((t for t in searched if t.value is not None), key=lambda t: t.value or 0.0)[:2]
    assert sorted((t.repeat_of, t.seed) for t in repeats) == sorted(
        (t.number, 42 + k) for t in best for k in (1, 2)
    )
    for repeat in repeats:
        assert repeat.repeat_of is not None
        assert dict(repeat.params) == dict(trials[repeat.repeat_of].params)
        assert repeat.value not in (None, trials[repeat.repeat_of].value)  # another seed, another number
    assert {o.recipe.seed for o in _orders(lab)} == {42, 43, 44}


def test_several_objectives(lab: Lab) -> None:
    study = lab.search(
        search={"algorithm": "tpe", "trials": 6}, objective={"costs": ["trainable_parameters"]}
    )
    assert study.state == StudyState.COMPLETED, study.reason
    for trial in lab.trials():
        assert len(trial.values) == 2
        assert trial.values[0] == trial.value
    by_rank = {trial.params["lora_r"]: trial.values[1] for trial in lab.trials()}
    ranks = sorted(by_rank)
    assert [by_rank[rank] / rank for rank in ranks] == [by_rank[ranks[0]] / ranks[0]] * len(ranks)


def test_a_constraint_keeps_a_trial_from_being_best(lab: Lab) -> None:
    lab.search(
        "free",
        search={"algorithm": "grid", "trials": None, "space": {"lora_r": {"choices": [2, 8]}}},
        recipe={"learning_rate": 1e-2},
    )
    sizes = {o.recipe.lora_r: _parameters(lab, o.attempt_id) for o in _orders(lab)}
    lab.search(
        search={"algorithm": "grid", "trials": None, "space": {"lora_r": {"choices": [2, 8]}}},
        recipe={"learning_rate": 1e-2},
        constraints={"trainable_parameters": {"max": sizes[2]}},
    )
    assert [trial.feasible for trial in lab.trials()] == [True, False]
    summary = read_summary(lab.storage, "s")
    assert summary is not None
    assert summary.best is not None
    assert summary.best.params["lora_r"] == 2


def _orders(lab: Lab) -> list[Any]:
    assert isinstance(lab.cluster, PackCluster)
    return lab.cluster.orders


def _parameters(lab: Lab, attempt_id: int) -> int:
    outcome = next(a.outcome for a in lab.attempts() if a.id == attempt_id)
    assert outcome is not None
    return int(outcome["trainable_parameters"])


# -- champions ---------------------------------------------------------------------------------------


def test_a_champion_comes_to_the_very_value_that_its_trial_reported_at_its_best_rung(
    new_lab: Callable[..., Lab],
) -> None:
    lab = new_lab()
    alone = {"max_parallel_trials": 1}  # so that the packs are the same
    search = {"algorithm": "random", "trials": 2, "space": SPACE}
    write_data(lab.eval_file, 30, seed=1)
    first, second = lab.nights(2, search=search, budget=alone)
    with lab.database.read() as session:
        contests = list(session.scalars(select(ContestRow).order_by(ContestRow.id)))
        of_second = select(EvaluationRow).where(EvaluationRow.study_id == second.id)
        rows = session.scalars(of_second.order_by(EvaluationRow.trial_number)).all()
    assert (contests[0].study_id, contests[0].decision) == (first.id, ContestDecision.CROWNED)
    [crowned] = [t.value for t in lab.trials(first.name) if t.number == contests[0].challenger_trial]
    [winner] = [t.value for t in lab.trials(second.name) if t.number == contests[1].challenger_trial]
    assert contests[0].challenger_value == crowned
    assert (contests[1].champion_value, contests[1].challenger_value) == (crowned, winner)
    assert contests[1].decision in (ContestDecision.DETHRONED, ContestDecision.DEFENDED)
    assert contests[1].data_changed is False
    evidence = contests[1].evidence
    assert evidence is not None
    assert (evidence["rows"], evidence["decided_by"]) == (30, "metric")
    for row, value in zip(rows, (crowned, winner), strict=True):
        loss, tokens = (sum(column) for column in zip(*row.evaluated["objective"], strict=True))
        assert loss / tokens == pytest.approx(value)


def test_a_champion_whose_files_are_gone_is_followed_by_the_next_winner(new_lab: Callable[..., Lab]) -> None:
    lab = new_lab()
    search = {"algorithm": "random", "trials": 1, "space": SPACE}

    def lose_the_first(_: list[Study]) -> None:
        with lab.database.read() as session:
            [adapter, *others] = session.scalars(select(Reign.adapter)).all()
        if not others:
            shutil.rmtree(adapter)

    lab.nights(2, search=search, between=lose_the_first)
    with lab.database.read() as session:
        contest = session.scalars(select(ContestRow).order_by(ContestRow.id.desc())).first()
    assert contest is not None
    assert contest.decision == ContestDecision.SUCCEEDED
    assert "The adapter is gone from" in contest.why
