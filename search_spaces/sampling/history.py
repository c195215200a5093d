"""What a study's storage holds of its trials, as configurations of the space."""

from __future__ import annotations

from collections.abc import Container, Hashable, Iterable, Mapping
from dataclasses import dataclass
from functools import cached_property
from typing import Any

from optuna.trial import FrozenTrial, TrialState

from search_spaces.space.search_space import SearchSpace, key_digest

SUGGESTION_KEY = "nightsweep:suggestion"
"""System attribute of an Optuna trial: all its parameters, as Optuna holds them."""
DRAWN_FOR_KEY = "nightsweep:drawn_for"
"""System attribute likewise: the number that the trial was to have."""
REPEAT_OF = "repeat_of"
"""User attribute of a repeat: the number of the trial whose recipe it runs again."""
SEED = "seed"
"""User attribute of a repeat: the recipe's seed."""
EVALUATES = "evaluates"
"""User attribute of an evaluation, a trial that does not train: whose adapter it evaluates, and its place."""

ENQUEUED = "enqueued"
"""User attribute of a trial that a person has asked for: the id of the request."""


def is_orphaned(trial: FrozenTrial) -> bool:
    """Whether the trial got another number than it was drawn for, because two processes asked at once.

    Such a trial is not part of the study: the process that asked for it has asked again, or has died.
    """
    return bool(trial.system_attrs.get(DRAWN_FOR_KEY, trial.number) != trial.number)


def is_searched(trial: FrozenTrial) -> bool:
    """Whether the trial is of the search: neither a repeat nor an evaluation."""
    return REPEAT_OF not in trial.user_attrs and EVALUATES not in trial.user_attrs


@dataclass(frozen=True)
class PastTrial:
    """A trial of the search, finished or running."""

    frozen: FrozenTrial
    """As the storage holds it; not to be changed."""
    values: Mapping[str, Any]
    """Its configuration, as recipe values."""
    key: Hashable
    """`SearchSpace.configuration_key` of these."""


@dataclass(frozen=True)
class History:
    """The trials of a study's search, by number; without repeats, evaluations and orphaned trials."""

    trials: tuple[PastTrial, ...]

    @classmethod
    def read(cls, space: SearchSpace, trials: Iterable[FrozenTrial]) -> History:
        """From a study's trials.

        Args:
            space: As `prepared_space` gives it.
            trials: In the order of their numbers.
        """
        past = []
        for trial in trials:
            # A trial whose asker died half-way has the parameters that were written down for it.
            params = trial.params | trial.system_attrs.get(SUGGESTION_KEY, {})
            if params and is_searched(trial) and not is_orphaned(trial):
                values = space.decode(params)
                past.append(PastTrial(trial, values, space.configuration_key(values)))
        return cls(tuple(past))

    @cached_property
    def handed_out(self) -> frozenset[Hashable]:
        """Keys of the configurations that have had a trial, whatever became of it."""
        return frozenset(trial.key for trial in self.trials)

    @cached_property
    def requested(self) -> bool:
        """Whether a person has asked for any of the trials."""
        return any(ENQUEUED in trial.frozen.user_attrs for trial in self.trials)

    @cached_property
    def used(self) -> frozenset[Hashable]:
        """Keys of those that are not to be tried again: all but the ones that failed or were cancelled."""
        return frozenset(trial.key for trial in self.trials if trial.frozen.state is not TrialState.FAIL)

    @cached_property
    def finished(self) -> int:
        """How many trials there are to learn from."""
        states = (TrialState.COMPLETE, TrialState.PRUNED)
        return sum(trial.frozen.state in states for trial in self.trials)


@dataclass(frozen=True)
class Avoided(Container[Hashable]):
    """Configurations that are not to be suggested."""

    keys: frozenset[Hashable]
    """Of this study's own trials."""
    digests: frozenset[str] = frozenset()
    """Of those that earlier sweeps have evaluated (`Preparation.evaluated`)."""

    def __contains__(self, key: object) -> bool:
        return key in self.keys or bool(self.digests and key_digest(key) in self.digests)
