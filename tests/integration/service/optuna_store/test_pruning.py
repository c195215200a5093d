"""What the pruner said is in Optuna's real storages, for the coordinator that comes next."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from search_spaces.parsing.document import parse_definition
from service.optuna_store.reporting import report, should_prune
from service.optuna_store.storage import Storage, close_storage, open_storage
from service.optuna_store.studies import ensure_study
from service.settings import Settings


def test_a_verdict_outlives_its_coordinator_whatever_was_reported_meanwhile(
    storage: Storage, settings: Settings, definition: Callable[..., dict[str, Any]]
) -> None:
    pruning = {"algorithm": "asha", "reduction_factor": 2, "n_min_trials": 1}
    wanted = parse_definition(definition(pruning=pruning, evaluation={"every_examples": 100}))
    study = ensure_study(storage, "a", wanted)
    verdicts = []
    for value in (2.0, 3.0, 1.0, 0.5):
        number = study.ask().number
        report(study, number, 100, value)
        verdicts.append(should_prune(study, wanted, number, 900))
    # By what was reported in the end the first would be pruned, too.
    assert verdicts == [None, "eval_loss 3 at 100 examples, cut-off 2 of 1 peer", None, None]
    other = open_storage(settings)
    again = ensure_study(other, "a", wanted)
    for number, verdict in enumerate(verdicts):
        assert not report(again, number, 50, 9.0), "not its newest rung"
        assert should_prune(again, wanted, number, 900) == verdict
    close_storage(other)
