"""The JSON Schema of a study definition, as the OpenAPI document publishes it.

Generated from the models that read a definition, and widened where what is accepted is wider than what is
stored: sections left empty, a space that a preset gives. So whatever the service accepts is valid by this
schema. The reverse cannot be: that `min` lies below `max`, that a file exists, or that a pruner has rungs to
look at is said by the 422 that names the fault.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from search_spaces.definition import DATA_FIELDS, MEASURES, StudyDefinition
from search_spaces.parsing.plain import LONGEST_PATH, LONGEST_TEXT
from search_spaces.recipe import SEARCHABLE_FIELDS, Recipe
from search_spaces.space.presets import preset_names
from search_spaces.values.columns import MAX_COLUMNS
from search_spaces.values.own_functions import NAME as METRIC_NAME

Schema = dict[str, Any]

NAME = "StudyDefinition"
REF: Schema = {"$ref": f"#/components/schemas/{NAME}"}

_BOUNDS = {"ge": "minimum", "gt": "exclusiveMinimum", "le": "maximum", "lt": "exclusiveMaximum"}
"""pydantic leaves a bound under its own name where the value is read before it is checked."""
_EMPTY = (
    "recipe",
    "metrics",
    "losses",
    "objective",
    "pruning",
    "evaluation",
    "budget",
    "resources",
    "constraints",
)
_NULL: Schema = {"type": "null"}
_POSITION: Schema = {"type": "integer", "minimum": 0, "maximum": MAX_COLUMNS - 1}

EXAMPLE: Mapping[str, Any] = {
    "name": "support-tone",
    "model": {"id": "Qwen/Qwen2.5-0.5B-Instruct", "quantization": "nf4"},
    "data": {
        "train": {"hub": "openai/gsm8k", "config": "main", "split": "train"},
        "eval": {"hub": "openai/gsm8k", "config": "main", "split": "test"},
        "columns": {"prompt": "question", "completion": "answer"},
    },
    "search": {
        "algorithm": "tpe",
        "trials": 40,
        "space": {
            "learning_rate": {"min": 1e-5, "max": 1e-3, "scale": "log"},
            "lora_r": {"choices": [8, 16, 32]},
        },
    },
    "evaluation": {"every_examples": 500},
    "pruning": {"algorithm": "asha", "min_examples": 500},
}


def definition_schemas() -> dict[str, Schema]:
    """The schemas that a definition is made of, by name, for `#/components/schemas`."""
    template = "#/components/schemas/{model}"
    whole = StudyDefinition.model_json_schema(ref_template=template)
    recipe = _standard(Recipe.model_json_schema(ref_template=template))
    schemas: dict[str, Schema] = {name: _standard(schema) for name, schema in whole.pop("$defs").items()}
    definition: Schema = _standard(whole)
    schemas |= {NAME: definition, "Recipe": recipe}

    sections = definition["properties"]
    sections["recipe"] = {"$ref": template.format(model="Recipe")}
    bound = {"$ref": template.format(model="Bound")}
    constraints = _mapping(dict.fromkeys(MEASURES, bound))
    sections["constraints"] = constraints | {"patternProperties": {METRIC_NAME: bound}}
    for name in ("metrics", "losses"):
        sections[name]["additionalProperties"] = False
    schemas["Bound"]["minProperties"] = 1
    # A mapping without any key prunes nothing.
    sections["pruning"] = {"anyOf": [sections["pruning"], {"type": "object", "maxProperties": 0}]}
    for name in _EMPTY:
        sections[name] = {"anyOf": [sections[name], _NULL]}
    definition |= {"description": "A study definition. The answer lists all of its faults at once."}
    definition["examples"] = [dict(EXAMPLE)]

    columns = schemas["DataSpec"]["properties"]["columns"]
    column = {"anyOf": [columns["additionalProperties"], _POSITION]}
    schemas["DataSpec"]["properties"]["columns"] = _mapping(dict.fromkeys(DATA_FIELDS, column))
    objective = schemas["ObjectiveSpec"]["properties"]
    objective["direction"] = {"anyOf": [objective["direction"], _NULL]}
    objective["metric"] |= {"description": "A metric of the task, or of the study's own; omitted: the task's"}
    del objective["metric"]["default"]
    _widen_search(schemas, template)
    for schema in schemas.values():
        _bound_texts(schema, LONGEST_TEXT)
    _bound_texts(schemas["ModelSpec"]["properties"]["id"], LONGEST_PATH)
    for part in ("train", "eval"):
        _bound_texts(schemas["DataSpec"]["properties"][part], LONGEST_PATH)
    return schemas


def _bound_texts(schema: Any, longest: int) -> None:
    """Give every free text of a schema its greatest length."""
    if isinstance(schema, list):
        for part in schema:
            _bound_texts(part, longest)
    elif isinstance(schema, dict):
        if schema.get("type") == "string" and not schema.keys() & {"enum", "const", "pattern"}:
            schema["maxLength"] = longest
        for key, part in schema.items():
            if key not in ("default", "enum", "const", "required", "examples"):
                _bound_texts(part, longest)


def _widen_search(schemas: dict[str, Schema], template: str) -> None:
    search = schemas["SearchSpec"]
    search["required"] = [name for name in search.get("required", []) if name != "space"]
    forms = [{"$ref": template.format(model=name)} for name in ("Float", "Int", "Choice")]
    parameter = {"anyOf": [*forms, {**_NULL, "description": "Removed from the preset"}]}
    space = _mapping(dict.fromkeys(SEARCHABLE_FIELDS, parameter))
    schemas["SearchSpace"] = space | {"description": "Recipe field -> the values to search"}
    properties = search["properties"]
    reference = {"$ref": template.format(model="SearchSpace")}
    properties["space"] = {"anyOf": [reference, {**_NULL, "description": "The preset's space"}]}
    properties["preset"] = {"enum": [*preset_names(), None]}
    test = properties["learning_rate_range_test"]
    properties["learning_rate_range_test"] = {"anyOf": [{"type": "boolean"}, *test["anyOf"]]}
    for name in ("Float", "Int", "Choice"):
        # One value stands for a list of one.
        schemas[name]["properties"]["when"] = {"type": ["object", "null"]}


def _mapping(properties: Mapping[str, Schema]) -> Schema:
    return {"type": "object", "properties": dict(properties), "additionalProperties": False}


def _standard(schema: Any) -> Any:
    """A schema of pydantic's without titles, with the bounds under their standard names."""
    if isinstance(schema, list):
        return [_standard(part) for part in schema]
    if not isinstance(schema, dict):
        return schema
    result: Schema = {}
    for key, value in schema.items():
        if key == "title" and isinstance(value, str):
            continue  # the name again, in other letters
        if key == "discriminator":
            continue  # it maps names to places that OpenAPI does not have
        if key == "description":
            result[key] = value.split("\n\n")[0]
        elif key == "properties":
            result[key] = {name: _standard(part) for name, part in value.items()}
        elif key in ("default", "enum", "const", "required", "examples"):
            result[key] = value
        else:
            result[_BOUNDS.get(str(key), str(key))] = _standard(value)
    return result
