"""Fields such as `{date}` in the names of a schedule's sweeps and in their paths of data.

| field | of a firing |
| --- | --- |
| `{date}` | its local date, `2026-12-01` |
| `{week}` | the ISO week of that date, `2026-W49` |
| `{run}` | the number of its sweep: the schedule's first one is 1 |

`{{` and `}}` stand for braces themselves. A schedule's stored definition has the fields; a sweep's has their
values.
"""

from __future__ import annotations

import os
import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from datetime import datetime
from pathlib import Path
from string import Formatter
from typing import Any, TypeVar
from zoneinfo import ZoneInfo

from search_spaces.errors import Fault
from search_spaces.faults import nearest_name, shown
from service.db.models import Schedule
from service.definitions.local_files import find_data

FIELDS = ("date", "week", "run")
PARTS = ("train", "eval")
T = TypeVar("T")
Files = Mapping[str, str | Fault]
"""Path of data with its fields filled in -> the file that it leads to, or what is wrong with it."""
MAX_PATTERN = 200
LONGEST_SWEEP_NAME = 120
"""A study's name has at most 128 characters, and a taken one gets a number behind it."""
_MOST_RUNS = 1_000_000
_ALLOWED = "the fields {date}, {week} and {run}; {{ and }} for braces"
_NAME_FORM = (
    f"up to {LONGEST_SWEEP_NAME} letters, digits, dots, hyphens and underscores, beginning with a letter or "
    f"a digit, with {_ALLOWED}"
)
_SWEEP_NAME = re.compile(rf"[A-Za-z0-9][A-Za-z0-9._-]{{0,{LONGEST_SWEEP_NAME - 1}}}")


class FilesUnknown(Exception):  # noqa: N818 - it says what has to be done
    """A sweep needs files that nobody has looked at: do so outside the transaction, which then runs anew.

    Attributes:
        paths: `data.train`, `data.eval` -> the path.
    """

    def __init__(self, paths: Mapping[str, str]) -> None:
        super().__init__(f"not looked at yet: {', '.join(paths.values())}")
        self.paths = paths


@dataclass(frozen=True, kw_only=True)
class Values:
    """What the fields stand for in one firing."""

    local: datetime
    """Its time, by the clocks of the schedule's timezone."""
    run: int

    @classmethod
    def of(cls, firing: datetime, timezone: str, run: int) -> Values:
        return cls(local=firing.astimezone(ZoneInfo(timezone)), run=run)

    def fill(self, pattern: str) -> str:
        """The pattern with its fields' values. Raises `ValueError` where `problem` finds one."""
        year, week, _ = self.local.isocalendar()
        values = {"date": f"{self.local:%Y-%m-%d}", "week": f"{year}-W{week:02}", "run": str(self.run)}
        filled = []
        for text, field, form, conversion in Formatter().parse(pattern):
            filled.append(text)
            if field is not None:
                if field not in values or form or conversion:
                    raise ValueError(f"{pattern!r} has a field that is unknown: {{{field}}}")
                filled.append(values[field])
        return "".join(filled)


def has_fields(path: object) -> bool:
    """Whether a path of data is a pattern."""
    return isinstance(path, str) and ("{" in path or "}" in path)


def fault_of(pattern: str, path: str) -> Fault | None:
    """What is wrong with the fields of a pattern; None: nothing."""
    try:
        parsed = list(Formatter().parse(pattern))
    except ValueError as error:
        message = f"has a brace without its other half ({error})"
        return Fault(path=path, value=shown(pattern), message=message, allowed=_ALLOWED)
    for _, field, form, conversion in parsed:
        if field is None:
            continue
        if field not in FIELDS:
            message = f"unknown field {{{shown(field)}}}"
            nearest = nearest_name(field, FIELDS)
            return Fault(
                path=path,
                value=shown(pattern),
                message=message,
                allowed=_ALLOWED,
                nearest=None if nearest is None else f"{{{nearest}}}",
            )
        if form or conversion:
            message = f"the field {{{field}}} takes no format"
            return Fault(path=path, value=shown(pattern), message=message, allowed=_ALLOWED)
    return None


def name_faults(pattern: Any, values: Values) -> list[Fault]:
    """What is wrong with the pattern of sweeps' names, at a firing."""
    if not isinstance(pattern, str) or not 0 < len(pattern) <= MAX_PATTERN:
        message = f"must be text of 1 to {MAX_PATTERN} characters"
        return [Fault(path="sweep_name", value=shown(pattern), message=message, allowed=_NAME_FORM)]
    fault = fault_of(pattern, "sweep_name")
    if fault is not None:
        return [fault]
    if not is_name(Values(local=values.local, run=_MOST_RUNS).fill(pattern)):
        message = f"makes {shown(values.fill(pattern))!r}, which is not a valid name of a study"
        return [Fault(path="sweep_name", value=shown(pattern), message=message, allowed=_NAME_FORM)]
    return []


def is_name(text: str) -> bool:
    """Whether a sweep can be called so."""
    return _SWEEP_NAME.fullmatch(text) is not None


def patterns_of(document: Any) -> dict[str, str]:
    """`train`, `eval` -> the path of a definition's data, where it has fields."""
    data = document.get("data") if isinstance(document, Mapping) else None
    return (
        {part: data[part] for part in PARTS if has_fields(data.get(part))}
        if isinstance(data, Mapping)
        else {}
    )


def filled(document: Mapping[str, Any], patterns: Mapping[str, str], values: Values) -> dict[str, Any]:
    """A definition whose paths of data have the values of one firing."""
    paths = {part: values.fill(pattern) for part, pattern in patterns.items()}
    return {**document, "data": {**document["data"], **paths}}


def anchored(pattern: str, values: Values, roots: Sequence[Path]) -> str:
    """The pattern as an absolute path: below the root that has its file, else the folder of the file."""
    written = os.path.expanduser(pattern)
    if os.path.isabs(written):
        return written
    filled_in = [(root, root / os.path.expanduser(values.fill(pattern))) for root in roots]
    found = [root for root, path in filled_in if path.exists()]
    found += [root for root, path in filled_in if path.parent.is_dir()]
    root = next(iter([*found, *roots]))
    escaped = str(root).replace("{", "{{").replace("}", "}}")
    return os.path.join(escaped, written)


def data_paths(schedule: Schedule, firing: datetime, files: Files) -> tuple[dict[str, str], str | None]:
    """`train`, `eval` -> the file of a sweep, where the schedule has a pattern; and what is wrong with one.

    A path that leads to no file is given as it is. Raises `FilesUnknown`.
    """
    patterns = patterns_of(schedule.definition)
    if not patterns:
        return {}, None
    values = Values.of(firing, schedule.timezone, schedule.sweeps_made + 1)
    named = {part: values.fill(pattern) for part, pattern in patterns.items()}
    if unknown := {f"data.{part}": path for part, path in named.items() if path not in files}:
        raise FilesUnknown(unknown)
    found = {part: files[path] for part, path in named.items()}
    wrong = [
        f"data.{part} {named[part]} {fault.message} (from {patterns[part]})"
        for part, fault in found.items()
        if isinstance(fault, Fault)
    ]
    paths = {part: file if isinstance(file, str) else named[part] for part, file in found.items()}
    return paths, "; ".join(wrong) or None


def with_files(work: Callable[[Files], T], roots: Sequence[Path]) -> T:
    """Do some work in a transaction of its own; look at the files that it needs outside of it.

    Args:
        work: takes `files`. May raise `FilesUnknown`, and is run again.
        roots: folders that the files must lie in.
    """
    files: dict[str, str | Fault] = {}
    while True:
        try:
            return work(files)
        except FilesUnknown as error:
            for way, path in error.paths.items():
                found, fault = find_data(path, way, roots)
                files[path] = fault or found
