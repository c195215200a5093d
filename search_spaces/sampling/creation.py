"""Making trials in Optuna's storage, whole and with a number that was known before."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from optuna.distributions import BaseDistribution
from optuna.storages import BaseStorage
from optuna.study import Study
from optuna.trial import FrozenTrial, Trial, TrialState, create_trial

from search_spaces.errors import TrialNumberTaken
from search_spaces.parameters.choices import encode_choice
from search_spaces.sampling.history import DRAWN_FOR_KEY, SUGGESTION_KEY, is_orphaned
from search_spaces.sampling.plan import Values


def running(study: Study) -> list[FrozenTrial]:
    """Trials that run, by number, without orphaned ones."""
    found = study.get_trials(deepcopy=False, states=(TrialState.RUNNING,))
    return [trial for trial in found if not is_orphaned(trial)]


def create(
    study: Study,
    values: Values,
    by_name: Mapping[str, BaseDistribution],
    number: int,
    user_attrs: dict[str, Any] | None = None,
) -> Trial | None:
    """A RUNNING trial of that number. None where another has it: one that was asked for at the same time, or
    this very one, whose creation was not heard of and tried again.
    """
    params = encoded(values)
    template = create_trial(
        state=TrialState.RUNNING,
        params=params,
        distributions={name: by_name[name] for name in params},
        user_attrs=user_attrs,
        system_attrs={SUGGESTION_KEY: params, DRAWN_FOR_KEY: number},
    )
    try:
        # As Study.add_trial does it, which has no use for what it makes; there is no public call.
        trial = Trial(study, storage_of(study).create_new_trial(study._study_id, template_trial=template))
    except TrialNumberTaken:
        return None
    if trial.number == number:
        return trial
    # What was drawn was for another number, and the storage does not look.
    study.tell(trial, state=TrialState.FAIL, skip_if_finished=True)
    return None


def encoded(values: Values) -> dict[str, Any]:
    """Values as Optuna's distributions hold them."""
    return {name: encode_choice(value) for name, value in values.items()}


def storage_of(study: Study) -> BaseStorage:
    """Where a study is kept; Optuna has no public name for it."""
    return study._storage
