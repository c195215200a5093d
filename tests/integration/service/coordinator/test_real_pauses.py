"""Studies that really train, put down at random moments: their trials and values are the undisturbed ones.

A pause comes between any two passes, in the middle of an effective batch too, and each resume starts new
workers.
"""

from __future__ import annotations

import random
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from search_spaces.parsing.document import parse_definition
from service.db.models import Study
from service.optuna_store.studies import read_trials
from service.states import StudyState
from service.studies.pauses import request_pause, request_resume
from tests.support.service.coordinator import CoordinatorLab
from tests.support.workers.models import build_tiny_base
from tests.support.workers.pack_cluster import PackCluster
from tests.support.workers.trials import write_data

pytestmark = pytest.mark.filterwarnings("ignore:`is_gradient_checkpointing` is deprecated:FutureWarning")

SPACE: dict[str, Any] = {
    "learning_rate": {"min": 1e-4, "max": 1e-2, "scale": "log"},
    "lora_r": {"choices": [2, 4]},
}
GRID = {
    "algorithm": "grid",
    "trials": None,
    "space": {"learning_rate": {"choices": [1e-3, 1e-2]}, "lora_r": {"choices": [2, 4]}},
}


@pytest.fixture(scope="module")
def base(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return build_tiny_base(tmp_path_factory.mktemp("base"))


class Night:
    """One study in a lab of its own."""

    def __init__(self, home: Path, base: Path, search: dict[str, Any], *, slots: int, micro: int) -> None:
        self.lab = CoordinatorLab(home, PackCluster(cpus=1, slots=slots))  # type: ignore[arg-type]
        train, evaluation = write_data(home / "t.jsonl", 24), write_data(home / "e.jsonl", 6, seed=1)
        document = {
            "name": "s",
            "model": {"id": str(base)},
            "data": {"train": str(train), "eval": str(evaluation), "max_length": 64},
            "search": {"algorithm": "random", "trials": 4, "seed": 3, "space": SPACE, **search},
            "recipe": {"batch_size": 8, "epochs": 2, "lora_dropout": 0.1},
            "evaluation": {"every_examples": 16},
            "budget": {"max_parallel_trials": slots},
            "resources": {"micro_batch_size": micro},
        }
        with self.lab.database.write() as session:
            study = Study(name="s", definition=parse_definition(document).model_dump(mode="json"))
            session.add(study)
        self.study_id = study.id
        self.pauses = 0

    def run(self, dice: random.Random | None = None) -> None:
        """To its end. With dice, four pauses after as many rounds as they say."""
        lab = self.lab
        moments = [] if dice is None else [dice.randint(4, 20) for _ in range(4)]

        def perhaps() -> None:
            study = lab.study(self.study_id)
            if study.state == StudyState.PAUSED:
                with lab.database.write() as session:
                    request_resume(session, self.study_id)
            elif moments and not study.pause_requested:
                moments[0] -= 1
                if moments[0] == 0:
                    del moments[0]
                    with lab.database.write() as session:
                        request_pause(session, self.study_id)
                    self.pauses += 1

        lab.run(self.study_id, each=perhaps)

    def trials(self) -> list[tuple[dict[str, Any], str, float | None, dict[int, float]]]:
        found = read_trials(self.lab.storage, "s")
        return [(dict(t.params), t.user_attrs["outcome"], t.value, dict(t.rungs)) for t in found]


@pytest.fixture
def nights(tmp_path: Path, base: Path) -> Iterator[Callable[..., tuple[Night, Night]]]:
    found: list[Night] = []

    def make(search: dict[str, Any], seed: int, *, slots: int, micro: int) -> tuple[Night, Night]:
        for name, dice in (("undisturbed", None), ("paused", random.Random(seed))):
            night = Night(tmp_path / name, base, search, slots=slots, micro=micro)
            night.run(dice)
            found.append(night)
        return found[0], found[1]

    yield make
    for night in found:
        night.lab.close()


@pytest.mark.parametrize(("search", "seed"), [({"algorithm": "tpe"}, 0), (GRID, 1)], ids=["tpe", "grid"])
def test_one_trial_at_a_time_ends_with_the_very_same_numbers(
    nights: Callable[..., tuple[Night, Night]], search: dict[str, Any], seed: int
) -> None:
    undisturbed, paused = nights(search, seed, slots=1, micro=2)
    assert paused.pauses == 4
    assert paused.trials() == undisturbed.trials()
    states = [a.state for a in paused.lab.attempts()]
    assert states.count("paused") >= 3  # one may have come between two trials
    assert set(states) <= {"paused", "completed"}
    resumed = [a for a in paused.lab.attempts() if a.ordinal > 1]
    assert any(a.resumed_at_examples > 0 for a in resumed)


def test_packs_end_with_the_same_numbers_but_for_the_last_digits(
    nights: Callable[..., tuple[Night, Night]],
) -> None:
    """Which rows share a matrix product depends on who shares the pack, and so do the last digits."""
    undisturbed, paused = nights(GRID, 5, slots=3, micro=4)
    assert paused.pauses >= 2
    for mine, expected in zip(paused.trials(), undisturbed.trials(), strict=True):
        assert mine[:2] == expected[:2]
        assert mine[2] == pytest.approx(expected[2], rel=1e-4)
        assert mine[3] == pytest.approx(expected[3], rel=1e-4)
    points = {tuple(sorted(params.items())) for params, _, _, _ in paused.trials()}
    assert len(points) == len(paused.trials()) == 4
