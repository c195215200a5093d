"""Telling how a trial ended."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import optuna
from optuna.trial import TrialState

from search_spaces.wording import SENTENCE_CHARACTERS, shortened
from service.optuna_store.studies import frozen_trial, storage_of
from service.states import AttemptState

OUTCOME_ATTR = "outcome"
REASON_ATTR = "reason"
OUT_OF_MEMORY_CONSTRAINT = "out_of_memory"


STATE_OF: dict[AttemptState, TrialState] = {
    AttemptState.COMPLETED: TrialState.COMPLETE,
    AttemptState.PRUNED: TrialState.PRUNED,
    # A sampler ignores failed trials, so it would never learn to avoid these two.
    AttemptState.DIVERGED: TrialState.PRUNED,
    AttemptState.OUT_OF_MEMORY: TrialState.PRUNED,
    AttemptState.FAILED: TrialState.FAIL,
    AttemptState.CANCELLED: TrialState.FAIL,
}


def tell(
    study: optuna.Study,
    number: int,
    outcome: AttemptState,
    reason: str,
    *,
    value: float | None = None,
    costs: Sequence[float] = (),
    violations: Mapping[str, float] | None = None,
) -> None:
    """Tell how a trial ended. Telling again changes nothing.

    Running out of memory is also a violated constraint, so that the sampler learns where memory ends;
    trials without the constraint count as feasible in Optuna 5 (`_split_trials` of its TPE sampler).

    Args:
        study: the Optuna study.
        number: the trial.
        outcome: how it ended; kept as a user attribute beside the reason. Never `lost`.
        reason: why, in words.
        value: the objective at the best rung, of a completed trial and of no other.
        costs: what it cost, in the order of `objective.costs`; likewise.
        violations: constraint -> by how much its bound is exceeded; at most 0 where it is kept.
    """
    frozen = frozen_trial(study, number)
    if frozen.state.is_finished():
        return  # told before, by a coordinator that died afterwards
    broken = dict(violations or {})
    if outcome is AttemptState.OUT_OF_MEMORY:
        broken[OUT_OF_MEMORY_CONSTRAINT] = 1.0
    for name, violation in broken.items():
        if name not in frozen.constraints:
            optuna.trial.Trial(study, frozen._trial_id).set_constraint(name, violation)
    # The attributes come first: those of a finished trial cannot be changed.
    storage = storage_of(study)
    storage.set_trial_user_attr(frozen._trial_id, OUTCOME_ATTR, str(outcome))
    storage.set_trial_user_attr(frozen._trial_id, REASON_ATTR, shortened(reason, SENTENCE_CHARACTERS))
    values = [value, *costs] if outcome is AttemptState.COMPLETED and value is not None else None
    study.tell(number, values, state=STATE_OF[outcome], skip_if_finished=True)
