"""The command that plans a study before anything is spent on it."""

from __future__ import annotations

from typing import TYPE_CHECKING, Annotated, Any

import typer

from search_spaces.wording import counted
from service.cli.errors import REFUSED
from service.cli.in_process import build_settings
from service.cli.options import Json, Server, StudyFile, connect
from service.cli.study_file import read_study_file
from service.cli.views.output import say_error, say_json
from service.client import DEFAULT_SERVER, RefusedError
from service.client.connection import same_version
from service.wording.values import one_line

if TYPE_CHECKING:
    from service.plans.schemas import PlanView


def plan(
    file: StudyFile,
    local: Annotated[
        bool,
        typer.Option(
            "--local", help="Plan on this machine, without a server. Earlier trials are not known here."
        ),
    ] = False,
    server: Server = DEFAULT_SERVER,
    as_json: Json = False,
) -> None:
    """Show what a study would do and what it would take, with warnings. Nothing is stored.

    If every trial would fail, or the data or the model cannot be read, it says why and exits with 1.
    """
    definition = read_study_file(file)
    document = _planned_here(definition) if local else _planned_there(server, definition)
    from service.plans.schemas import PlanView

    with same_version("this machine" if local else server):
        view = PlanView.read(document)
    if as_json:
        say_json(document)
    else:
        from service.cli.views.plan_view import show_plan

        show_plan(view)
    if not view.acceptable:
        say_error(_why(view))
        raise typer.Exit(REFUSED)


def _why(view: PlanView) -> str:
    first, *others = view.reasons or ["The server found it not acceptable."]
    more = f" ({counted(len(others), 'more reason')} in the plan)" if others else ""
    return one_line(first) + more


def _planned_there(server: str, definition: dict[str, Any]) -> dict[str, Any]:
    with connect(server) as client:
        return client.plan(definition)


def _planned_here(definition: dict[str, Any]) -> dict[str, Any]:
    from service.errors import ServiceError
    from service.plans.commands import local_plan

    settings = build_settings()
    try:
        return local_plan(definition, settings.plan_timeout_seconds).model_dump(mode="json")
    except ServiceError as error:
        # In the words of a server, which would have said the same.
        raise RefusedError(error.status, error.title, error.detail, error.faults) from error
