"""Commands that are the service: serve, api, coordinator, db. Thin, and heavy to import only when run."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

import typer

from service.cli.errors import REFUSED, CommandError, Commands
from service.cli.options import Home, Host, Port, RayAddress, given
from service.cli.output import say, say_error

if TYPE_CHECKING:
    from service.settings import Settings

db = typer.Typer(cls=Commands, no_args_is_help=True, help="The service's database.")


def serve(host: Host = None, port: Port = None, home: Home = None, ray_address: RayAddress = None) -> None:
    """Run everything on this machine: a local Ray, the coordinator and the API."""
    settings = build_settings(host=host, port=port, home=home, ray_address=ray_address)
    with service_errors_explained():
        from service import supervisor

        say("Starting the service ...")
        supervisor.serve(settings, on_ready=_say_ready)


def api(host: Host = None, port: Port = None, home: Home = None) -> None:
    """Run the REST API and the dashboard alone. Needs neither torch nor Ray."""
    settings = build_settings(host=host, port=port, home=home)
    with service_errors_explained():
        from service import supervisor

        _check_schema(settings)  # said in a sentence here; the web server would show a traceback
        supervisor.run_api(settings)


def coordinator(home: Home = None, ray_address: RayAddress = None) -> None:
    """Run a coordinator alone, attached to a Ray cluster."""
    settings = build_settings(home=home, ray_address=ray_address)
    with service_errors_explained():
        from service.coordinator import loop

        loop.run(settings)


@db.command()
def upgrade(home: Home = None) -> None:
    """Bring the database's tables, and Optuna's, to this version."""
    settings = build_settings(home=home)
    with service_errors_explained():
        from service import database

        database.upgrade(settings)
    say("The database is of this version.")


@db.command()
def check(home: Home = None) -> None:
    """Say whether the database's tables are of this version; exit 1 if not."""
    settings = build_settings(home=home)
    with service_errors_explained():
        _check_schema(settings)
    say("The database is of this version.")


def build_settings(**options: Any) -> Settings:
    """The settings of the environment, with the options that were given in their place.

    Raises:
        CommandError: A value is out of its range; names the environment variable.
    """
    from pydantic import ValidationError

    from service.settings import Settings

    try:
        return Settings(**given(**options))
    except ValidationError as error:
        faults = [
            f"NIGHTSWEEP_{'.'.join(str(part) for part in fault['loc']).upper()}: {fault['msg']}"
            for fault in error.errors(include_input=False)  # an input may be a password
        ]
        raise CommandError("\n".join(["these settings are wrong:", *faults])) from error


def _check_schema(settings: Settings) -> None:
    from service import database

    engine = database.make_engine(settings)
    try:
        database.check_schema(engine)
    finally:
        engine.dispose()


def _say_ready(url: str) -> None:
    say(
        f"Nightsweep serves at {url} until Ctrl-C.",
        f"  Dashboard   {url}/dashboard",
        f"  API         {url}/docs",
    )


@contextmanager
def service_errors_explained() -> Iterator[None]:
    """Turns what the service raises on purpose, and what its surroundings refuse, into a sentence."""
    from sqlalchemy.exc import OperationalError

    from service.errors import ServiceError

    try:
        yield
    except ServiceError as error:
        say_error(error.detail)
        raise typer.Exit(REFUSED) from error
    except OperationalError as error:
        say_error(f"the database does not answer: {error.orig}")
        raise typer.Exit(REFUSED) from error
    except ModuleNotFoundError as error:
        if error.name not in ("ray", "torch"):
            raise
        say_error(f"{error.name} is not installed here; pip install 'nightsweep[all]'")
        raise typer.Exit(REFUSED) from error
    except OSError as error:
        # A port that is taken, a home that cannot be written.
        say_error(str(error))
        raise typer.Exit(REFUSED) from error
