"""`nightsweep demo`: the whole service on this machine, one study, and what it found."""

from __future__ import annotations

import contextlib
import errno
import shlex
import signal
import socket
import time
from collections.abc import Iterator
from datetime import UTC, datetime
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from service.cli.errors import INTERRUPTED, REFUSED, CommandError
from service.cli.follow import follow
from service.cli.in_process import build_settings, service_errors_explained
from service.cli.options import Home, Port
from service.cli.study_file import read_study_file
from service.cli.views.output import console, say, say_error, say_note
from service.cli.views.studies import comparison, summary
from service.client import Client, ClientError, UnreachableError
from service.states import StudyState
from service.studies.schemas import StudyView
from service.wording.standing import StudySnapshot, best_trial

if TYPE_CHECKING:
    from service.settings import Settings

_GIVE_UP_SECONDS = 60.0
"""The demo's server restarts within seconds; if it takes longer, it will not come back."""

_CANCEL_SECONDS = 10.0
"""Trials stop at their next step, so a cancelled study has usually ended within this time."""


def demo(
    keep_serving: Annotated[
        bool, typer.Option("--keep-serving", help="Keep the service running afterwards, until Ctrl-C.")
    ] = False,
    home: Home = None,
    port: Port = None,
) -> None:
    """Run the quickstart: start the service, run one small study, and show its best adapter."""
    folder = quickstart_folder()
    settings = demo_settings(folder, home, port)
    definition = read_study_file(folder / "study.yaml")
    definition["name"] = f"quickstart-{datetime.now(UTC):%Y%m%d-%H%M%S}"
    api_key = settings.api_key.get_secret_value() if settings.api_key else None
    try:
        with service_errors_explained():
            from service.embedded.supervisor import Supervisor

            say("Starting the service: a local Ray, the coordinator and the API ...")
            with (
                sigterm_as_interrupt(),
                Supervisor(settings) as server,
                Client(server.url, api_key=api_key) as client,
            ):
                study = client.submit(definition)
                say(f"Study {study.name} submitted; dashboard: {client.dashboard_url()}", "")
                ended = _follow_or_cancel(client, study)
                say("", *ending(ended, client.dashboard_url(ended.study), settings))
                if keep_serving:
                    say("", f"The service is still running at {server.url}. Press Ctrl-C to stop it.")
                    _wait_for_interrupt()
    except UnreachableError as error:
        say_error(f"the demo's service stopped answering; its logs are in {settings.home / 'logs'}")
        raise typer.Exit(REFUSED) from error
    except KeyboardInterrupt as interrupt:
        say_note("The demo was stopped.")
        raise typer.Exit(INTERRUPTED) from interrupt
    if ended.study.state != StudyState.COMPLETED or best_trial(ended) is None:
        say_error(f"the demo's study is {ended.study.state}: {ended.study.reason}")
        raise typer.Exit(REFUSED)


@contextlib.contextmanager
def sigterm_as_interrupt() -> Iterator[None]:
    """Ends the demo on SIGTERM as on Ctrl-C: study cancelled, children stopped, folders removed."""
    signums = [signal.SIGTERM, *([signal.SIGINT] if callable(signal.getsignal(signal.SIGINT)) else [])]
    # From here on there are children to stop: even a module that is imported late ends nothing at once.
    before = {signum: signal.signal(signum, signal.default_int_handler) for signum in signums}
    try:
        yield
    finally:
        for signum, handler in before.items():
            signal.signal(signum, handler)


def _follow_or_cancel(client: Client, study: StudyView) -> StudySnapshot:
    """Follows the study; on Ctrl-C cancels it, or the next demo in this home would train it as well."""
    try:
        return follow(client, study.id, console(), give_up_after=_GIVE_UP_SECONDS)
    except KeyboardInterrupt:
        # It has just ended, or the service has: nothing to cancel. A second Ctrl-C: nothing to wait for.
        with contextlib.suppress(ClientError, KeyboardInterrupt):
            client.cancel(study.id)
            deadline = time.monotonic() + _CANCEL_SECONDS
            while not client.study(study.id).ended and time.monotonic() < deadline:
                time.sleep(0.2)
        raise


def quickstart_folder() -> Path:
    """The quickstart's folder: beside the packages in a checkout, inside the package in a wheel.

    Raises:
        CommandError: It is in neither place.
    """
    package = Path(__file__).resolve().parents[2]
    places = (package.parent / "examples" / "quickstart", package / "_quickstart")
    for folder in places:
        if (folder / "study.yaml").is_file():
            return folder
    looked = " and ".join(str(place) for place in places)
    raise CommandError(f"the quickstart is missing from this installation (looked in {looked})")


def demo_settings(quickstart: Path, home: Path | None, port: int | None) -> Settings:
    """Settings of a service that has a home of its own and may read the quickstart."""
    given = build_settings(home=home, port=port)
    return build_settings(
        home=home or given.home / "demo",
        port=free_port(given.host, given.port) if port is None else port,
        data_roots=(*given.data_roots, quickstart),
    )


def free_port(host: str, wanted: int) -> int:
    """`wanted` if nobody listens there, else a port the operating system says is free."""
    family = socket.AF_INET6 if ":" in host else socket.AF_INET
    for port in (wanted, 0):
        with socket.socket(family, socket.SOCK_STREAM) as probe:
            # As servers do: a port whose last connections are still being closed counts as free.
            probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            try:
                probe.bind((host, port))
            except OSError as error:
                if error.errno != errno.EADDRINUSE:
                    raise CommandError(f"cannot listen on {host}:{port}: {error.strerror}") from error
                continue
            return int(probe.getsockname()[1])
    raise CommandError(f"no port is free on {host}")


def ending(snapshot: StudySnapshot, dashboard_url: str, settings: Settings) -> list[str]:
    """What the demo prints last."""
    lines = summary(snapshot, dashboard_url)
    home = shlex.quote(str(settings.home))
    lines.append(f"              after the demo: nightsweep serve --home {home} --port {settings.port}")
    if worst := comparison(snapshot):
        lines.insert(-2, f"  Worst       {worst}")
    best = best_trial(snapshot)
    if best is not None and best.adapter is not None:
        model = snapshot.study.definition["model"]["id"]
        lines += [
            "",
            "Use the adapter:",
            "  from peft import PeftModel; from transformers import AutoModelForCausalLM",
            f"  model = PeftModel.from_pretrained("
            f"AutoModelForCausalLM.from_pretrained({model!r}), {best.adapter.path!r})",
        ]
    return lines


def _wait_for_interrupt() -> None:
    try:
        signal.pause()
    except KeyboardInterrupt:
        say_note("Stopping.")
