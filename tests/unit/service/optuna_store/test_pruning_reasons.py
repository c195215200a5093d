"""Each finding of a pruner, in one sentence with its numbers."""

from __future__ import annotations

import pytest

from search_spaces.pruning.findings import (
    BehindPeers,
    BeyondThreshold,
    NoImprovement,
    PruningFinding,
    TooEarly,
    WorseThanBest,
)
from service.optuna_store.pruning_reasons import describe

BEHIND = BehindPeers(rung=1500, value=2.3104, cut_off=1.87, peers=9)
STALE = {"rung": 1500, "value": 2.31, "best": 1.87, "best_rung": 600}


@pytest.mark.parametrize(
    ("finding", "words"),
    [
        (BEHIND, "eval_loss 2.31 at 1,500 examples, cut-off 1.87 of 9 peers"),
        (
            BehindPeers(rung=100, value=2.0, cut_off=1.0, peers=1),
            "eval_loss 2 at 100 examples, cut-off 1 of 1 peer",
        ),
        (
            TooEarly(rung=100, value=0.5, bootstrap_count=3),
            "eval_loss 0.5 at 100 examples, among the first 3 trials to get there, which are always"
            " pruned (bootstrap_count)",
        ),
        (
            BeyondThreshold(rung=1000, value=2.31, threshold=2.0, side="above"),
            "eval_loss 2.31 at 1,000 examples, above the threshold 2",
        ),
        (
            WorseThanBest(rung=1000, value=2.31, best=4, pairs=5, difference=0.2, p=0.03125, p_threshold=0.1),
            "eval_loss 2.31 at 1,000 examples, worse over 5 rungs than trial 4, the best so far, by 0.2 on"
            " average: p 0.03125 is below 0.1 (Wilcoxon)",
        ),
        (
            NoImprovement(**STALE, min_delta=0.0),
            "eval_loss 2.31 at 1,500 examples, worse than its best (1.87 at 600 examples) for 900 examples",
        ),
        (
            NoImprovement(**STALE, min_delta=0.001, wrapped=BEHIND, wrapped_algorithm="median"),
            "eval_loss 2.31 at 1,500 examples, worse by more than 0.001 than its best (1.87 at 600 examples)"
            " for 900 examples; median: eval_loss 2.31 at 1,500 examples, cut-off 1.87 of 9 peers",
        ),
    ],
    ids=lambda value: type(value).__name__ if not isinstance(value, str) else "",
)
def test_a_finding_is_told_with_its_numbers(finding: PruningFinding, words: str) -> None:
    assert describe("eval_loss", finding) == words
