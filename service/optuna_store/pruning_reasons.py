"""Why a trial was pruned, in one sentence with the numbers that the pruner judged by. Pure."""

from __future__ import annotations

from search_spaces.pruning.findings import (
    BehindPeers,
    BeyondThreshold,
    NoImprovement,
    PruningFinding,
    TooEarly,
    WorseThanBest,
)
from search_spaces.wording import counted


def describe(metric: str, finding: PruningFinding) -> str:
    """For example `eval_loss 2.31 at 1,000 examples, cut-off 1.87 of 9 peers`.

    Args:
        metric: the objective's.
        finding: why the trial is to be pruned.
    """
    judged = f"{metric} {_short(finding.value)} at {finding.rung:,} examples"
    match finding:
        case BehindPeers():
            return f"{judged}, cut-off {_short(finding.cut_off)} of {counted(finding.peers, 'peer')}"
        case TooEarly():
            first = counted(finding.bootstrap_count, "trial")
            return (
                f"{judged}, among the first {first} to get there, which are always pruned (bootstrap_count)"
            )
        case BeyondThreshold():
            return f"{judged}, {finding.side} the threshold {_short(finding.threshold)}"
        case WorseThanBest():
            return (
                f"{judged}, worse over {counted(finding.pairs, 'rung')} than trial {finding.best}, the best"
                f" so far, by {_short(finding.difference)} on average: p {_short(finding.p)} is below"
                f" {_short(finding.p_threshold)} (Wilcoxon)"
            )
        case NoImprovement():
            waited = finding.rung - finding.best_rung
            by = f" by more than {_short(finding.min_delta)}" if finding.min_delta else ""
            said = ""
            if finding.wrapped is not None:
                said = f"; {finding.wrapped_algorithm}: {describe(metric, finding.wrapped)}"
            return (
                f"{judged}, worse{by} than its best ({_short(finding.best)} at {finding.best_rung:,}"
                f" examples) for {waited:,} examples{said}"
            )


def _short(value: float) -> str:
    return f"{value:.4g}"
