"""What the fixed recipe and the search space demand of each other."""

from __future__ import annotations

from collections.abc import Iterator

from search_spaces.errors import Fault
from search_spaces.faults import shown
from search_spaces.parsing.draft import Draft
from search_spaces.recipe import DEPENDENT_FIELDS, TASK_FIELDS
from search_spaces.space.conditions import never_together
from search_spaces.tasks import TASKS


def searched_fields_have_an_effect(draft: Draft) -> Iterator[Fault]:
    """A field that only some values of another make use of is searched only where it may have them."""
    if draft.recipe is None:
        return
    for name, parameter in draft.parameters.items():
        parent, users = DEPENDENT_FIELDS.get(name, (None, ()))
        if parent is None or parent in draft.parameters:
            continue
        value = draft.fixed(parent)
        if parent == "loss":
            if draft.task is None or draft.task not in TASK_FIELDS[name]:
                continue
            losses = TASKS[draft.task].losses
            users = tuple(loss for loss in losses if loss in users)
            value = losses[0] if value is None else value
        if value not in users:
            words = " or ".join(users)
            how = "fixed in recipe" if parent in draft.recipe else "the default"
            yield Fault(
                path=f"search.space.{name}",
                value=shown(parameter),
                message=f"has no effect: only {words} uses it, and {parent} is {value} ({how}); set"
                f" {parent} to {words} in recipe, search it too, or remove this key",
            )


def one_alpha(draft: Draft) -> Iterator[Fault]:
    """A trial has lora_alpha or lora_alpha_ratio: the first, where given, leaves the second without effect.

    Only conditions can keep two searched ones apart; a fixed ratio may stand in where a conditional alpha is
    inactive.
    """
    if draft.recipe is None:
        return
    parameters, recipe = draft.parameters, draft.recipe
    alpha_fixed = recipe.get("lora_alpha") is not None
    ratio_fixed = recipe.get("lora_alpha_ratio") is not None
    alpha, ratio = parameters.get("lora_alpha"), parameters.get("lora_alpha_ratio")
    if alpha_fixed:
        clash = ratio_fixed or ratio is not None
    elif alpha is None:
        clash = False
    elif ratio is not None:
        clash = draft.space is None or not never_together(parameters, "lora_alpha", "lora_alpha_ratio")
    else:
        clash = ratio_fixed and not alpha.when
    if clash:
        section = "search.space" if alpha is not None else "recipe"
        other = "search.space" if ratio is not None else "recipe"
        yield Fault(
            path=f"{section}.lora_alpha",
            value=shown(recipe["lora_alpha"] if alpha is None else alpha),
            message=f"cannot be combined with {other}.lora_alpha_ratio, because both set alpha (alpha ="
            " lora_alpha_ratio x lora_r); remove one of them, or add conditions that exclude each other",
            allowed="lora_alpha or lora_alpha_ratio",
        )
