"""Metrics and losses of a study's own: how they are named, and which of them the recipe may use."""

from __future__ import annotations

import re
from collections.abc import Collection, Iterator, Mapping
from typing import Any

from search_spaces.definition import COSTS
from search_spaces.errors import Fault
from search_spaces.faults import nearest_name, shown
from search_spaces.parameters.choices import Choice
from search_spaces.parsing.draft import Draft
from search_spaces.tasks import LOSSES, METRICS, TASKS
from search_spaces.values.own_functions import FUNCTION, LOSS_FORM, METRIC_FORM, NAME, NAME_FORM
from search_spaces.wording import listed

_METRICS_TAKEN = frozenset({*METRICS, *COSTS, "train_loss"})


def read_metrics(raw: Any, faults: list[Fault]) -> dict[str, str] | None:
    """The study's own metrics; None, with faults, where one is wrong."""
    return _read(raw, faults, "metrics", "metric", METRIC_FORM, _METRICS_TAKEN, "built-in metric or cost")


def read_losses(raw: Any, faults: list[Fault]) -> dict[str, str] | None:
    """The study's own losses; None, with faults, where one is wrong."""
    return _read(raw, faults, "losses", "loss", LOSS_FORM, LOSSES, "built-in loss")


def _read(
    raw: Any, faults: list[Fault], section: str, what: str, form: str, taken: Collection[str], built_in: str
) -> dict[str, str] | None:
    if not isinstance(raw, Mapping):
        message, allowed = "must be a mapping of names to functions", f"name: {form}"
        faults.append(Fault(path=section, value=shown(raw), message=message, allowed=allowed))
        return None
    before = len(faults)
    for name, function in raw.items():
        message = ""
        if not re.fullmatch(NAME, name):
            message, allowed = f"is not a valid name of a {what}", NAME_FORM
        elif name in taken:
            message, allowed = f"is the name of a {built_in}", "another name"
        elif not isinstance(function, str) or not re.fullmatch(FUNCTION, function):
            message, allowed = f"must be {form}", form
        if message:
            path = f"{section}.{shown(name)}"
            faults.append(Fault(path=path, value=shown(function), message=message, allowed=allowed))
    return dict(raw) if len(faults) == before else None


def losses_suit_the_task(draft: Draft) -> Iterator[Fault]:
    """A loss of one's own is for tasks that compare an answer with its target."""
    reason = None if draft.task is None else TASKS[draft.task].no_own_losses
    if draft.losses and reason is not None:
        message = f"is not possible for the task {draft.task}, {reason}; remove this key"
        yield Fault(path="losses", value=shown(draft.losses), message=message)


def loss_is_known(draft: Draft) -> Iterator[Fault]:
    """What is minimized is one of the task's losses or one of the study's own."""
    if draft.task is None:
        return
    losses, own = TASKS[draft.task].losses, draft.losses
    known = (*losses, *(own or ()))
    for path, loss in _named_losses(draft):
        if loss in known:
            continue
        if loss in LOSSES:
            others = [task for task, spec in TASKS.items() if loss in spec.losses]
            message = f"is a loss of {listed(others)}, and the task is {draft.task}"
            yield Fault(path=path, value=loss, message=message, allowed=", ".join(known))
        elif own is not None:
            message = f"is neither a loss of the task {draft.task} nor one that losses names"
            nearest = nearest_name(loss, known)
            yield Fault(path=path, value=loss, message=message, allowed=", ".join(known), nearest=nearest)


def _named_losses(draft: Draft) -> Iterator[tuple[str, str]]:
    fixed = draft.loss if draft.recipe is None else draft.recipe.get("loss")
    if fixed is not None:
        yield "recipe.loss", fixed
    searched = draft.parameters.get("loss")
    if isinstance(searched, Choice):
        for index, loss in enumerate(searched.choices):
            yield f"search.space.loss.choices.{index}", loss
