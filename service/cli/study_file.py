"""Reading a study file: YAML or JSON into the document that the service validates."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

from service.cli.errors import StudyFileError
from service.definitions.syntax import parse_json, parse_yaml
from service.errors import Unreadable

_PATH_KEYS = (("data", "train"), ("data", "eval"), ("model", "id"))


def read_study_file(path: Path) -> dict[str, Any]:
    """The document in `path`, with the study's local files made absolute.

    A relative `data.train`, `data.eval` or `model.id` that exists beside the study file means that file;
    any other one is left for the server to resolve. Of a path with `{date}` or the like, the folder decides.

    Raises:
        StudyFileError: The file cannot be read, or does not hold one mapping of keys to values.
    """
    try:
        raw = path.read_bytes()
    except OSError as error:
        raise StudyFileError(f"cannot read {path}: {error.strerror}") from error
    parse = parse_json if path.suffix.lower() == ".json" else parse_yaml
    try:
        document = parse(raw)
    except Unreadable as error:
        raise StudyFileError(f"{path}: {error.detail}") from error
    if not isinstance(document, dict):
        what = "is empty" if document is None else f"holds a {type(document).__name__}"
        raise StudyFileError(f"{path} {what}; a study file is a mapping of keys to values")
    _anchor_paths(document, path.parent)
    return document


def _anchor_paths(document: dict[str, Any], folder: Path) -> None:
    for section, key in _PATH_KEYS:
        values = document.get(section)
        value = values.get(key) if isinstance(values, dict) else None
        if isinstance(values, dict) and isinstance(value, str) and value:
            beside = folder / value
            if not os.path.isabs(value) and _is_there(folder, value):
                values[key] = os.path.abspath(beside)


def _is_there(folder: Path, path: str) -> bool:
    """Whether a file is there; of a path with fields such as `{date}`, the folder above the first of them."""
    parts = Path(path).parts
    first = next((index for index, part in enumerate(parts) if "{" in part), len(parts))
    return first > 0 and folder.joinpath(*parts[:first]).exists()
