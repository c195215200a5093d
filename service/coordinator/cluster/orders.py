"""What a worker is told to train, from a study's definition and the attempt's row."""

from __future__ import annotations

from collections.abc import Iterable
from datetime import datetime

from search_spaces.definition import COSTS, ModelSpec, StudyDefinition
from search_spaces.recipe import Recipe
from search_spaces.values.artifact_layout import CHECKPOINT
from search_spaces.values.artifact_urls import join
from service.db.kinds import StudyKind
from service.db.models import Attempt
from workers.contract import RateSweep, TrialOrder


def model_of(definition: StudyDefinition, recipe: Recipe) -> ModelSpec:
    """The base that a recipe trains on: the definition's, quantized as the recipe says, where it does."""
    if recipe.quantization is None:
        return definition.model
    return definition.model.model_copy(update={"quantization": recipe.quantization})


def base_of(model: ModelSpec) -> str:
    """A base in words, as `WorkerInfo.base` has it. Within a study, equal words are equal bases."""
    return f"{model.id} {model.quantization}"


def checkpoint_of(attempt: Attempt) -> str:
    """Where an attempt keeps its checkpoint: a path or a URL."""
    return join(attempt.artifact_dir, CHECKPOINT)


def make_order(
    definition: StudyDefinition,
    recipe: Recipe,
    attempt: Attempt,
    earlier: Iterable[Attempt],
    kind: StudyKind = StudyKind.SEARCH,
    created_at: datetime | None = None,
    evaluates: str | None = None,
) -> TrialOrder:
    """The order for an attempt.

    Args:
        definition: the study's.
        recipe: the trial's.
        attempt: the attempt that is about to begin.
        earlier: the trial's attempts before it, oldest first. Whether one left a checkpoint only the worker
            can see: artifacts need not lie on the coordinator's machine.
        kind: whether the trial is trained, or its learning rate swept.
        created_at: when the study was, which is the date that a chat template writes.
        evaluates: the adapter that is evaluated, where nothing is trained: a path or a URL.
    """
    test = definition.search.learning_rate_range_test if kind is StudyKind.RANGE_TEST else None
    sweep = None if test is None else RateSweep(first=test.min, last=test.max, steps=test.steps)
    resources = definition.resources
    micro_batch, together = resources.micro_batch_size, resources.trials_per_worker
    return TrialOrder(
        attempt_id=attempt.id,
        study_id=attempt.study_id,
        trial_number=attempt.trial_number,
        model=model_of(definition, recipe),
        data=definition.data,
        task=definition.task,
        metrics=definition.metrics,
        losses=definition.losses,
        constrained=tuple(name for name in definition.constraints if name not in COSTS),
        recipe=recipe,
        varied=tuple(definition.search.space.parameters),
        objective=definition.objective,
        evaluation=definition.evaluation,
        micro_batch_size=None if micro_batch == "auto" else micro_batch,
        trials_per_worker=None if together == "auto" else together,
        gradient_checkpointing=resources.gradient_checkpointing,
        keep_decoded=resources.keep_decoded,
        artifact_dir=attempt.artifact_dir,
        resume_from=tuple(checkpoint_of(a) for a in reversed(list(earlier))),
        study_created_at=created_at,
        rate_sweep=sweep,
        evaluates=evaluates,
    )
