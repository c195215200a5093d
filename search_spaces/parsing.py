"""Reads a submitted document section by section, collecting every fault before giving up.

Pydantic stops at a section's first cross-field error and reports unions member by member; so sections
are read one at a time, unions are told apart by hand, and what one section demands of another is checked
on whatever was readable.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any, Literal, TypeVar

from pydantic import BaseModel

from search_spaces.catalog import Preset, get_preset, preset_names
from search_spaces.definition import (
    DATA_FIELDS,
    BudgetSpec,
    DataSpec,
    EvaluationSpec,
    HubData,
    ModelSpec,
    ObjectiveSpec,
    ResourcesSpec,
    SearchSpec,
    StudyDefinition,
    StudyName,
    _Document,
)
from search_spaces.documents import plain
from search_spaces.errors import Fault, InvalidDefinition
from search_spaces.faults import MAX_FAULTS, name_fault, read_model, shown, unknown_keys
from search_spaces.parameters import Choice, Float, Int
from search_spaces.pruners import PRUNING_SPECS, AshaPruning, HyperbandPruning, NoPruning
from search_spaces.recipe import RECIPE_FIELDS, Recipe, recipe_faults
from search_spaces.space import SearchSpace, read_parameters

MAX_GRID_POINTS = 10_000
MIN_GPU_SHARE = 0.01
"""Ray counts in steps of 0.0001; nobody shares a GPU among more than a hundred workers."""
_PRUNER_SYNONYMS = {
    "successive_halving": "asha",
    "successivehalving": "asha",
    "sha": "asha",
    "nop": "none",
    "off": "none",
    "bohb": "hyperband",
}

Model = TypeVar("Model", bound=BaseModel)

_ANY_SPACE = SearchSpace.model_validate({"learning_rate": {"choices": [1e-4]}})
"""Stands in for a space that has its own faults, while the rest of its section is read."""


class _Header(_Document):
    name: StudyName
    task: Literal["causal_lm"] = "causal_lm"


def parse(document: Any) -> StudyDefinition:
    """See `search_spaces.definition.parse_definition`."""
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


class _Reader:
    """One reading of one document. `faults` grows as sections are read."""

    def __init__(self, raw: dict[str, Any], faults: list[Fault]) -> None:
        self.raw = raw
        self.faults = list(faults)
        self._ill_formed = {fault.path for fault in faults}
        self._preset: Preset | None = None

    def read(self) -> StudyDefinition | None:
        raw = self.raw
        self.faults += unknown_keys(raw, list(StudyDefinition.model_fields), "")
        header = self._section(_Header, "", {key: raw[key] for key in ("name", "task") if key in raw})
        model = self._section(ModelSpec, "model", self._required("model", ModelSpec))
        data = self._data()
        search = self._search()
        recipe = self._recipe()
        objective = self._section(ObjectiveSpec, "objective", self._optional("objective"))
        pruning = self._pruning()
        evaluation = self._section(EvaluationSpec, "evaluation", self._optional("evaluation"))
        budget = self._section(BudgetSpec, "budget", self._optional("budget"))
        resources = self._section(ResourcesSpec, "resources", self._optional("resources"))
        if pruning is not None and evaluation is not None:
            self._check_rungs(pruning, evaluation)
        if resources is not None:
            self._check_gpus(resources)
        self._drop_repeats()
        if self.faults:
            return None
        return StudyDefinition.model_validate(
            {
                "name": header and header.name,
                "model": model,
                "data": data,
                "search": search,
                "recipe": recipe,
                "objective": objective,
                "pruning": pruning,
                "evaluation": evaluation,
                "budget": budget,
                "resources": resources,
            }
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
        if _is_mapping(fields.get("columns")):
            self.faults += unknown_keys(fields["columns"], DATA_FIELDS, "data.columns", what="field of a row")
        return DataSpec.model_validate(raw) if len(self.faults) == before else None

    def _search(self) -> SearchSpec | None:
        raw = self._required("search", SearchSpec)
        if not isinstance(raw, Mapping):
            return self._section(SearchSpec, "search", raw)
        before = len(self.faults)
        raw_space = self._resolve_preset(raw)
        parameters: dict[str, Float | Int | Choice] = {}
        space_is_whole = False
        if raw_space is not None:
            parameters, found = read_parameters(raw_space)
            self.faults += [fault.below("search.space") for fault in found]
            space_is_whole = not found
        preset = self._preset.name if self._preset is not None else None
        search = self._section(SearchSpec, "search", {**raw, "preset": preset, "space": _ANY_SPACE})
        algorithm = raw.get("algorithm", "tpe")
        if algorithm == "grid":
            trials = search.trials if search is not None else None
            self._check_grid(parameters, trials, space_is_whole)
        elif algorithm in ("random", "tpe") and raw.get("trials") is None:
            message = f"is required: {algorithm} has no end of its own"
            self.faults.append(
                Fault(path="search.trials", value=None, message=message, allowed="a whole number, at least 1")
            )
        self._check_pinned(raw_space)
        if search is None or len(self.faults) > before:
            return None
        return search.model_copy(update={"space": SearchSpace.model_validate(parameters)})

    def _resolve_preset(self, raw: Mapping[str, Any]) -> Any:
        """The raw space, from the preset if one is named; None if there is none (its faults are recorded)."""
        name, space = raw.get("preset"), raw.get("space")
        if name is None:
            if space is None:
                allowed = f"a search space, or in its place preset: {' | '.join(preset_names())}"
                self.faults.append(
                    Fault(path="search.space", value=None, message="is required", allowed=allowed)
                )
            return space
        if not isinstance(name, str) or name not in preset_names():
            self.faults.append(name_fault("search.preset", name, "preset", preset_names()))
            return space
        self._preset = get_preset(name)
        resolved = self._preset.space.model_dump(mode="json")
        # An accepted definition holds both, alike; it may be submitted again as it stands.
        if space is not None and space != resolved:
            message = f"is given beside preset: {name}; leave one of them out"
            self.faults.append(
                Fault(path="search.space", value=shown(space), message=message, allowed="space or preset")
            )
            return None
        return resolved

    def _check_grid(
        self, parameters: Mapping[str, Float | Int | Choice], trials: int | None, space_is_whole: bool
    ) -> None:
        continuous = [name for name, parameter in parameters.items() if parameter.size is None]
        for name in continuous:
            self.faults.append(
                Fault(
                    path=f"search.space.{name}",
                    value=shown(parameters[name]),
                    message="is continuous, so a grid over it has no finite number of points: add step"
                    " (linear scale), or list the points in choices",
                    allowed="{min: ..., max: ..., step: ...} or {choices: [...]}",
                )
            )
        size = math.prod(parameter.size or 1 for parameter in parameters.values())
        if size > MAX_GRID_POINTS:
            # With continuous or faulty parameters left out the grid is larger still.
            message = f"makes a grid of {size:,} points" if size < 10**15 else "makes an astronomic grid"
            self.faults.append(
                Fault(
                    path="search.space",
                    value=shown(size),
                    message=f"{message}; coarsen it, or use random or tpe",
                    allowed=f"at most {MAX_GRID_POINTS:,} points",
                )
            )
        elif trials is not None and trials > size and space_is_whole and not continuous:
            self.faults.append(
                Fault(
                    path="search.trials",
                    value=trials,
                    message=f"is more than the grid's {size:,} points; leave it out for one trial per point",
                    allowed=f"at most {size:,}",
                )
            )

    def _check_pinned(self, raw_space: Any) -> None:
        """A field is fixed or searched, not both; nor may two fields fix the same thing."""
        raw_recipe = self._optional("recipe")
        if not isinstance(raw_recipe, Mapping):
            return
        searched = [name for name in raw_space if name in RECIPE_FIELDS] if _is_mapping(raw_space) else []
        for name in searched:
            if name in raw_recipe:
                where = f"preset {self._preset.name}" if self._preset is not None else "search.space"
                self.faults.append(
                    Fault(
                        path=f"recipe.{name}",
                        value=shown(raw_recipe[name]),
                        message=f"is fixed here and searched in {where}; leave one of them out",
                    )
                )
        fixed = [name for name, value in raw_recipe.items() if value is not None]
        given = {**dict.fromkeys(fixed, "recipe"), **dict.fromkeys(searched, "search.space")}
        if "lora_alpha" in given and "lora_alpha_ratio" in given:
            section = given["lora_alpha"]
            value = raw_recipe.get("lora_alpha") if section == "recipe" else raw_space["lora_alpha"]
            self.faults.append(
                Fault(
                    path=f"{section}.lora_alpha",
                    value=shown(value),
                    message=f"and {given['lora_alpha_ratio']}.lora_alpha_ratio both set alpha"
                    " (alpha = lora_alpha_ratio x lora_r); leave one of them out",
                    allowed="lora_alpha or lora_alpha_ratio",
                )
            )

    def _recipe(self) -> dict[str, Any] | None:
        raw = self._optional("recipe")
        if not isinstance(raw, Mapping):
            message = "must be a mapping of recipe fields to values"
            self.faults.append(
                Fault(path="recipe", value=shown(raw), message=message, allowed=", ".join(RECIPE_FIELDS))
            )
            return None
        found = recipe_faults(raw, "recipe")
        self.faults += found
        if found:
            return None
        under = dict(self._preset.recipe) if self._preset is not None else {}
        for name, other in (("lora_alpha", "lora_alpha_ratio"), ("lora_alpha_ratio", "lora_alpha")):
            if raw.get(name) is not None:
                under.pop(other, None)
        merged = {**under, **raw}
        # As the recipe holds them, so that "1e-5" and 1e-5 are stored alike.
        return Recipe.build(merged).model_dump(mode="json", include=set(merged))

    def _pruning(self) -> Any:
        raw = self._optional("pruning")
        if not isinstance(raw, Mapping):
            keys = f"algorithm: {' | '.join(PRUNING_SPECS)}"
            self.faults.append(
                Fault(path="pruning", value=shown(raw), message="must be a mapping", allowed=keys)
            )
            return None
        if not raw:
            return NoPruning()
        name = raw.get("algorithm")
        if name is None:
            self.faults.append(
                Fault(
                    path="pruning.algorithm",
                    value=None,
                    message="is required",
                    allowed=", ".join(PRUNING_SPECS),
                )
            )
            return None
        if not isinstance(name, str) or name not in PRUNING_SPECS:
            self.faults.append(
                name_fault("pruning.algorithm", name, "pruner", list(PRUNING_SPECS), _PRUNER_SYNONYMS)
            )
            return None
        return read_model(PRUNING_SPECS[name], raw, "pruning", self.faults)

    def _check_gpus(self, resources: ResourcesSpec) -> None:
        gpus = resources.gpus_per_worker
        if gpus != "auto" and (0 < gpus < MIN_GPU_SHARE or (gpus > 1 and not gpus.is_integer())):
            self.faults.append(
                Fault(
                    path="resources.gpus_per_worker",
                    value=gpus,
                    message="is nothing that Ray can reserve: a share of one GPU, or whole ones",
                    allowed=f"auto, 0, {MIN_GPU_SHARE} to 1, or a whole number",
                )
            )

    def _check_rungs(self, pruning: Any, evaluation: EvaluationSpec) -> None:
        every = evaluation.every_examples
        if isinstance(pruning, NoPruning):
            return
        if every is None:
            message = (
                f"is required with {pruning.algorithm} pruning: without it a trial is evaluated only at its"
                " end, when there is nothing left to prune"
            )
            self.faults.append(
                Fault(
                    path="evaluation.every_examples",
                    value=None,
                    message=message,
                    allowed="a whole number, at least 1",
                )
            )
        elif isinstance(pruning, (AshaPruning, HyperbandPruning)) and pruning.min_examples < every:
            # One report would then cross several of the pruner's rungs and be culled at each of them.
            message = f"lies before the first evaluation, at evaluation.every_examples ({every})"
            self.faults.append(
                Fault(
                    path="pruning.min_examples",
                    value=pruning.min_examples,
                    message=message,
                    allowed=f"at least {every}",
                )
            )


def _is_mapping(value: Any) -> bool:
    return isinstance(value, Mapping)
