"""The notes that the dashboard shows on a study and its trials, in Markdown. Pure."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from typing import Any

from search_spaces.values.artifact_urls import without_password
from search_spaces.wording import counted
from service.range_tests.schemas import RangeTestView
from service.states import TERMINAL_ATTEMPT_STATES, UNFINISHED_ATTEMPT_STATES
from service.studies.schemas import StudyView
from service.trials.schemas import TrialView

_SYNTAX = re.compile(r"([\\`*_{}\[\]<>()#+!|~$-])")
_ENDS = TERMINAL_ATTEMPT_STATES - UNFINISHED_ATTEMPT_STATES
_NO_BEST = "A range test has no best trial: it proposes a range of learning rates, see the note."
_NO_IMPORTANCE = (
    "A range test does not rank hyperparameters: its trials sweep the learning rate at given corners."
)


def study_note(study: StudyView) -> str:
    """State and reason, the best trial, and how its adapter is fetched."""
    lines = [_standing(study.state, study.reason)]
    if (best := study.best) is None:
        lines.append("**Best**: none yet." if study.ended_at is None else "**Best**: no trial completed.")
    else:
        metric = study.definition.get("objective", {}).get("metric", "value")
        mean = "" if best.mean is None else f", mean of {counted(best.n, 'repeat')} {best.mean:.6g}"
        lines.append(f"**Best**: trial {best.trial_number}, {_plain(metric)} {best.value:.6g}{mean}.")
        lines.append(_table("hyperparameter", [(name, value) for name, value in best.params.items()]))
        if best.sentence:
            lines.append(_plain(best.sentence))
        address = f"/v1/studies/{study.name}/trials/{best.trial_number}/adapter"
        lines.append(
            f"**Its adapter**: [{_plain(address)}]({address}), a zip of what `PeftModel.from_pretrained`"
            f" reads; also by `nightsweep adapter {study.name}`."
            f" Everything about the trial: `nightsweep best {study.name}`."
        )
    return "\n\n".join(lines)


def range_test_note(test: RangeTestView) -> str:
    """State and reason, and what was found."""
    lines = [_standing(test.state, test.reason)]
    if test.bounds is not None:
        lines.append(f"**Learning rate**: {test.bounds.min:.3g} to {test.bounds.max:.3g}.")
    lines += [_plain(note) for note in test.notes]
    address = f"/v1/range-tests/{test.name}"
    lines.append(f"**Its curves, in numbers**: [{_plain(address)}]({address}).")
    return "\n\n".join(lines)


def trial_note(trial: TrialView, repeat: str | None, *, trained: bool = True) -> str:
    """State and reason, every metric, the adapter's address, and the whole recipe.

    Args:
        trial: the trial.
        repeat: which repeat it is, in words; None: it is of the search.
        trained: whether it is a training, which leaves an adapter; a range test's is a sweep.
    """
    lines = [_standing(trial.state, trial.reason)]
    if repeat is not None:
        lines.append(f"{repeat[0].upper()}{repeat[1:]}.")
    if trial.metrics or trial.final_metrics:
        lines.append(_metrics(trial))
    if trial.costs:
        lines.append(_table("cost", list(trial.costs.items())))
    if not trial.feasible:
        lines.append("It breaks a constraint, so it is not among the best.")
    if trial.adapter is not None:
        address = trial.adapter.url
        lines.append(
            f"**Adapter**: [{_plain(address)}]({address}), kept in"
            f" {_code(without_password(trial.adapter.path))}."
        )
    elif trained and trial.state in _ENDS:
        lines.append("**Adapter**: none is kept.")
    if trial.recipe is not None:
        recipe = trial.recipe if trained else {**trial.recipe, "learning_rate": "swept"}
        lines.append(_table("recipe", list(recipe.items())))
    return "\n\n".join(lines)


def repeats_in_words(trials: Sequence[TrialView]) -> dict[int, str]:
    """Of each trial beside the search: which of the repeats it is, and its seed; or what it evaluates."""
    words: dict[int, str] = {}
    seen: dict[int, int] = {}
    for trial in trials:
        if trial.evaluates is not None:
            whose = trial.evaluates
            words[trial.number] = f"evaluates the {whose.role}, trial {whose.trial} of {whose.study}"
        elif trial.repeat_of is not None:
            seen[trial.repeat_of] = seen.get(trial.repeat_of, 0) + 1
            words[trial.number] = (
                f"repeat {seen[trial.repeat_of]} of trial {trial.repeat_of}, seed {trial.seed}"
            )
    return words


def beside_the_search(trial: TrialView) -> str:
    """What a repeat or an evaluation is, in short."""
    if trial.evaluates is not None:
        return f"evaluates the {trial.evaluates.role}"
    return f"repeat of {trial.repeat_of}, seed {trial.seed}"


def titles_of_a_range_test() -> dict[str, str]:
    """What stands beneath a card's title in place of what a range test does not have."""
    return {"Best Trial": _NO_BEST, "Hyperparameter Importance": _NO_IMPORTANCE}


def _standing(state: str, reason: str) -> str:
    return f"**{_plain(state)}**" + (f": {_plain(reason)}" if reason else "")


def _metrics(trial: TrialView) -> str:
    best = "best rung" if trial.best_rung is None else f"best rung, {trial.best_rung:,} examples"
    names = dict.fromkeys([*trial.metrics, *trial.final_metrics])
    rows = [
        f"| {_plain(name)} | {_value(trial.metrics.get(name))} | {_value(trial.final_metrics.get(name))} |"
        for name in names
    ]
    return "\n".join([f"| metric | {best} | last rung |", "| --- | --- | --- |", *rows])


def _table(title: str, rows: Sequence[tuple[str, Any]]) -> str:
    lines = [f"| {_plain(name)} | {_value(value)} |" for name, value in rows]
    return "\n".join([f"| {title} | value |", "| --- | --- |", *lines])


def _value(value: object) -> str:
    if value is None:
        return "-"
    if isinstance(value, bool):
        return "true" if value else "false"  # as in a definition
    if isinstance(value, float):
        return f"{value:.6g}"
    if isinstance(value, Mapping):
        return ", ".join(f"{_plain(str(name))} {_value(item)}" for name, item in value.items()) or "-"
    if isinstance(value, list | tuple):
        return ", ".join(_value(item) for item in value) or "-"
    return _plain(str(value))


def _plain(text: str) -> str:
    """Text that Markdown shows as it is."""
    return _SYNTAX.sub(r"\\\1", " ".join(text.split()))


def _code(text: str) -> str:
    """A path, as it is."""
    return _plain(text) if "`" in text or "|" in text else f"`{text}`"
