"""What a worker is told to train, from a study's definition and the attempt's row."""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path

from search_spaces.definition import StudyDefinition
from search_spaces.recipe import Recipe
from service.coordinator.dispatch import TrialOrder
from service.models import Attempt

CHECKPOINT = "checkpoint"
"""Where an attempt keeps its checkpoint, in its own folder."""


def make_order(
    definition: StudyDefinition, recipe: Recipe, attempt: Attempt, earlier: Iterable[Attempt]
) -> TrialOrder:
    """The order for an attempt.

    Args:
        definition: the study's.
        recipe: the trial's.
        attempt: the attempt that is about to begin.
        earlier: the trial's attempts before it, oldest first. Whether one left a checkpoint only the worker
            can see: artifacts need not lie on the coordinator's machine.
    """
    resources = definition.resources
    micro_batch, together = resources.micro_batch_size, resources.trials_per_worker
    return TrialOrder(
        attempt_id=attempt.id,
        study_id=attempt.study_id,
        trial_number=attempt.trial_number,
        model=definition.model,
        data=definition.data,
        recipe=recipe,
        objective=definition.objective,
        evaluation=definition.evaluation,
        micro_batch_size=None if micro_batch == "auto" else micro_batch,
        trials_per_worker=None if together == "auto" else together,
        gradient_checkpointing=resources.gradient_checkpointing,
        artifact_dir=attempt.artifact_dir,
        resume_from=tuple(str(Path(a.artifact_dir) / CHECKPOINT) for a in reversed(list(earlier))),
    )
