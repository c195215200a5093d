"""What the task demands of data and recipe."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

from search_spaces.definition import DATA_FIELDS, HubData
from search_spaces.errors import Fault
from search_spaces.faults import shown
from search_spaces.parameters.choices import Choice
from search_spaces.parsing.draft import Draft
from search_spaces.recipe import TASK_FIELDS
from search_spaces.tasks import TASKS
from search_spaces.wording import listed

MOST_WRONG_PAIRS = 0.5
_WITH_NAMES = (".json", ".jsonl", ".parquet")


def fields_are_the_tasks(draft: Draft) -> Iterator[Fault]:
    """Rows have the fields of the task, and only a causal_lm has several formats."""
    if draft.task is None or draft.data is None:
        return
    fields = TASKS[draft.task].fields
    for name, column in draft.data.columns.items():
        if name in DATA_FIELDS and name not in fields:
            message = f"is not a field of the task {draft.task}"
            path = f"data.columns.{name}"
            yield Fault(path=path, value=shown(column), message=message, allowed=", ".join(fields))
    if draft.task != "causal_lm" and draft.data.format != "auto":
        message = f"is for the task causal_lm only; a row of {draft.task} has the fields {', '.join(fields)}"
        yield Fault(path="data.format", value=draft.data.format, message=message, allowed="auto")


def header_and_columns_agree(draft: Draft) -> Iterator[Fault]:
    """Where a file does not name its columns, the definition says where each field is."""
    if draft.data is None or draft.data.header != "none":
        return
    for part in ("train", "eval"):
        source = getattr(draft.data, part)
        named = isinstance(source, HubData) or source.lower().removesuffix(".gz").endswith(_WITH_NAMES)
        if named:
            message = f"is for CSV files only, and the columns of data.{part} have names"
            yield Fault(path="data.header", value="none", message=message, allowed="first_row")
            return
    if draft.task is None:
        return
    missing = [name for name in TASKS[draft.task].required if name not in draft.data.columns]
    if missing or not draft.data.columns:
        words = ", ".join(missing) or "each field"
        message = f"must say which column holds {words}, because data.header is none"
        value, allowed = shown(draft.data.columns), "field: position, counted from 0"
        yield Fault(path="data.columns", value=value, message=message, allowed=allowed)


def recipe_fits_the_task(draft: Draft) -> Iterator[Fault]:
    """The task reads what is fixed and searched."""
    if draft.task is None:
        return
    given: list[tuple[str, Any]] = [(f"recipe.{name}", value) for name, value in (draft.recipe or {}).items()]
    given += [(f"search.space.{name}", parameter) for name, parameter in draft.parameters.items()]
    for path, value in given:
        tasks = TASK_FIELDS.get(path.rsplit(".", 1)[1])
        if tasks is not None and draft.task not in tasks:
            message = f"is used only by {listed(tasks)}, and the task is {draft.task}; remove this key"
            yield Fault(path=path, value=shown(value), message=message)


def fewer_pairs_are_wrong_than_right(draft: Draft) -> Iterator[Fault]:
    """Label smoothing of a preference is the share of pairs taken to be the wrong way round."""
    if draft.task != "preference":
        return
    name = "label_smoothing"
    largest = {f"recipe.{name}": 0.0 if draft.recipe is None else draft.recipe.get(name, 0.0)}
    searched = draft.parameters.get(name)
    if searched is not None:
        most = max(searched.choices) if isinstance(searched, Choice) else searched.max
        largest[f"search.space.{name}"] = most
    for path, value in largest.items():
        if value > MOST_WRONG_PAIRS:
            message = "takes more pairs to be labelled the wrong way round than the right way"
            allowed = f"at most {MOST_WRONG_PAIRS} in a preference"
            yield Fault(path=path, value=value, message=message, allowed=allowed)
