"""Reads a submitted document section by section, collecting every fault before giving up.

Pydantic stops at a section's first cross-field error and reports a union member by member. So sections are
read one at a time, the member of a union that was meant is found here, and what one section demands of
another is checked on whatever was readable.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from typing import Any, TypeVar

from pydantic import BaseModel

from search_spaces.definition import (
    ALGORITHMS,
    DATA_FIELDS,
    MEASURES,
    Bound,
    BudgetSpec,
    DataSpec,
    EvaluationSpec,
    GenerateSpec,
    HubData,
    ModelSpec,
    ObjectiveSpec,
    RangeTestSpec,
    RepeatsSpec,
    ResourcesSpec,
    SearchSpec,
    Section,
    StudyDefinition,
    StudyName,
    WarmStartSpec,
)
from search_spaces.errors import Fault, InvalidDefinition
from search_spaces.faults import MAX_FAULTS, name_fault, read_model, shown, unknown_keys
from search_spaces.parameters.kinds import Parameter
from search_spaces.parsing import (
    metric_rules,
    own_functions,
    recipe_rules,
    search_rules,
    study_rules,
    task_rules,
)
from search_spaces.parsing.draft import Draft
from search_spaces.parsing.metric_rules import with_generation
from search_spaces.parsing.own_functions import read_losses, read_metrics
from search_spaces.parsing.plain import plain
from search_spaces.parsing.preset_overrides import Chosen, choose_space, doubled_faults, fix_recipe
from search_spaces.pruning.reading import read_pruning
from search_spaces.recipe import RECIPE_FIELDS, SEARCHABLE_FIELDS, recipe_faults
from search_spaces.space.reading import read_parameters
from search_spaces.space.search_space import SearchSpace
from search_spaces.tasks import TASKS, Task

Model = TypeVar("Model", bound=BaseModel)

_ANY_SPACE = SearchSpace.model_validate({"learning_rate": {"choices": [1e-4]}})
"""Stands in for a space with faults, so that the rest of its section can be read."""

RULES: tuple[Callable[[Draft], Iterator[Fault]], ...] = (
    search_rules.grid_is_finite,
    search_rules.conditions_lie_on_the_grid,
    search_rules.algorithm_fits_the_space,
    search_rules.range_test_has_a_range,
    task_rules.fields_are_the_tasks,
    task_rules.header_and_columns_agree,
    task_rules.recipe_fits_the_task,
    own_functions.losses_suit_the_task,
    own_functions.loss_is_known,
    task_rules.fewer_pairs_are_wrong_than_right,
    metric_rules.metrics_are_the_tasks,
    metric_rules.generation_is_possible,
    metric_rules.trials_compare,
    recipe_rules.searched_fields_have_an_effect,
    recipe_rules.one_alpha,
    study_rules.rungs_are_there,
    study_rules.several_objectives,
    study_rules.costs_are_the_trials_own,
    study_rules.target_can_be_reached,
    study_rules.deadline_is_known,
    study_rules.prior_is_learnt_from,
    study_rules.repeats_are_possible,
    study_rules.gpus_can_be_reserved,
)
"""What one section demands of another."""


class _Header(Section):
    name: StudyName
    task: Task = "causal_lm"


def parse_definition(document: Any) -> StudyDefinition:
    """A definition from what a user submitted: the JSON or YAML document, parsed.

    A preset is resolved here: the definition then holds its space, as the user changed it, and its recipe
    under the user's own. Submitted again as it stands, an accepted definition is accepted as the same.

    Args:
        document: Anything; only a mapping of the right form is accepted.

    Raises:
        InvalidDefinition: With every fault in the document, and never any other exception.
    """
    raw, faults = plain(document)
    if raw is None and faults:
        raise InvalidDefinition(faults)
    if not isinstance(raw, dict):
        keys = ", ".join(StudyDefinition.model_fields)
        raise InvalidDefinition(
            [Fault(path="", value=shown(raw), message="must be a mapping", allowed=f"the keys {keys}")]
        )
    reader = _Reader(raw, faults)
    definition = reader.read()
    if definition is None:
        raise InvalidDefinition(reader.faults[:MAX_FAULTS])
    return definition


def _readable_loss(raw_recipe: Mapping[str, Any] | None) -> str | None:
    loss = (raw_recipe or {}).get("loss")
    return loss if isinstance(loss, str) and not recipe_faults({"loss": loss}) else None


class _Reader:
    """One reading of one document. `faults` grows as sections are read."""

    def __init__(self, raw: dict[str, Any], faults: list[Fault]) -> None:
        self.raw = raw
        self.faults = list(faults)
        self._ill_formed = {fault.path for fault in faults}

    def read(self) -> StudyDefinition | None:
        raw = self.raw
        self.faults += unknown_keys(raw, list(StudyDefinition.model_fields), "")
        header = self._section(_Header, "", {key: raw[key] for key in ("name", "task") if key in raw})
        task = next((task for task in TASKS if task == raw.get("task", "causal_lm")), None)
        model = self._section(ModelSpec, "model", self._required("model", ModelSpec))
        draft = self._draft(task)
        for rule in RULES:
            self.faults += rule(draft)
        self._drop_repeats()
        if self.faults or draft.search is None or header is None:
            return None
        sections = {**vars(header), "model": model, **vars(draft)}
        return StudyDefinition.model_validate({name: sections[name] for name in StudyDefinition.model_fields})

    def _draft(self, task: Task | None) -> Draft:
        data = self._data()
        raw_search = self._required("search", SearchSpec)
        raw_recipe = self._raw_recipe()
        chosen = Chosen(None)
        parameters: dict[str, Parameter] = {}
        space = None
        if isinstance(raw_search, Mapping):
            chosen = choose_space(raw_search, raw_recipe or {}, self.faults)
        if chosen.space is not None:
            parameters, found = read_parameters(chosen.space)
            self.faults += [fault.below("search.space") for fault in found]
            space = None if found else SearchSpace.model_construct(parameters)
        search, algorithm = self._search(raw_search, chosen, space)
        recipe = None
        if raw_recipe is not None:
            names = chosen.space if isinstance(chosen.space, Mapping) else {}
            faulty = frozenset(name for name in names if name in SEARCHABLE_FIELDS) - parameters.keys()
            self.faults += doubled_faults(raw_recipe, parameters, faulty)
            found = recipe_faults(raw_recipe, "recipe")
            self.faults += found
            recipe = None if found else fix_recipe(chosen, parameters, raw_recipe)
        metrics = read_metrics(self._optional("metrics"), self.faults)
        objective = self._section(ObjectiveSpec, "objective", self._objective(task, metrics or {}))
        constraints = self._constraints(metrics)
        evaluation = self._evaluation()
        if evaluation is not None:
            evaluation = with_generation(evaluation, task, objective, constraints)
        return Draft(
            task=task,
            data=data,
            metrics=metrics,
            losses=read_losses(self._optional("losses"), self.faults),
            search=search,
            algorithm=algorithm,
            parameters=parameters,
            space=space,
            recipe=recipe,
            loss=_readable_loss(raw_recipe),
            objective=objective,
            pruning=read_pruning(self._optional("pruning"), "pruning", self.faults),
            evaluation=evaluation,
            budget=self._section(BudgetSpec, "budget", self._optional("budget")),
            resources=self._section(ResourcesSpec, "resources", self._optional("resources")),
            constraints=constraints,
            warm_start=self._section(WarmStartSpec, "warm_start", self.raw.get("warm_start")),
            repeats=self._section(RepeatsSpec, "repeats", self.raw.get("repeats")),
        )

    def _optional(self, name: str) -> Any:
        # A section left empty in YAML is null.
        value = self.raw.get(name)
        return {} if value is None else value

    def _required(self, name: str, model: type[BaseModel]) -> Any:
        value = self.raw.get(name)
        if value is not None:
            return value
        keys = ", ".join(model.model_fields)
        self.faults.append(
            Fault(path=name, value=None, message="is required", allowed=f"a mapping with the keys {keys}")
        )
        return None

    def _section(self, model: type[Model], path: str, raw: Any) -> Model | None:
        return None if raw is None else read_model(model, raw, path, self.faults)

    def _drop_repeats(self) -> None:
        """Keeps one fault per place for values that were ill-formed before any section was read."""
        seen: set[str] = set()
        kept = []
        for fault in self.faults:
            if fault.path not in self._ill_formed or fault.path not in seen:
                kept.append(fault)
            seen.add(fault.path)
        self.faults = kept

    def _data(self) -> DataSpec | None:
        raw = self._required("data", DataSpec)
        if not isinstance(raw, Mapping):
            return self._section(DataSpec, "data", raw)
        before = len(self.faults)
        fields = dict(raw)
        for part in ("train", "eval"):
            source = fields.get(part)
            if isinstance(source, Mapping):
                read_model(HubData, source, f"data.{part}", self.faults)
                fields[part] = "read above"
            elif part in fields and not isinstance(source, str):
                form = "a file, or {hub: ..., split: ...}"
                fault = Fault(
                    path=f"data.{part}", value=shown(source), message=f"must be {form}", allowed=form
                )
                self.faults.append(fault)
                fields[part] = "faulty"
        self._section(DataSpec, "data", fields)
        columns = fields.get("columns")
        if isinstance(columns, Mapping):
            self.faults += unknown_keys(columns, DATA_FIELDS, "data.columns", what="field of a row")
        return DataSpec.model_validate(raw) if len(self.faults) == before else None

    def _search(
        self, raw: Any, chosen: Chosen, space: SearchSpace | None
    ) -> tuple[SearchSpec | None, str | None]:
        """The section, and its algorithm where that much is readable."""
        if not isinstance(raw, Mapping):
            return self._section(SearchSpec, "search", raw), None
        before = len(self.faults)
        preset = chosen.preset.name if chosen.preset else None
        fields = {**raw, "space": space or _ANY_SPACE, "preset": preset}
        test = fields.get("learning_rate_range_test")
        if isinstance(test, Mapping):
            # By itself, for its unknown keys.
            fields["learning_rate_range_test"] = self._section(
                RangeTestSpec, "search.learning_rate_range_test", test
            )
        search = self._section(SearchSpec, "search", fields)
        algorithm = fields.get("algorithm", "tpe")
        known = algorithm if isinstance(algorithm, str) and algorithm in ALGORITHMS else None
        if known not in (None, "grid") and fields.get("trials") is None:
            message = f"is required, because {known} does not end by itself"
            allowed = "a whole number, at least 1"
            self.faults.append(Fault(path="search.trials", value=None, message=message, allowed=allowed))
        return search if len(self.faults) == before else None, known

    def _objective(self, task: Task | None, own: Mapping[str, str]) -> Any:
        """The section, with the task's metric where it names none."""
        raw = self._optional("objective")
        if not isinstance(raw, Mapping):
            return raw
        metric = raw.get("metric")
        if "metric" not in raw and task is not None:
            return {**raw, "metric": TASKS[task].default_metric}
        if isinstance(metric, str) and metric in own and raw.get("direction") is None:
            message = f"is required, because {metric} is a metric of the study's own"
            allowed = "minimize, maximize"
            self.faults.append(
                Fault(path="objective.direction", value=None, message=message, allowed=allowed)
            )
        return raw

    def _evaluation(self) -> EvaluationSpec | None:
        raw = self._optional("evaluation")
        if isinstance(raw, Mapping) and isinstance(raw.get("generate"), Mapping):
            # By itself, for its unknown keys.
            before = len(self.faults)
            generate = self._section(GenerateSpec, "evaluation.generate", raw["generate"])
            read = self._section(EvaluationSpec, "evaluation", {**raw, "generate": generate})
            return read if len(self.faults) == before else None
        return self._section(EvaluationSpec, "evaluation", raw)

    def _raw_recipe(self) -> Mapping[str, Any] | None:
        raw = self._optional("recipe")
        if isinstance(raw, Mapping):
            return raw
        message = "must be a mapping of recipe fields to values"
        self.faults.append(
            Fault(path="recipe", value=shown(raw), message=message, allowed=", ".join(RECIPE_FIELDS))
        )
        return None

    def _constraints(self, own: Mapping[str, str] | None) -> dict[str, Bound] | None:
        raw = self._optional("constraints")
        measures = (*MEASURES, *(own or ()))
        if not isinstance(raw, Mapping):
            message = "must be a mapping of metrics or costs to their bounds"
            allowed = ", ".join(measures)
            self.faults.append(Fault(path="constraints", value=shown(raw), message=message, allowed=allowed))
            return None
        before = len(self.faults)
        bounds = {}
        for name, bound in raw.items():
            if name in measures or own is None:
                bounds[name] = self._section(Bound, f"constraints.{name}", {} if bound is None else bound)
            else:
                self.faults.append(name_fault(f"constraints.{name}", name, "metric or cost", measures))
        if len(self.faults) > before:
            return None
        return {name: bound for name, bound in bounds.items() if bound is not None}
