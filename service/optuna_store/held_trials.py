"""The trials of a study as the holder of its lease reads them: from memory, since nobody else writes them.

Optuna's own cache asks the database for every running trial at every look, in seven queries each. A fence
keeps all others from writing to the study (`service.optuna_store.fences`), so what its holder has read, and
has written since, is what the database has.
"""

from __future__ import annotations

import copy
import json
from collections.abc import Callable, Container, Sequence
from datetime import datetime
from typing import Any, TypeVar

from optuna.distributions import BaseDistribution
from optuna.storages import RDBStorage
from optuna.storages._cached_storage import _CachedStorage
from optuna.trial import FrozenTrial, TrialState

T = TypeVar("T")


class HeldTrials(_CachedStorage):
    """A storage for the holder of one study's lease. It reads the study's trials once.

    After a write that failed, of which nobody can say whether it took place, it reads them again. A trial
    that it gave out is not changed by a later write, and must not be changed by whoever got it.

    Args:
        backend: the storage, fenced. What was read before the fence was raised is not kept.
    """

    def __init__(self, backend: RDBStorage) -> None:
        super().__init__(backend)
        self._read = set[int]()
        """Studies whose trials are as the database has them."""

    def get_trial(self, trial_id: int) -> FrozenTrial:
        place = self._trial_id_to_study_id_and_number.get(trial_id)
        if place is None or place[0] not in self._read:
            return super().get_trial(trial_id)
        return self._studies[place[0]].trials[place[1]]

    def get_all_trials(
        self, study_id: int, deepcopy: bool = True, states: Container[TrialState] | None = None
    ) -> list[FrozenTrial]:
        if study_id not in self._read:
            self._read_trials_from_remote_storage(study_id)
            self._read.add(study_id)
        trials = self._studies[study_id].trials
        by_number = [trials[number] for number in sorted(trials)]
        found = [trial for trial in by_number if states is None or trial.state in states]
        return copy.deepcopy(found) if deepcopy else found

    def create_new_trial(self, study_id: int, template_trial: FrozenTrial | None = None) -> int:
        return self._write(lambda: super(HeldTrials, self).create_new_trial(study_id, template_trial))

    def set_trial_param(
        self,
        trial_id: int,
        param_name: str,
        param_value_internal: float,
        distribution: BaseDistribution,
    ) -> None:
        given = trial_id, param_name, param_value_internal, distribution
        self._write(lambda: super(HeldTrials, self).set_trial_param(*given))
        value = distribution.to_external_repr(param_value_internal)
        self._note(trial_id, "params", param_name, value)
        self._note(trial_id, "distributions", param_name, distribution)

    def set_trial_intermediate_value(self, trial_id: int, step: int, intermediate_value: float) -> None:
        given = trial_id, step, intermediate_value
        self._write(lambda: super(HeldTrials, self).set_trial_intermediate_value(*given))
        self._note(trial_id, "intermediate_values", step, intermediate_value)

    def set_trial_user_attr(self, trial_id: int, key: str, value: Any) -> None:
        self._write(lambda: super(HeldTrials, self).set_trial_user_attr(trial_id, key, value))
        self._note(trial_id, "user_attrs", key, _stored(value))

    def set_trial_system_attr(self, trial_id: int, key: str, value: Any) -> None:
        self._write(lambda: super(HeldTrials, self).set_trial_system_attr(trial_id, key, value))
        self._note(trial_id, "system_attrs", key, _stored(value))

    def set_trial_state_values(
        self, trial_id: int, state: TrialState, values: Sequence[float] | None = None
    ) -> bool:
        given = trial_id, state, values
        done = self._write(lambda: super(HeldTrials, self).set_trial_state_values(*given))
        if not done or not state.is_finished():
            self._read.clear()
            return done

        def end(trial: FrozenTrial) -> None:
            trial.state, trial.datetime_complete = state, datetime.now()  # noqa: DTZ005  (as Optuna keeps it)
            if values is not None:
                trial.values = list(values)

        self._change(trial_id, end)
        return done

    def _write(self, work: Callable[[], T]) -> T:
        try:
            return work()
        except BaseException:
            self._read.clear()
            raise

    def _note(self, trial_id: int, attribute: str, key: Any, value: Any) -> None:
        def note(trial: FrozenTrial) -> None:
            setattr(trial, attribute, {**getattr(trial, attribute), key: value})

        self._change(trial_id, note)

    def _change(self, trial_id: int, change: Callable[[FrozenTrial], None]) -> None:
        """Put a changed copy in a trial's place."""
        place = self._trial_id_to_study_id_and_number.get(trial_id)
        if place is not None:
            trials = self._studies[place[0]].trials
            changed = copy.copy(trials[place[1]])
            change(changed)
            trials[place[1]] = changed


def _stored(value: Any) -> Any:
    """A value as it comes back from the database, which holds JSON."""
    return json.loads(json.dumps(value))
