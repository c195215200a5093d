"""The commands that list a study's trials and show the log of one."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Annotated, Any

import typer

from search_spaces.faults import nearest_name
from search_spaces.recipe import SYNONYMS
from search_spaces.tasks import DIRECTIONS
from service.cli.errors import CommandError
from service.cli.options import Json, Server, StudyName, connect
from service.cli.views.output import say, say_json, table
from service.cli.views.trials import show_trials
from service.client import DEFAULT_SERVER
from service.states import AttemptState
from service.studies.schemas import StudyView
from service.trials.schemas import WAITING, TrialView
from service.wording.standing import best_first
from service.wording.values import moment, setting

_STATES = (WAITING, *AttemptState)
_PROGRESS: Mapping[str, Callable[[TrialView], float | None]] = {
    "number": lambda trial: trial.number,
    "examples": lambda trial: trial.examples_seen,
    "time": lambda trial: trial.train_seconds,
}


def trials(
    study: StudyName,
    state: Annotated[
        list[str] | None,
        typer.Option(
            metavar="STATE",
            help="Only trials in this state. May be given several times.",
            show_default=False,
        ),
    ] = None,
    sort: Annotated[
        str | None,
        typer.Option(
            metavar="KEY",
            help="number (the default), value (best first), examples, time, a metric or a hyperparameter.",
            show_default=False,
        ),
    ] = None,
    top: Annotated[
        int | None,
        typer.Option(
            min=1,
            metavar="N",
            help="Only the first N; without --sort, the N best.",
            show_default=False,
        ),
    ] = None,
    server: Server = DEFAULT_SERVER,
    as_json: Json = False,
) -> None:
    """List a study's trials."""
    states = [_known_state(name) for name in state or ()]
    with connect(server) as client:
        found = client.study(study)
        everything = client.trials(found.id)
    ordered = in_order(found, everything, sort or "number")
    if top is not None and sort in (None, "value", "best", found.metric):
        ordered = best_first(found, everything)
    chosen = [trial for trial in ordered if not states or trial.state in states][:top]
    if as_json:
        say_json([trial.document() for trial in chosen])
        return
    empty = "No trial fits these options." if everything else "No trials yet."
    show_trials(found, chosen, empty=empty)
    best = found.best.trial_number if found.best else None
    if any(trial.number == best for trial in chosen):
        say("* the best trial")


def log(
    study: StudyName,
    number: Annotated[int, typer.Argument(metavar="NUMBER", help="The trial's number.", min=0)],
    server: Server = DEFAULT_SERVER,
    as_json: Json = False,
) -> None:
    """Show what happened to a trial and what it measured, oldest first."""
    with connect(server) as client:
        found = client.trial_log(study, number)
    if as_json:
        say_json([line.document() for line in found.items])
        return
    table(
        ("at", "kind", "message"),
        [("-" if line.at is None else moment(line.at), line.kind, line.message) for line in found.items],
        empty="Nothing has happened to it yet.",
    )


def in_order(study: StudyView, trials: Sequence[TrialView], key: str) -> list[TrialView]:
    """The trials by `key`: those without a value for it last, equal ones by number.

    Raises:
        CommandError: No trial has such a metric or hyperparameter.
    """
    read, largest_first = _reading(study, trials, key)
    found = [(read(trial), trial) for trial in trials]
    absent = [trial for value, trial in found if value is None]
    numbers = all(isinstance(value, int | float) for value, _ in found if value is not None)
    present = [(value if numbers else setting(value), trial) for value, trial in found if value is not None]
    # Sorting is stable, also when reversed.
    return [t for _, t in sorted(present, key=lambda pair: pair[0], reverse=largest_first)] + absent


def _reading(
    study: StudyView, trials: Sequence[TrialView], key: str
) -> tuple[Callable[[TrialView], Any], bool]:
    """What a trial is sorted by, and whether the largest comes first."""
    if key in ("value", "best", study.metric):
        return (lambda trial: trial.value), study.maximizes
    if key in _PROGRESS:
        return _PROGRESS[key], key != "number"
    metrics = list(dict.fromkeys(name for trial in trials for name in trial.metrics))
    if key in metrics:
        return (lambda trial: trial.metrics.get(key)), DIRECTIONS.get(key) == "maximize"
    params = list(dict.fromkeys(name for trial in trials for name in trial.params))
    if key in params:
        return (lambda trial: trial.params.get(key)), False
    known = ("value", *_PROGRESS, *metrics, *params)
    meant = {synonym: name for synonym, name in SYNONYMS.items() if name in known}
    raise CommandError(_unknown("--sort", key, known, meant))


def _known_state(name: str) -> str:
    state = name.strip().lower().replace("-", "_")
    if state not in _STATES:
        raise CommandError(_unknown("--state", name, _STATES))
    return state


def _unknown(option: str, given: str, known: Sequence[str], synonyms: Mapping[str, str] | None = None) -> str:
    nearest = nearest_name(given, known, synonyms)
    meant = f" Did you mean {nearest}?" if nearest else ""
    return f"{option}: unknown value {given!r}.{meant} Allowed: {', '.join(known)}."
