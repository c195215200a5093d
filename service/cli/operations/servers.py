"""Commands that are the service: serve, api, coordinator. Thin, and heavy to import only when run."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

import typer

from service.cli.errors import REFUSED, CommandError
from service.cli.options import Home, Host, Port, RayAddress, given
from service.cli.views.output import say, say_error

if TYPE_CHECKING:
    from service.settings import Settings


def serve(host: Host = None, port: Port = None, home: Home = None, ray_address: RayAddress = None) -> None:
    """Run everything on this machine: a local Ray, the coordinator and the API."""
    settings = build_settings(host=host, port=port, home=home, ray_address=ray_address)
    with service_errors_explained():
        from service.embedded import supervisor

        say("Starting the service ...")
        supervisor.serve(settings, on_ready=_say_ready, on_end=lambda: _say_ending(settings))


def api(host: Host = None, port: Port = None, home: Home = None) -> None:
    """Run only the REST API and the dashboard. This needs neither torch nor Ray."""
    settings = build_settings(host=host, port=port, home=home)
    with service_errors_explained():
        from service.embedded import supervisor
        from service.maintenance import schema

        supervisor.require_key(settings)  # before the tables, which a newcomer's home does not have either
        schema.check_schemas(settings)  # said in a sentence here; the web server would show a traceback
        supervisor.run_api(settings)


def coordinator(home: Home = None, ray_address: RayAddress = None) -> None:
    """Run only a coordinator, attached to a Ray cluster."""
    settings = build_settings(home=home, ray_address=ray_address)
    with service_errors_explained():
        from service.coordinator import loop

        loop.run(settings)


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
            f"NIGHTSWEEP_{'.'.join(str(part) for part in fault['loc']).upper()}: "
            + fault["msg"].removeprefix("Value error, ")
            for fault in error.errors(include_input=False)  # an input may be a password
        ]
        raise CommandError("\n".join(["these settings are not valid:", *faults])) from error


def _say_ready(url: str) -> None:
    say(
        f"Nightsweep serves at {url} until Ctrl-C.",
        f"  Dashboard   {url}/dashboard",
        f"  API         {url}/docs",
    )


def _say_ending(settings: Settings) -> None:
    if settings.ray_address is None:
        limit = f"up to {settings.drain_seconds:g} s"
        say(f"Stopping. Running trials write their checkpoints first, for {limit}. Ctrl-C again skips that.")


@contextmanager
def service_errors_explained() -> Iterator[None]:
    """Turns what the service raises on purpose, and what its surroundings refuse, into a sentence."""
    from sqlalchemy.exc import OperationalError

    from service.errors import ServiceError

    try:
        yield
    except ServiceError as error:
        say_error(error.detail, *(f"  {fault}" for fault in error.faults))
        raise typer.Exit(REFUSED) from error
    except OperationalError as error:
        say_error(f"the database does not answer: {error.orig}")
        raise typer.Exit(REFUSED) from error
    except ModuleNotFoundError as error:
        if error.name not in ("ray", "torch", "grpc"):
            raise
        say_error(f"{error.name} is not installed here; install it with: pip install 'nightsweep[all]'")
        raise typer.Exit(REFUSED) from error
    except OSError as error:
        # A port that is taken, a home that cannot be written.
        say_error(str(error))
        raise typer.Exit(REFUSED) from error
