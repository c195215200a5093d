"""Optuna studies for the tests of samplers: in a file that is reopened as after a crash, and objectives."""

from __future__ import annotations

import math
import shutil
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import optuna
from optuna.storages import RDBStorage
from optuna.trial import TrialState
from sqlalchemy import event

from search_spaces.definition import StudyDefinition
from search_spaces.preparation import NOTHING, Preparation
from search_spaces.sampling.suggest import suggest

ALGORITHMS = ("random", "qmc", "tpe", "gp", "cmaes")
"""All but the grid."""

NUMBERS: dict[str, Any] = {
    "learning_rate": {"min": 1.0e-5, "max": 1.0e-3, "scale": "log"},
    "batch_size": {"choices": [4, 16, 8]},
    "epochs": {"min": 1, "max": 3, "type": "int"},
    "weight_decay": {"min": 0.0, "max": 0.1, "step": 0.01},
}
SPACE = {**NUMBERS, "target_modules": {"choices": ["attention", ["q_proj", "v_proj"]]}}
CONDITIONAL = {
    **SPACE,
    "optimizer": {"choices": ["adamw", "sgd"]},
    "sgd_momentum": {"min": 0.0, "max": 0.9},
    "sgd_nesterov": {"choices": [True, False]},
}
SPACES = {"random": CONDITIONAL, "qmc": CONDITIONAL, "tpe": CONDITIONAL, "gp": SPACE, "cmaes": NUMBERS}
"""What each algorithm accepts."""
FINITE_NUMBERS = {
    "learning_rate": {"choices": [1e-4, 1e-3, 1e-2]},
    "lora_r": {"choices": [8, 4]},
    "epochs": {"min": 1, "max": 3, "type": "int"},
}
"""18 configurations."""
FINITE_CONDITIONAL = {
    "learning_rate": {"choices": [1e-4, 1e-3]},
    "optimizer": {"choices": ["adamw", "sgd"]},
    "sgd_momentum": {"choices": [0.0, 0.5, 0.9]},
    "target_modules": {"choices": ["attention", ["q_proj", "v_proj"]]},
}
"""16 configurations."""

_NO_SYNC = "PRAGMA synchronous = OFF"


class StudyFile:
    """One Optuna study in an SQLite file; `open` forgets everything but the file."""

    def __init__(self, template: Path, path: Path) -> None:
        shutil.copy(template, path)
        self.url = f"sqlite:///{path}"
        self._storages: list[RDBStorage] = []

    def open(self, pruner: optuna.pruners.BasePruner | None = None) -> optuna.Study:
        self.close()
        storage = RDBStorage(self.url)
        # These tests crash processes in thought only: waiting for the disk would take a minute.
        event.listen(storage.engine, "connect", lambda connection, _: connection.execute(_NO_SYNC).close())
        storage.engine.dispose()
        self._storages.append(storage)
        return optuna.load_study(study_name="s", storage=storage, pruner=pruner)

    def close(self) -> None:
        for storage in self._storages:
            storage.remove_session()
            storage.engine.dispose()
        self._storages.clear()


def loss(params: Mapping[str, Any]) -> float:
    """Smallest at a learning rate of 2e-4."""
    return abs(math.log(params["learning_rate"] / 2e-4)) + float(params.get("weight_decay", 0.0))


def ask_and_tell(
    study: optuna.Study, definition: StudyDefinition, count: int, preparation: Preparation = NOTHING
) -> list[dict[str, Any]]:
    """`count` trials; every fourth is pruned and every fifth fails, by its number."""
    asked = []
    for _ in range(count):
        trial = suggest(study, definition, preparation)
        asked.append(trial.params)
        if trial.number % 5 == 4:
            study.tell(trial, state=TrialState.FAIL)
        elif trial.number % 4 == 3:
            trial.report(loss(trial.params), 100)
            study.tell(trial, state=TrialState.PRUNED)
        else:
            study.tell(trial, loss(trial.params))
    return asked
