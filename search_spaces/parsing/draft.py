"""A document as far as it was readable, for the rules between its sections."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from search_spaces.definition import (
    Bound,
    BudgetSpec,
    DataSpec,
    EvaluationSpec,
    ObjectiveSpec,
    RepeatsSpec,
    ResourcesSpec,
    SearchSpec,
    WarmStartSpec,
)
from search_spaces.parameters.kinds import Parameter
from search_spaces.recipe import Recipe
from search_spaces.space.search_space import SearchSpace
from search_spaces.tasks import Task


@dataclass(frozen=True, kw_only=True)
class Draft:
    """None stands for a section with faults, of which nothing may be concluded."""

    task: Task | None
    data: DataSpec | None
    metrics: Mapping[str, str] | None
    losses: Mapping[str, str] | None
    search: SearchSpec | None
    """Where `space` is None, its space stands in for one with faults."""
    algorithm: str | None
    """Known even where another key of the section is at fault."""
    parameters: Mapping[str, Parameter]
    """Those that were readable."""
    space: SearchSpace | None
    """All of them; None if any is at fault."""
    recipe: Mapping[str, Any] | None
    """What is fixed, the preset's values included."""
    loss: str | None
    """The loss that is fixed, known even where another field of the recipe is at fault; None too where there
    is none."""
    objective: ObjectiveSpec | None
    pruning: Any
    evaluation: EvaluationSpec | None
    budget: BudgetSpec | None
    resources: ResourcesSpec | None
    constraints: Mapping[str, Bound] | None
    warm_start: WarmStartSpec | None
    """None too where there is none."""
    repeats: RepeatsSpec | None
    """None too where there are none."""

    def fixed(self, name: str) -> Any:
        """The value of a recipe field where it is not searched: fixed, or the default."""
        default = Recipe.model_fields[name].default
        return default if self.recipe is None else self.recipe.get(name, default)

    def total_trials(self) -> int | None:
        """The number of search trials; None if it is not known."""
        if self.search is None or self.space is None:
            return None
        try:
            return self.search.total_trials
        except ValueError:
            return None
