"""Suggestions on a real Optuna storage, reopened as after a crash."""

from __future__ import annotations

import math
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import optuna
import pytest
from hypothesis import HealthCheck, given, settings
from optuna.storages import RDBStorage
from optuna.trial import TrialState
from sqlalchemy import event

from search_spaces.definition import StudyDefinition, build_recipe, parse_definition
from search_spaces.errors import SuggestionError
from search_spaces.pruners import HyperbandPruning, build_pruner
from search_spaces.samplers import (
    SUGGESTION_KEY,
    StudySampler,
    complete_suggestion,
    distributions,
    n_startup_trials,
    suggest,
)
from search_spaces.space import SearchSpace

from .conftest import DOCUMENT
from .spaces import spaces

Define = Callable[..., StudyDefinition]

SPACE = {
    "learning_rate": {"min": 1.0e-5, "max": 1.0e-3, "scale": "log"},
    "batch_size": {"choices": [4, 8, 16]},
    "epochs": {"min": 1, "max": 3, "type": "int"},
    "weight_decay": {"min": 0.0, "max": 0.1, "step": 0.01},
    "target_modules": {"choices": ["attention", ["q_proj", "v_proj"]]},
}
GRID = {
    "learning_rate": {"choices": [1e-4, 1e-3]},
    "batch_size": {"min": 4, "max": 8, "step": 4},
    "weight_decay": {"choices": [0.0]},
    "lora_r": {"min": 4, "max": 6},
    "target_modules": {"choices": ["attention", ["q_proj", "v_proj"]]},
}


@pytest.fixture(autouse=True)
def _quiet_optuna() -> None:
    optuna.logging.set_verbosity(optuna.logging.WARNING)


NO_SYNC = "PRAGMA synchronous = OFF"


class Reopened:
    """One Optuna study in an SQLite file; `open` forgets everything but the file."""

    def __init__(self, template: Path, path: Path) -> None:
        shutil.copy(template, path)
        self._url = f"sqlite:///{path}"
        self._storages: list[RDBStorage] = []

    def _storage(self) -> RDBStorage:
        self.close()
        storage = RDBStorage(self._url)
        # These tests crash processes in thought only: waiting for the disk would take a minute.
        event.listen(storage.engine, "connect", lambda connection, _: connection.execute(NO_SYNC).close())
        storage.engine.dispose()
        self._storages.append(storage)
        return storage

    def open(self, pruner: optuna.pruners.BasePruner | None = None) -> optuna.Study:
        return optuna.load_study(study_name="s", storage=self._storage(), pruner=pruner)

    def close(self) -> None:
        for storage in self._storages:
            storage.remove_session()
            storage.engine.dispose()
        self._storages.clear()


@pytest.fixture(scope="module")
def template(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """An SQLite file with Optuna's tables and one empty study: making them takes a second."""
    path = tmp_path_factory.mktemp("optuna") / "template.db"
    storage = RDBStorage(f"sqlite:///{path}")
    optuna.create_study(storage=storage, study_name="s", direction="minimize")
    storage.remove_session()
    storage.engine.dispose()
    return path


@pytest.fixture
def reopened(tmp_path: Path, template: Path) -> Any:
    made: list[Reopened] = []

    def make(name: str = "study") -> Reopened:
        made.append(Reopened(template, tmp_path / f"{name}.db"))
        return made[-1]

    yield make
    for one in made:
        one.close()


def loss(params: dict[str, Any]) -> float:
    """Smallest at a learning rate of 2e-4."""
    return abs(math.log(params["learning_rate"] / 2e-4)) + float(params["weight_decay"])


def ask_and_tell(study: optuna.Study, definition: StudyDefinition, count: int) -> list[dict[str, Any]]:
    """`count` trials; every fourth is pruned and every fifth fails, by its number."""
    asked = []
    for _ in range(count):
        trial = suggest(study, definition)
        asked.append(trial.params)
        if trial.number % 5 == 4:
            study.tell(trial, state=TrialState.FAIL)
        elif trial.number % 4 == 3:
            trial.report(loss(trial.params), 100)
            study.tell(trial, state=TrialState.PRUNED)
        else:
            study.tell(trial, loss(trial.params))
    return asked


@pytest.mark.parametrize("algorithm", ["random", "tpe"])
@pytest.mark.parametrize("hyperband", [False, True])
def test_a_restart_changes_no_suggestion(
    define: Define, reopened: Any, algorithm: str, hyperband: bool
) -> None:
    definition = define(algorithm=algorithm, trials=24, space=SPACE)
    spec = HyperbandPruning(algorithm="hyperband", min_examples=100, reduction_factor=3)

    def pruner() -> optuna.pruners.BasePruner | None:
        return build_pruner(spec, max_examples=2700) if hyperband else None

    straight = ask_and_tell(reopened("straight").open(pruner()), definition, 14)
    broken = reopened("broken")
    pieces = [ask_and_tell(broken.open(pruner()), definition, count) for count in (6, 1, 7)]
    assert [params for piece in pieces for params in piece] == straight
    # A sampler seeded anew at each restart would repeat its first points.
    assert len({tuple(params.values()) for params in straight}) == 14


def test_another_seed_gives_other_suggestions(define: Define, reopened: Any) -> None:
    first, second = (
        ask_and_tell(reopened(str(seed)).open(), define(seed=seed, trials=4, space=SPACE), 4)
        for seed in (1, 2)
    )
    assert all(a["learning_rate"] != b["learning_rate"] for a, b in zip(first, second, strict=True))


def test_random_suggestions_do_not_depend_on_what_was_told(define: Define) -> None:
    definition = define(algorithm="random", trials=12, space=SPACE)
    told, untold = optuna.create_study(), optuna.create_study()
    ask_and_tell(told, definition, 12)
    for _ in range(12):
        suggest(untold, definition)
    assert [trial.params for trial in untold.trials] == [trial.params for trial in told.trials]


def test_tpe_closes_in_on_what_works(define: Define) -> None:
    definition = define(algorithm="tpe", trials=60, space=SPACE)
    study = optuna.create_study()
    losses = [loss(params) for params in ask_and_tell(study, definition, 60)]
    assert sum(losses[40:]) / 20 < 0.5 * sum(losses[:10]) / 10


def test_tpe_maximizes_when_the_study_does(define: Define) -> None:
    definition = define(algorithm="tpe", trials=60, space=SPACE)
    study = optuna.create_study(direction="maximize")
    losses = []
    for _ in range(60):
        trial = suggest(study, definition)
        losses.append(loss(trial.params))
        study.tell(trial, -losses[-1])
    assert sum(losses[40:]) / 20 < 0.5 * sum(losses[:10]) / 10


def test_tpe_learns_to_avoid_what_does_not_fit_in_memory(define: Define) -> None:
    definition = define(algorithm="tpe", trials=60, space=SPACE)
    study = optuna.create_study()
    too_large = []
    for _ in range(60):
        trial = suggest(study, definition)
        too_large.append(trial.params["batch_size"] == 16)
        if too_large[-1]:
            trial.set_constraint("out_of_memory", 1.0)
            study.tell(trial, state=TrialState.PRUNED)
        else:
            study.tell(trial, loss(trial.params))
    assert sum(too_large[:20]) >= 3
    assert sum(too_large[40:]) <= 3


@given(spaces())
@settings(max_examples=60, suppress_health_check=[HealthCheck.too_slow], deadline=None)
def test_suggestions_lie_in_the_space_and_make_recipes(space: SearchSpace) -> None:
    search = {"algorithm": "tpe", "trials": 16, "space": space.model_dump(mode="json")}
    definition = parse_definition(DOCUMENT | {"search": search})
    study = optuna.create_study()
    for number in range(8):
        trial = suggest(study, definition)
        params = space.decode(trial.params)
        assert list(params) == list(space.parameters)
        recipe = build_recipe(definition, trial.params)
        for name, parameter in space.parameters.items():
            assert parameter.contains(params[name]), (name, params[name])
            assert getattr(recipe, name) == params[name]
        study.tell(trial, float(number))


def test_whole_parameters_come_back_as_ints(define: Define, reopened: Any) -> None:
    store = reopened()
    definition = define(trials=4, space={"lora_r": {"min": 1, "max": 64, "scale": "log"}, **SPACE})
    ask_and_tell(store.open(), definition, 4)
    for trial in store.open().trials:
        recipe = build_recipe(definition, trial.params)
        assert (type(trial.params["lora_r"]), type(recipe.lora_r)) == (int, int)
        assert type(recipe.batch_size) is int


def test_trial_n_is_grid_point_n_whatever_happens_in_between(define: Define, reopened: Any) -> None:
    definition = define(algorithm="grid", trials=None, space=GRID)
    points = list(definition.search.space.grid_points())
    store = reopened()
    for count in (1, 7, len(points) - 8):
        ask_and_tell(store.open(), definition, count)
    suggested = [definition.search.space.decode(trial.params) for trial in store.open().trials]
    assert suggested == points
    assert len(points) == 24


def test_a_grid_is_distinct_when_all_points_are_asked_before_any_is_told(define: Define) -> None:
    definition = define(algorithm="grid", trials=None, space=GRID)
    study = optuna.create_study()
    suggested = [suggest(study, definition).params for _ in range(24)]
    assert [definition.search.space.decode(params) for params in suggested] == list(
        definition.search.space.grid_points()
    )


def test_a_grid_has_no_suggestion_past_its_end(define: Define) -> None:
    definition = define(algorithm="grid", trials=None, space={"lora_r": {"choices": [4, 8]}})
    study = optuna.create_study()
    suggest(study, definition)
    suggest(study, definition)
    with pytest.raises(SuggestionError, match="trial 2 has no grid point"):
        suggest(study, definition)


@pytest.mark.parametrize("algorithm", ["grid", "random", "tpe"])
def test_a_trial_without_parameters_is_completed_as_it_would_have_been(
    define: Define, reopened: Any, algorithm: str
) -> None:
    space = GRID if algorithm == "grid" else SPACE
    definition = define(algorithm=algorithm, trials=24, space=space)
    store, other = reopened(), reopened("other")
    for study in (store.open(), other.open()):
        ask_and_tell(study, definition, 10)
    expected = suggest(other.open(), definition).params

    study = store.open()
    study.sampler = StudySampler(study, definition)
    study.ask()  # the asker dies before the first parameter
    study = store.open()
    (orphan,) = study.get_trials(states=(TrialState.RUNNING,))
    assert orphan.params == {}
    assert complete_suggestion(study, definition, orphan).params == expected
    assert store.open().trials[10].params == expected


@pytest.mark.parametrize("algorithm", ["grid", "random", "tpe"])
@pytest.mark.parametrize("set_before", [1, 3])
def test_a_half_set_trial_is_completed_from_the_same_draw_though_others_were_told_since(
    define: Define, reopened: Any, algorithm: str, set_before: int
) -> None:
    space = GRID if algorithm == "grid" else SPACE
    definition = define(algorithm=algorithm, trials=24, space=space)
    store, other = reopened(), reopened("other")
    for study in (store.open(), other.open()):
        ask_and_tell(study, definition, 10)
    expected = suggest(other.open(), definition).params

    study = store.open()
    study.sampler = StudySampler(study, definition)
    some = dict(list(distributions(definition).items())[:set_before])
    study.ask(fixed_distributions=some)  # the asker dies after `set_before` parameters
    ask_and_tell(store.open(), definition, 4)
    study = store.open()
    (orphan,) = study.get_trials(states=(TrialState.RUNNING,))
    assert list(orphan.params) == list(some)
    assert complete_suggestion(study, definition, orphan).params == expected


def test_completing_a_complete_suggestion_changes_nothing(define: Define) -> None:
    definition = define(trials=12, space=SPACE)
    study = optuna.create_study()
    params = suggest(study, definition).params
    (running,) = study.trials
    assert complete_suggestion(study, definition, running).params == params
    assert study.trials[0].params == params


def test_a_suggestion_is_written_down_whole(define: Define) -> None:
    study = optuna.create_study()
    trial = suggest(study, define(trials=12, space=SPACE))
    assert study.trials[0].system_attrs[SUGGESTION_KEY] == trial.params


def test_ranges_that_do_not_end_on_a_step_make_optuna_warn_of_nothing(define: Define) -> None:
    space = {
        "weight_decay": {"min": 0.0, "max": 1.0, "step": 0.3},
        "lora_r": {"min": 1, "max": 10, "step": 4},
    }
    study = optuna.create_study()
    for _ in range(8):
        params = suggest(study, define(algorithm="random", trials=8, space=space)).params
        assert params["weight_decay"] in (0.0, 0.3, 0.6, 0.9)
        assert params["lora_r"] in (1, 5, 9)


@pytest.mark.parametrize(("trials", "startup"), [(1, 4), (12, 4), (24, 6), (40, 10), (1000, 10)])
def test_a_short_study_starts_with_fewer_random_trials(trials: int, startup: int) -> None:
    assert n_startup_trials(trials) == startup
