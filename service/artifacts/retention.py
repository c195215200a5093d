"""Which adapters of a study that has ended are kept. Pure."""

from __future__ import annotations

from collections.abc import Collection, Iterable, Mapping, Sequence
from typing import Any

from search_spaces.definition import StudyDefinition
from search_spaces.values.artifact_layout import ADAPTERS, CHECKPOINT
from service.analysis import best
from service.artifacts.layout import Folder, folder_of
from service.optuna_store.values import TrialValues


def trials_to_keep(definition: StudyDefinition, trials: Sequence[TrialValues], keep: int) -> frozenset[int]:
    """Trials whose adapters are kept.

    Args:
        definition: the study's.
        trials: all of its trials.
        keep: how many. They are the best by the objective among those that completed and break no constraint;
            repeats are left out. The winner, which repeats may have decided, is the first of them. With
            several objectives the whole Pareto front is kept beside them. 0 keeps nothing at all.
    """
    if keep == 0:
        return frozenset()
    ranked = [trial.number for trial in best.completed(definition, trials)]
    judged = best.judgement(definition, trials, over=True)
    if judged is not None:
        ranked.sort(key=lambda number: number != judged.winner)
    numbers = set(ranked[:keep])
    if definition.objective.costs:
        numbers.update(trial.number for trial in best.pareto_front(definition, trials))
    return frozenset(numbers)


def referenced(study_id: str, outcomes: Iterable[Mapping[str, Any] | None]) -> frozenset[Folder]:
    """The adapters that a trial's outcomes lead to: of each kind the latest one.

    Args:
        study_id: the study.
        outcomes: of the trial's attempts, oldest first.
    """
    latest: dict[str, Folder] = {}
    for outcome in outcomes:
        for which in ADAPTERS:
            place = (outcome or {}).get(f"{which}_adapter_dir")
            if isinstance(place, str) and (found := folder_of(place, study_id)) is not None:
                latest[which] = found
    return frozenset(latest.values())


def why_removed(
    folder: Folder, *, keep: int | None, trials: Collection[int], adapters: Collection[Folder]
) -> str | None:
    """Why a folder of a study that has ended is not needed any more; None: it is kept.

    Args:
        folder: one that a worker made.
        keep: how many trials' adapters are kept; None: all.
        trials: those trials.
        adapters: the adapters that their outcomes lead to.
    """
    if folder.name == CHECKPOINT:
        return "its trial has ended"
    if folder.name not in ADAPTERS:
        return "it is incomplete"
    if keep is None:
        return None
    if folder.trial not in trials:
        if keep == 0:
            return "no adapters are kept"
        return "its trial is not the best" if keep == 1 else f"its trial is not among the best {keep}"
    return None if folder in adapters else "a later attempt of its trial saved another adapter"
