"""Which hyperparameters a trial gets: grid, random, qmc, tpe, gp or cmaes, from a definition.

A suggestion depends on the definition, the study's preparation, the trial's number and (tpe, gp, cmaes) on
what the storage holds of earlier trials, never on how often the asking process was restarted. Optuna's own
samplers keep their random state in memory: after a restart the same seed suggests the same points again. So
every draw has its own generator, seeded from (search.seed, trial number), and every model is built anew.

A trial is created with all its parameters in one transaction, so there is no moment at which an asker can
die and leave half of one. Its number is known before, because there is one asker: the coordinator that holds
the study's lease. Parameters that are inactive in its configuration are not among them.

No configuration gets two trials, unless the first one failed or was cancelled and there is no other left;
none that `Preparation.evaluated` names gets any. A configuration that was tried before is drawn again a few
times. After that, in a finite space, the nearest untried configuration takes its place.

Grid: trial n is grid point n, after the enqueued points. Optuna's GridSampler is never used: it picks among
unvisited points at random, and so repeats some under concurrent asks.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from functools import cached_property
from typing import Any

from optuna.distributions import BaseDistribution
from optuna.study import Study
from optuna.trial import FrozenTrial, Trial

from search_spaces.definition import StudyDefinition
from search_spaces.errors import RequestRefusedError, SearchSpaceExhausted, SuggestionError
from search_spaces.preparation import NOTHING, Preparation
from search_spaces.sampling.axes import axes_of
from search_spaces.sampling.creation import create, encoded, running, storage_of
from search_spaces.sampling.history import (
    ENQUEUED,
    EVALUATES,
    REPEAT_OF,
    SEED,
    SUGGESTION_KEY,
    Avoided,
    History,
    is_orphaned,
    is_searched,
)
from search_spaces.sampling.nearest import nearest_untried
from search_spaces.sampling.plan import (
    Values,
    enqueued_points,
    grid_entries,
    grid_entry,
    planned_trials,
    prepared_space,
)
from search_spaces.sampling.requested import Request, complete, grid_entry_like
from search_spaces.sampling.study_copy import PriorResult, StudyCopy, parameter_distribution
from search_spaces.sampling.uninformed import derive_seed, draw_random, draw_sobol
from search_spaces.space.search_space import SearchSpace

REDRAWS = 4
"""How often a configuration that was tried before is drawn again before the nearest untried one is taken.

Tried on a prototype of this sampler, searching 20 % of a table of 384 fine-tunes
(benchmarks/data/quickstart.json) for its one best: found with 51 of 60 seeds with 4 redraws and 52 with 10;
and, while the first trials were still random ones, with 20 of 24 seeds with 10 redraws and 16 with none."""
RANDOM_REDRAWS = 1000
"""The same in an infinite space, uniformly at random: a condition may still leave a finite part of it."""
RACES = 3
"""How often an ask may find that another asker got its number, before it gives up."""


def distributions(space: SearchSpace) -> dict[str, BaseDistribution]:
    """The Optuna distributions of a search space as the storage holds them, in the order of the space."""
    return {name: parameter_distribution(p) for name, p in space.parameters.items()}


def n_startup_trials(trials: int) -> int:
    """Finished trials before a model takes over from a Sobol sequence.

    Optuna's default is 10; a study of fewer than 40 trials would spend more than a quarter of itself on
    them, so there it is a quarter, but at least 4. With the prototype and the table of `REDRAWS`, none of
    these was better than noise (24 seeds): 6 trials in place of 10; 64 candidates in place of Optuna's 24; a
    fifth of the trials, or a quarter of the root of their number, as good ones in place of a tenth.
    """
    return max(4, min(10, trials // 4))


def suggest(
    study: Study,
    definition: StudyDefinition,
    preparation: Preparation = NOTHING,
    *,
    sole_asker: bool = False,
    request: Request | None = None,
) -> Trial:
    """Asks for one trial: it is RUNNING in the study's storage and has all its parameters.

    One asker at a time: the coordinator that holds the study's lease.

    Args:
        study: The study, of which earlier trials are read.
        definition: The study's.
        preparation: The study's; the same at every call.
        sole_asker: Nobody else can ask, so a trial that appears meanwhile is of this call. Storages create a
            trial again when the connection broke before they heard that it had been created; one that
            raises `TrialNumberTaken` then creates no second one.
        request: What a person wants of this trial; its user attribute `enqueued` names the request.

    Raises:
        SearchSpaceExhausted: Every configuration has had its trial.
        RequestRefusedError: Every one that the request leaves has.
        SuggestionError: The algorithm cannot run here, or another process keeps asking too.
    """
    for _ in range(RACES):
        trials = study.get_trials(deepcopy=False)
        number = len(trials)
        suggester = _Suggester(study, definition, preparation, trials)
        values = suggester.values(number) if request is None else suggester.requested(number, request)
        by_name = distributions(prepared_space(definition, preparation))
        attrs = None if request is None else {ENQUEUED: request.id}
        made = create(study, values, by_name, number, user_attrs=attrs)
        if made is not None:
            return made
        first = next((t for t in running(study) if t.number >= number), None)
        if sole_asker and first is not None:
            return Trial(study, first._trial_id)
    raise SuggestionError("another process asks for trials of this study at the same time")


def complete_suggestion(
    study: Study, definition: StudyDefinition, trial: FrozenTrial, preparation: Preparation = NOTHING
) -> Trial:
    """Gives a RUNNING trial the parameters it is missing, if any.

    A trial made by `suggest` or `suggest_repeat` has them all and is left as it is. Another one gets what
    `suggest` would suggest for its number; that is written down first, so that dying half-way and coming
    back after other trials have finished makes no difference.

    Raises:
        SearchSpaceExhausted: Every configuration has had its trial.
        SuggestionError: The algorithm cannot run here.
    """
    if is_searched(trial):
        storage = storage_of(study)
        params: dict[str, Any] | None = trial.system_attrs.get(SUGGESTION_KEY)
        if params is None:
            others = [other for other in study.get_trials(deepcopy=False) if other.number != trial.number]
            params = encoded(_Suggester(study, definition, preparation, others).values(trial.number))
            storage.set_trial_system_attr(trial._trial_id, SUGGESTION_KEY, params)
        by_name = distributions(prepared_space(definition, preparation))
        for name, value in params.items():
            if name not in trial.params:
                internal = by_name[name].to_internal_repr(value)
                storage.set_trial_param(trial._trial_id, name, internal, by_name[name])
    return Trial(study, trial._trial_id)


def is_complete(trial: FrozenTrial) -> bool:
    """Whether a trial has all parameters of its configuration. Repeats and evaluations are made whole."""
    params = trial.system_attrs.get(SUGGESTION_KEY)
    return not is_searched(trial) or (params is not None and set(params) <= set(trial.params))


def suggest_repeat(study: Study, definition: StudyDefinition, of: int, seed: int) -> Trial:
    """A RUNNING trial with the parameters of another one, which is to run with another seed.

    It is no part of the search: no sampler learns from it. User attributes `repeat_of` and `seed` say what
    it is.

    One asker at a time, as for `suggest`. A repeat that runs already is returned in place of a second one.

    Args:
        study: The study.
        definition: The study's.
        of: The number of the trial that is repeated.
        seed: The recipe's seed.

    Raises:
        SuggestionError: There is no such trial, or it is a repeat itself.
    """
    trials = study.get_trials(deepcopy=False)
    if not 0 <= of < len(trials) or not is_searched(trials[of]) or is_orphaned(trials[of]):
        raise SuggestionError(f"study {definition.name} has no trial {of} that can be repeated")
    repeated = trials[of]
    values = definition.search.space.decode(repeated.params)
    return _made(study, values, repeated.distributions, {REPEAT_OF: of, SEED: seed})


def suggest_evaluation(study: Study, evaluates: Mapping[str, Any]) -> Trial:
    """A RUNNING trial without parameters, which trains nothing and evaluates an adapter that there is.

    It is no part of the search: no sampler learns from it. The user attribute `evaluates` says what it is.

    One asker at a time, as for `suggest`. An equal one that runs already is returned in place of a second.

    Args:
        study: The study.
        evaluates: Whose adapter, and where it is; JSON.

    Raises:
        SuggestionError: Another process keeps asking too.
    """
    return _made(study, {}, {}, {EVALUATES: dict(evaluates)})


def _made(
    study: Study, values: Values, by_name: Mapping[str, BaseDistribution], attrs: dict[str, Any]
) -> Trial:
    """A RUNNING trial with these user attributes: the one that there is, else a new one."""
    for _ in range(RACES):
        # Not `<=` of their items: a value may be a mapping, which has no hash.
        same = (t for t in running(study) if all(t.user_attrs.get(key) == attrs[key] for key in attrs))
        if (found := next(same, None)) is not None:
            return Trial(study, found._trial_id)
        number = len(study.get_trials(deepcopy=False))
        made = create(study, values, by_name, number, user_attrs=attrs)
        if made is not None:
            return made
    raise SuggestionError("another process asks for trials of this study at the same time")


class _Suggester:
    """What one suggestion of one study is made from."""

    def __init__(
        self,
        study: Study,
        definition: StudyDefinition,
        preparation: Preparation,
        trials: list[FrozenTrial],
    ) -> None:
        self._study = study
        self._definition = definition
        self._preparation = preparation
        self._space = prepared_space(definition, preparation)
        self._axes = axes_of(self._space)
        self._history = History.read(self._space, trials)
        self._evaluated = frozenset(preparation.evaluated)
        self._evaluations = [trial.number for trial in trials if EVALUATES in trial.user_attrs]

    def values(self, number: int) -> Values:
        """The configuration of trial `number`.

        It is drawn as if no trial before it had been an evaluation: a sweep that evaluates a champion first
        searches what its definition searches when it is submitted by itself.
        """
        number -= sum(evaluation < number for evaluation in self._evaluations)
        on_grid = self._definition.search.algorithm == "grid"
        enqueued = enqueued_points(self._space, self._preparation, on_grid=on_grid)
        handed_out = self._history.handed_out
        if on_grid and self._history.requested:  # a person has taken some out of their order
            return self._grid_entry_like({})
        if on_grid:
            # All entries differ, so this is the trial's number, unless a number was lost to a race.
            return grid_entry(self._space, enqueued, len(handed_out), self._evaluated)
        for point in enqueued:
            if self._space.configuration_key(point) not in handed_out:
                return point
        return self._untried(number)

    def requested(self, number: int, request: Request) -> Values:
        """The configuration of trial `number`, which a person wants to have these values."""
        if self._definition.search.algorithm == "grid":
            return self._grid_entry_like(request.given)
        avoided = Avoided(self._history.used, self._evaluated)  # what has failed may be asked for again
        return complete(self._space, request.given, self._draws(number), avoided)

    def _draws(self, number: int) -> Iterator[Values]:
        draw, seed = self._drawer(number), self._definition.search.seed
        for attempt in range(1 + REDRAWS):
            yield draw(attempt)
        for attempt in range(RANDOM_REDRAWS):
            yield draw_random(self._axes, seed, number, "anywhere", attempt)

    def _grid_entry_like(self, given: Mapping[str, Any]) -> Values:
        """The first point of the grid with these values that has had no trial."""
        enqueued = enqueued_points(self._space, self._preparation, on_grid=True)
        entries = grid_entries(self._space, enqueued, 0, self._evaluated)
        try:
            return grid_entry_like(self._space, entries, given, self._history.handed_out.__contains__)
        except RequestRefusedError as error:
            if given:
                raise
            raise SearchSpaceExhausted(str(error)) from None

    def _untried(self, number: int) -> Values:
        space, size = self._space, self._space.size()
        avoided = self._avoided(size)
        draw = self._drawer(number)
        first = draw(0)
        for attempt in range(1 + REDRAWS):
            drawn = draw(attempt) if attempt else first
            if space.configuration_key(drawn) not in avoided:
                return space.prune_inactive(drawn)
        if size is None:
            return self._random_untried(number)
        seed = derive_seed(self._definition.search.seed, number, "nearest")
        nearest = nearest_untried(space, self._axes, avoided, first, seed)
        assert nearest is not None, "fewer keys than configurations"
        return space.prune_inactive(nearest)

    def _avoided(self, size: int | None) -> Avoided:
        """The configurations that are not to be suggested, of a space with so many."""
        history, evaluated = self._history, self._evaluated
        left = None if size is None else size - len(evaluated)
        if left is None or len(history.handed_out) < left:
            # What failed may fail again, and no model learns from it: as long as there is something else, it
            # is not tried again.
            return Avoided(history.handed_out, evaluated)
        if len(history.used) < left:
            return Avoided(history.used, evaluated)
        what = f"every configuration of the search space has been evaluated ({size})"
        raise SearchSpaceExhausted(
            f"{what}, {len(evaluated)} of them in earlier sweeps" if evaluated else what
        )

    def _random_untried(self, number: int) -> Values:
        avoided = self._avoided(None)
        for attempt in range(RANDOM_REDRAWS):
            drawn = draw_random(self._axes, self._definition.search.seed, number, "anywhere", attempt)
            if self._space.configuration_key(drawn) not in avoided:
                return self._space.prune_inactive(drawn)
        raise SearchSpaceExhausted(f"{RANDOM_REDRAWS:,} random draws found no configuration without a trial")

    def _drawer(self, number: int) -> Callable[[int], Values]:
        """Draws a value for every parameter, inactive ones too, by attempt."""
        search, axes, study_copy = self._definition.search, self._axes, self._study_copy

        def random(attempt: int) -> Values:
            return draw_random(axes, search.seed, number, attempt)

        def sobol(attempt: int) -> Values:
            # Another attempt is the same point of another sequence.
            return draw_sobol(axes, number, search.seed, "sobol", attempt)

        if search.algorithm == "random" or not study_copy.axes:
            return random
        if search.algorithm == "qmc" or study_copy.finished < self._startup:
            return sobol
        informed = self._informed_drawer(number)
        # What a model does not draw, because there is one value only or it saw no trial with it, is random.
        return lambda attempt: {**random(attempt), **informed(attempt)}

    def _informed_drawer(self, number: int) -> Callable[[int], Values]:
        # Imported when used: they load scipy and PyTorch.
        from search_spaces.sampling import cmaes, model_based

        search, study_copy = self._definition.search, self._study_copy
        if search.algorithm == "cmaes":
            return cmaes.cmaes_drawer(study_copy, search.seed, number)
        draw = model_based.draw_tpe if search.algorithm == "tpe" else model_based.draw_gp
        return lambda attempt: draw(study_copy, derive_seed(search.seed, number, search.algorithm, attempt))

    @property
    def _startup(self) -> int:
        # CMA-ES has a first population of its own.
        if self._definition.search.algorithm == "cmaes":
            return 0
        return n_startup_trials(planned_trials(self._definition, self._preparation))

    @cached_property
    def _study_copy(self) -> StudyCopy:
        prior = []
        for earlier in self._preparation.prior:
            values = self._space.decode(earlier.params)
            if self._space.contains(values):
                prior.append(PriorResult(values, earlier.value))
        return StudyCopy(
            axes={name: axis for name, axis in self._axes.items() if axis.size != 1},
            history=self._history,
            prior=prior if len(self._study.directions) == 1 else [],
            directions=self._study.directions,
            conditional=self._space.conditional,
        )
