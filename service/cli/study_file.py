"""Reading a study file: YAML or JSON into the document that the service validates."""

from __future__ import annotations

import json
import os
import re
from pathlib import Path
from typing import Any

import yaml

from service.cli.errors import StudyFileError

_PATH_KEYS = (("data", "train"), ("data", "eval"), ("model", "id"))


class _Loader(yaml.SafeLoader):
    """YAML whose numbers are those of YAML 1.2 and whose keys are unique.

    PyYAML reads `1e-4` as a word and a date as a date object, and lets a repeated key win in silence.
    """

    def construct_mapping(self, node: yaml.MappingNode, deep: bool = False) -> dict[Any, Any]:
        seen: set[str] = set()
        for key, _ in node.value:
            if not isinstance(key, yaml.ScalarNode) or key.tag == "tag:yaml.org,2002:merge":
                continue
            if key.value in seen:
                raise yaml.constructor.ConstructorError(
                    None, None, f"the key {key.value!r} is there twice", key.start_mark
                )
            seen.add(key.value)
        return super().construct_mapping(node, deep)


_FLOAT = "tag:yaml.org,2002:float"
_Loader.yaml_implicit_resolvers = {
    first: [(tag, pattern) for tag, pattern in resolvers if tag != "tag:yaml.org,2002:timestamp"]
    for first, resolvers in yaml.SafeLoader.yaml_implicit_resolvers.items()
}
_Loader.add_implicit_resolver(
    _FLOAT, re.compile(r"^[-+]?(\.[0-9]+|[0-9]+(\.[0-9]*)?)[eE][-+]?[0-9]+$"), list("-+.0123456789")
)


def read_study_file(path: Path) -> dict[str, Any]:
    """The document in `path`, with the study's local files made absolute.

    A relative `data.train`, `data.eval` or `model.id` that exists beside the study file means that file;
    any other one is left for the server to resolve.

    Raises:
        StudyFileError: The file cannot be read, or does not hold one mapping of keys to values.
    """
    try:
        text = path.read_text(encoding="utf-8-sig")
    except OSError as error:
        raise StudyFileError(f"cannot read {path}: {error.strerror}") from error
    except UnicodeDecodeError as error:
        raise StudyFileError(f"cannot read {path}: byte {error.start} is not UTF-8 text") from error
    document = _parse_json(path, text) if path.suffix.lower() == ".json" else _parse_yaml(path, text)
    if not isinstance(document, dict):
        what = "is empty" if document is None else f"holds a {type(document).__name__}"
        raise StudyFileError(f"{path} {what}; a study file is a mapping of keys to values")
    _anchor_paths(document, path.parent)
    return document


def _parse_json(path: Path, text: str) -> Any:
    try:
        return json.loads(text)
    except json.JSONDecodeError as error:
        raise StudyFileError(
            f"{path}, line {error.lineno}, column {error.colno}: not JSON: {error.msg}"
        ) from error


def _parse_yaml(path: Path, text: str) -> Any:
    try:
        document = yaml.load(text, Loader=_Loader)
    except yaml.MarkedYAMLError as error:
        mark = error.problem_mark or error.context_mark
        where = f", line {mark.line + 1}, column {mark.column + 1}" if mark else ""
        what = ", ".join(part for part in (error.context, error.problem) if part)
        raise StudyFileError(f"{path}{where}: {what}") from error
    except (yaml.YAMLError, ValueError, RecursionError) as error:
        # A character YAML forbids, a number such as 0o9 that it tags but cannot read, or endless nesting.
        raise StudyFileError(f"{path}: not YAML: {str(error).splitlines()[0]}") from error
    try:
        json.dumps(document)
    except (TypeError, ValueError, RecursionError) as error:
        raise StudyFileError(f"{path}: holds what a study cannot: {error}") from error
    return document


def _anchor_paths(document: dict[str, Any], folder: Path) -> None:
    for section, key in _PATH_KEYS:
        values = document.get(section)
        value = values.get(key) if isinstance(values, dict) else None
        if isinstance(values, dict) and isinstance(value, str) and value:
            beside = folder / value
            if not os.path.isabs(value) and beside.exists():
                values[key] = os.path.abspath(beside)
