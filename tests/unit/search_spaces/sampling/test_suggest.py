"""Suggestions on a real Optuna storage, reopened as after a crash."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import optuna
import pytest
from optuna.distributions import CategoricalDistribution
from optuna.storages import RDBStorage
from optuna.trial import TrialState

from search_spaces.definition import StudyDefinition, build_recipe
from search_spaces.errors import SuggestionError
from search_spaces.preparation import Preparation
from search_spaces.sampling.history import REPEAT_OF, SEED, SUGGESTION_KEY
from search_spaces.sampling.plan import planned_trials
from search_spaces.sampling.suggest import (
    complete_suggestion,
    distributions,
    n_startup_trials,
    suggest,
    suggest_repeat,
)
from tests.support.checkout import ROOT
from tests.support.search_spaces.asked_studies import (
    ALGORITHMS,
    CONDITIONAL,
    FINITE_CONDITIONAL,
    FINITE_NUMBERS,
    SPACE,
    SPACES,
    StudyFile,
    ask_and_tell,
)

Define = Callable[..., StudyDefinition]
Files = Callable[..., StudyFile]

GRID = {
    "learning_rate": {"choices": [1e-4, 1e-3]},
    "batch_size": {"min": 4, "max": 8, "step": 4},
    "weight_decay": {"choices": [0.0]},
    "lora_r": {"min": 4, "max": 6},
    "target_modules": {"choices": ["attention", ["q_proj", "v_proj"]]},
}
WITH_GRID = {**SPACES, "grid": GRID}


@pytest.fixture(autouse=True)
def _quiet_optuna() -> None:
    optuna.logging.set_verbosity(optuna.logging.WARNING)


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
def files(tmp_path: Path, template: Path) -> Iterator[Files]:
    made: list[StudyFile] = []

    def make(name: str = "study") -> StudyFile:
        made.append(StudyFile(template, tmp_path / f"{name}.db"))
        return made[-1]

    yield make
    for one in made:
        one.close()


# -- restarts ----------------------------------------------------------------------------------------


@pytest.mark.parametrize("algorithm", ALGORITHMS)
def test_a_restart_after_every_trial_changes_no_suggestion(
    define: Define, files: Files, algorithm: str
) -> None:
    definition = define(algorithm=algorithm, trials=14, space=SPACES[algorithm])
    straight = ask_and_tell(files("straight").open(), definition, 9)
    broken = files("broken")
    pieces = [ask_and_tell(broken.open(), definition, 1) for _ in range(9)]
    assert [params for piece in pieces for params in piece] == straight
    # A sampler seeded anew at each restart would repeat its first points.
    assert len({tuple(params.values()) for params in straight}) == 9


def test_a_pruner_that_shows_samplers_a_part_of_the_study_changes_nothing(
    define: Define, files: Files
) -> None:
    definition = define(algorithm="tpe", trials=14, space=SPACE)
    without = ask_and_tell(files("none").open(), definition, 9)
    hyperband = files("hyperband").open(optuna.pruners.HyperbandPruner(100, 2700, 3))
    assert ask_and_tell(hyperband, definition, 9) == without


def test_another_process_with_other_hashes_suggests_the_same(
    define: Define, files: Files, tmp_path: Path
) -> None:
    definition = define(algorithm="tpe", trials=16, space=CONDITIONAL)
    straight = ask_and_tell(files("straight").open(), definition, 14)
    broken = files("broken")
    ask_and_tell(broken.open(), definition, 8)
    broken.close()
    (tmp_path / "definition.json").write_text(json.dumps(definition.model_dump(mode="json")))
    script = (
        "import json, sys, optuna\n"
        "from search_spaces.definition import StudyDefinition\n"
        "from tests.support.search_spaces.asked_studies import ask_and_tell\n"
        "definition = StudyDefinition.model_validate(json.load(open(sys.argv[1])))\n"
        "study = optuna.load_study(study_name='s', storage=sys.argv[2])\n"
        "print(json.dumps(ask_and_tell(study, definition, 6)))\n"
    )
    done = subprocess.run(
        [sys.executable, "-c", script, str(tmp_path / "definition.json"), broken.url],
        capture_output=True,
        text=True,
        check=True,
        cwd=ROOT,
        env={**os.environ, "PYTHONHASHSEED": "12345"},
    )
    assert json.loads(done.stdout) == straight[8:]


def test_another_seed_gives_other_suggestions(define: Define) -> None:
    first, second = (
        ask_and_tell(optuna.create_study(), define(seed=seed, trials=4, space=SPACE), 4) for seed in (1, 2)
    )
    assert all(a["learning_rate"] != b["learning_rate"] for a, b in zip(first, second, strict=True))


@pytest.mark.parametrize("algorithm", ["random", "qmc"])
def test_some_suggestions_do_not_depend_on_what_was_told(define: Define, algorithm: str) -> None:
    definition = define(algorithm=algorithm, trials=12, space=CONDITIONAL)
    told, untold = optuna.create_study(), optuna.create_study()
    ask_and_tell(told, definition, 12)
    for _ in range(12):
        suggest(untold, definition)
    assert [trial.params for trial in untold.trials] == [trial.params for trial in told.trials]


# -- what the storage holds --------------------------------------------------------------------------


def test_the_storage_holds_the_values_themselves(define: Define, files: Files) -> None:
    store = files()
    definition = define(trials=8, space={"lora_r": {"min": 1, "max": 64, "scale": "log"}, **SPACE})
    ask_and_tell(store.open(), definition, 8)
    for trial in store.open().trials:
        recipe = build_recipe(definition, trial.params)
        assert trial.distributions["batch_size"] == CategoricalDistribution((4, 16, 8))
        assert (type(trial.params["lora_r"]), type(recipe.lora_r)) == (int, int)
        assert type(recipe.batch_size) is int
        assert recipe.batch_size == trial.params["batch_size"]


def test_inactive_parameters_are_not_among_a_trials(define: Define) -> None:
    study = optuna.create_study()
    ask_and_tell(study, define(algorithm="tpe", trials=40, space=CONDITIONAL), 40)
    everywhere = set(CONDITIONAL) - {"sgd_momentum", "sgd_nesterov"}
    for trial in study.trials:
        sgd = trial.params["optimizer"] == "sgd"
        assert set(trial.params) == (set(CONDITIONAL) if sgd else everywhere)
    assert len({trial.params["optimizer"] for trial in study.trials}) == 2


def test_a_trial_appears_with_all_its_parameters_at_once(
    define: Define, files: Files, monkeypatch: pytest.MonkeyPatch
) -> None:
    store = files()
    study = store.open()

    class KilledError(Exception):
        pass

    def die(*_: object) -> None:
        raise KilledError

    for name in ("set_trial_param", "set_trial_system_attr", "set_trial_user_attr"):
        monkeypatch.setattr(type(study._storage), name, die)
    params = suggest(study, define(trials=12, space=SPACE)).params
    assert store.open().trials[0].params == params
    assert set(params) == set(SPACE)


def test_two_askers_at_once_never_run_one_suggestion_twice(
    define: Define, files: Files, monkeypatch: pytest.MonkeyPatch
) -> None:
    store = files()
    definition = define(algorithm="grid", trials=None, space=GRID)
    study = store.open()
    create = study._storage.create_new_trial
    rivals = []

    def create_after_a_rival(study_id: int, template_trial: optuna.trial.FrozenTrial) -> int:
        if not rivals:
            rivals.append(create(study_id, template_trial=template_trial))
        return create(study_id, template_trial=template_trial)

    monkeypatch.setattr(study._storage, "create_new_trial", create_after_a_rival)
    for _ in range(23):
        suggest(study, definition)
    trials = store.open().trials
    assert [trial.number for trial in trials if trial.state is TrialState.FAIL] == [1]
    points = [definition.search.space.decode(t.params) for t in trials if t.state is TrialState.RUNNING]
    assert points == list(definition.search.space.grid_points())


# -- trials whose asker died -------------------------------------------------------------------------


@pytest.mark.parametrize("algorithm", sorted(WITH_GRID))
def test_a_trial_without_parameters_is_completed_as_it_would_have_been(
    define: Define, files: Files, algorithm: str
) -> None:
    definition = define(algorithm=algorithm, trials=24, space=WITH_GRID[algorithm])
    store, other = files(), files("other")
    for study in (store.open(), other.open()):
        ask_and_tell(study, definition, 7)
    expected = suggest(other.open(), definition).params

    store.open().ask()
    study = store.open()
    (orphan,) = study.get_trials(states=(TrialState.RUNNING,))
    assert orphan.params == {}
    assert complete_suggestion(study, definition, orphan).params == expected
    assert store.open().trials[7].params == expected


def test_a_half_set_trial_is_completed_from_the_same_draw_though_others_were_told_since(
    define: Define, files: Files, monkeypatch: pytest.MonkeyPatch
) -> None:
    definition = define(algorithm="tpe", trials=24, space=SPACE)
    store, other = files(), files("other")
    for study in (store.open(), other.open()):
        ask_and_tell(study, definition, 7)
    expected = suggest(other.open(), definition).params

    study = store.open()
    study.ask()
    (orphan,) = study.get_trials(states=(TrialState.RUNNING,))
    set_param = type(study._storage).set_trial_param
    done: list[str] = []

    def die_after_two(storage: Any, trial_id: int, name: str, *rest: Any) -> None:
        if len(done) == 2:
            raise KeyboardInterrupt
        done.append(name)
        set_param(storage, trial_id, name, *rest)

    with monkeypatch.context() as patch:
        patch.setattr(type(study._storage), "set_trial_param", die_after_two)
        with pytest.raises(KeyboardInterrupt):
            complete_suggestion(study, definition, orphan)
    ask_and_tell(store.open(), definition, 4)
    study = store.open()
    (orphan,) = study.get_trials(states=(TrialState.RUNNING,))
    assert sorted(orphan.params) == sorted(done)
    assert complete_suggestion(study, definition, orphan).params == expected


def test_completing_a_complete_suggestion_changes_nothing(define: Define) -> None:
    definition = define(trials=12, space=CONDITIONAL)
    study = optuna.create_study()
    params = suggest(study, definition).params
    (running,) = study.trials
    assert complete_suggestion(study, definition, running).params == params
    assert study.trials[0].params == params
    assert study.trials[0].system_attrs[SUGGESTION_KEY] == params


# -- grids -------------------------------------------------------------------------------------------


def test_trial_n_is_grid_point_n_whatever_happens_in_between(define: Define, files: Files) -> None:
    definition = define(algorithm="grid", trials=None, space=GRID)
    points = list(definition.search.space.grid_points())
    store = files()
    for count in (1, 7, len(points) - 8):
        ask_and_tell(store.open(), definition, count)
    suggested = [definition.search.space.decode(trial.params) for trial in store.open().trials]
    assert suggested == points
    assert len(points) == 24


def test_a_grid_is_distinct_when_all_points_are_asked_before_any_is_told(define: Define) -> None:
    definition = define(algorithm="grid", trials=None, space=FINITE_CONDITIONAL)
    study = optuna.create_study()
    suggested = [definition.search.space.decode(suggest(study, definition).params) for _ in range(16)]
    assert suggested == list(definition.search.space.grid_points())


def test_a_grid_begins_with_the_enqueued_points_that_are_on_it(define: Define, files: Files) -> None:
    definition = define(
        algorithm="grid",
        trials=None,
        space={
            **FINITE_NUMBERS,
            "learning_rate": {"min": 1e-5, "max": 1e-3, "scale": "log", "points": 3},
        },
    )
    space = definition.search.space
    points = list(space.grid_points())
    off_grid = {**points[0], "learning_rate": 3e-5}  # inside the range, but none of its three points
    outside = {**points[0], "lora_r": 5}
    preparation = Preparation(enqueued=(points[7], off_grid, points[3], outside, points[7]))
    assert planned_trials(definition, preparation) == 18
    store = files()
    for count in (1, 2, 15):
        ask_and_tell(store.open(), definition, count, preparation)
    suggested = [space.decode(trial.params) for trial in store.open().trials]
    rest = [point for index, point in enumerate(points) if index not in (3, 7)]
    assert suggested == [points[7], points[3], *rest]
    with pytest.raises(SuggestionError, match="trial 18 has no grid point"):
        suggest(store.open(), definition, preparation)


# -- repeats -----------------------------------------------------------------------------------------


def test_a_repeat_has_another_trials_parameters_and_says_so(define: Define, files: Files) -> None:
    store = files()
    definition = define(trials=12, space=CONDITIONAL)
    ask_and_tell(store.open(), definition, 8)
    study = store.open()
    trial = suggest_repeat(study, definition, of=2, seed=43)
    assert (trial.number, trial.params) == (8, study.trials[2].params)
    held = store.open().trials[8]
    assert (held.state, held.user_attrs) == (TrialState.RUNNING, {REPEAT_OF: 2, SEED: 43})
    assert held.params == study.trials[2].params
    assert complete_suggestion(study, definition, held).params == study.trials[2].params
    for none in (8, 9, -1):
        with pytest.raises(SuggestionError, match=f"no trial {none} that can be repeated"):
            suggest_repeat(study, definition, of=none, seed=44)


def test_no_suggestion_learns_from_a_repeat(define: Define) -> None:
    definition = define(algorithm="tpe", trials=24, space=SPACE)
    suggested = []
    for value in (0.0, 100.0):
        study = optuna.create_study()
        ask_and_tell(study, definition, 8)
        for seed in (43, 44, 45):
            study.tell(suggest_repeat(study, definition, of=0, seed=seed), value)
        suggested.append([trial["learning_rate"] for trial in ask_and_tell(study, definition, 4)])
    assert suggested[0] == suggested[1]


# -- startup -----------------------------------------------------------------------------------------


@pytest.mark.parametrize(("trials", "startup"), [(1, 4), (12, 4), (24, 6), (40, 10), (1000, 10)])
def test_a_short_study_learns_after_fewer_trials(trials: int, startup: int) -> None:
    assert n_startup_trials(trials) == startup


def test_ranges_that_do_not_end_on_a_step_make_optuna_warn_of_nothing(define: Define) -> None:
    space = {
        "weight_decay": {"min": 0.0, "max": 1.0, "step": 0.3},
        "lora_r": {"min": 1, "max": 10, "step": 4},
    }
    definition = define(algorithm="random", trials=8, space=space)
    study = optuna.create_study()
    for _ in range(8):
        params = suggest(study, definition).params
        assert params["weight_decay"] in (0.0, 0.3, 0.6, 0.9)
        assert params["lora_r"] in (1, 5, 9)
    assert list(distributions(definition.search.space)) == list(space)
