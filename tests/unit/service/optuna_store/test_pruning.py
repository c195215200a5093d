"""Every pruner through the store's door: it prunes, it spares, and its word does not change."""

from __future__ import annotations

import random
from collections.abc import Callable
from typing import Any

import optuna
import pytest
from optuna.trial import TrialState

from search_spaces.definition import StudyDefinition
from search_spaces.parsing.document import parse_definition
from search_spaces.sampling.history import REPEAT_OF
from service.optuna_store.reporting import report, should_prune
from service.optuna_store.telling import tell
from service.states import AttemptState

LONGEST = 900
RUNGS = tuple(range(100, LONGEST + 1, 100))

PAPERS_ASHA: dict[str, Any] = {"algorithm": "asha", "reduction_factor": 3, "n_min_trials": 1}
PRUNERS: tuple[dict[str, Any], ...] = (
    {"algorithm": "median", "n_startup_trials": 2},
    {"algorithm": "percentile", "n_startup_trials": 2},
    PAPERS_ASHA,
    {"algorithm": "hyperband", "min_examples": 100, "max_examples": 400},
    {"algorithm": "threshold", "upper": 8},
    {"algorithm": "wilcoxon"},
    {"algorithm": "patient", "patience": 1},
    {"algorithm": "patient", "patience_examples": 200, "wrapped": PAPERS_ASHA},
)
every_pruner = pytest.mark.parametrize("pruning", PRUNERS, ids=lambda p: "-".join(map(str, p.values())))


def defined(pruning: dict[str, Any]) -> StudyDefinition:
    return parse_definition(
        {
            "name": "a",
            "model": {"id": "org/base"},
            "data": {"train": "train.jsonl", "eval": "eval.jsonl"},
            "search": {"trials": 30, "space": {"learning_rate": {"min": 1e-5, "max": 1e-3}}},
            "evaluation": {"every_examples": 100},
            "pruning": pruning,
        }
    )


class Searching:
    """A study that a coordinator reports to."""

    def __init__(self, pruning: dict[str, Any], *, study: optuna.Study | None = None) -> None:
        self.definition = defined(pruning)
        self.study = study or optuna.create_study(storage=optuna.storages.InMemoryStorage())

    def trial(self, loss: Callable[[int], float], *, rungs: tuple[int, ...] = RUNGS) -> str | None:
        """One trial to its end: why it was pruned, if it was."""
        number = self.study.ask().number
        for rung in rungs:
            if (reason := self.judged(number, rung, loss(rung))) is not None:
                tell(self.study, number, AttemptState.PRUNED, reason)
                return reason
        tell(self.study, number, AttemptState.COMPLETED, "done", value=min(map(loss, rungs)))
        return None

    def judged(self, number: int, rung: int, value: float) -> str | None:
        assert report(self.study, number, rung, value)
        return self.ask_pruner(number)

    def ask_pruner(self, number: int) -> str | None:
        return should_prune(self.study, self.definition, number, LONGEST)


def good(rung: int) -> float:
    return 1 + 100 / rung


def bad(rung: int) -> float:
    """Ever worse."""
    return 9 + rung / 100


@every_pruner
def test_a_bad_trial_is_pruned_with_its_numbers_and_a_good_one_is_spared(pruning: dict[str, Any]) -> None:
    searching = Searching(pruning)
    assert [searching.trial(good) for _ in range(4)] == [None] * 4
    reasons = [searching.trial(bad) for _ in range(6)]
    if pruning["algorithm"] == "hyperband":
        # A trial of the last bracket is pruned at 400 examples, if others of its bracket have come so far.
        assert sum(reason is not None for reason in reasons) >= 3
    else:
        assert None not in reasons
    for reason in filter(None, reasons):
        assert reason.startswith("eval_loss ")
        assert " examples" in reason
    assert searching.trial(lambda rung: good(rung) - 0.5) is None


def test_no_pruning_prunes_nothing() -> None:
    searching = Searching({"algorithm": "none"})
    assert [searching.trial(loss) for loss in (good, good, bad)] == [None] * 3


@every_pruner
def test_a_pruner_that_is_asked_again_gives_the_same_answer_whatever_was_reported_meanwhile(
    pruning: dict[str, Any],
) -> None:
    """A coordinator that dies before it acts on an answer is followed by one that asks again."""
    searching = Searching(pruning)
    dice = random.Random(1)
    live: dict[int, tuple[int, float]] = {}
    answers: dict[int, str | None] = {}
    told = {True: 0, False: 0}
    for _ in range(60):
        if len(live) < 3:
            number = searching.study.ask().number
            live[number] = (0, dice.uniform(0, 12))
        number = dice.choice(sorted(live))
        done, quality = live[number]
        answers[number] = searching.judged(number, RUNGS[done], quality + dice.uniform(-1, 1))
        live[number] = (done + 1, quality)
        storage = searching.study._storage
        again = Searching(
            pruning, study=optuna.load_study(study_name=searching.study.study_name, storage=storage)
        )
        assert {n: again.ask_pruner(n) for n in answers} == answers
        pruned = answers[number] is not None
        told[pruned] += 1
        if pruned or done + 1 == len(RUNGS):
            state = AttemptState.PRUNED if pruned else AttemptState.COMPLETED
            value = None if pruned else quality
            tell(searching.study, number, state, "ended", value=value)
            del live[number], answers[number]
    assert min(told.values()) > 0


def test_failed_and_cancelled_trials_and_repeats_are_no_peers() -> None:
    searching = Searching(PAPERS_ASHA)
    for outcome in (AttemptState.FAILED, AttemptState.CANCELLED):
        number = searching.study.ask().number
        assert searching.judged(number, 100, 0.1) is None
        tell(searching.study, number, outcome, "ended")
    searching.study.add_trial(_repeat(0.1))
    number = searching.study.ask().number
    assert searching.judged(number, 100, 1.0) is None
    later = searching.study.ask().number
    assert searching.judged(later, 100, 2.0) == "eval_loss 2 at 100 examples, cut-off 1 of 1 peer"


def test_trials_that_diverged_or_broke_a_constraint_are_peers() -> None:
    searching = Searching(PAPERS_ASHA)
    for value, outcome in ((0.5, AttemptState.OUT_OF_MEMORY), (0.25, AttemptState.DIVERGED)):
        number = searching.study.ask().number
        assert searching.judged(number, 100, value) is None
        tell(searching.study, number, outcome, "ended")
    number = searching.study.ask().number
    assert searching.judged(number, 100, 1.0) == "eval_loss 1 at 100 examples, cut-off 0.25 of 2 peers"


def test_repeats_are_never_pruned() -> None:
    searching = Searching({"algorithm": "threshold", "upper": 1})
    searching.study.add_trial(_repeat(9.0, state=TrialState.RUNNING))
    assert searching.ask_pruner(0) is None


def _repeat(value: float, state: TrialState = TrialState.COMPLETE) -> optuna.trial.FrozenTrial:
    """As `samplers.suggest_repeat` marks it, of a trial that is not in the study."""
    return optuna.trial.create_trial(
        state=state,
        value=value if state is TrialState.COMPLETE else None,
        intermediate_values={100: value},
        user_attrs={REPEAT_OF: 0},
    )
