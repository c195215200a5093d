"""What the commands share that run the service's code in their own process: its settings and its errors."""

from __future__ import annotations

import gc
from collections.abc import Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

import typer

from search_spaces.faults import translate
from service.cli.errors import REFUSED, CommandError, fault_lines
from service.cli.options import given
from service.cli.views.output import say_error

if TYPE_CHECKING:
    from service.settings import Settings


def build_settings(**options: Any) -> Settings:
    """The settings of the environment; options that were given replace them.

    Raises:
        CommandError: A value is out of its range; names the environment variable.
    """
    from pydantic import ValidationError

    from service.settings import Settings

    try:
        return Settings(**given(**options))
    except ValidationError as error:
        # Of a fault's value nothing is shown: it may be a password. A default that needs another setting has
        # no fault of its own.
        faults = [
            f"NIGHTSWEEP_{fault.path.upper()}: {fault.message}"
            for details, fault in zip(error.errors(), translate(error), strict=True)
            if details["type"] != "default_factory_not_called"
        ]
        raise CommandError("\n".join(["these settings are not valid:", *faults])) from error


@contextmanager
def uncollected_imports() -> Iterator[None]:
    """Imports take an eighth less time without the garbage collector, which finds hardly anything of them."""
    gc.disable()
    try:
        yield
    finally:
        gc.freeze()  # nor does it later
        gc.enable()


@contextmanager
def service_errors_explained() -> Iterator[None]:
    """Turns the service's errors, and those of the database and the operating system, into a sentence."""
    from sqlalchemy.exc import OperationalError

    from service.errors import ServiceError

    try:
        yield
    except ServiceError as error:
        say_error(error.detail, *(f"  {line}" for line in fault_lines(error.faults)))
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
