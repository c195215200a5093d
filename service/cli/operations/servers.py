"""Commands that run the service: serve, api, coordinator. They import it only when they are run."""

from __future__ import annotations

from typing import TYPE_CHECKING

from service.cli.in_process import build_settings, service_errors_explained, uncollected_imports
from service.cli.options import Home, Host, Port, RayAddress
from service.cli.views.output import say

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
    """Run only the REST API and the dashboard. They need neither torch nor Ray."""
    settings = build_settings(host=host, port=port, home=home)
    with service_errors_explained():
        with uncollected_imports():
            from service import web_server  # noqa: F401 - what `run_api` imports, all at once
            from service.access.exposure import require_key
            from service.embedded import supervisor
            from service.maintenance import schema

        require_key(settings)  # before the tables, which a newcomer's home does not have either
        schema.check_schemas(settings)  # said in a sentence here; the web server would show a traceback
        supervisor.run_api(settings)


def coordinator(home: Home = None, ray_address: RayAddress = None) -> None:
    """Run only a coordinator, attached to a Ray cluster."""
    settings = build_settings(home=home, ray_address=ray_address)
    with service_errors_explained():
        with uncollected_imports():
            from service.coordinator import process

        process.run(settings)


def _say_ready(url: str) -> None:
    say(
        f"Nightsweep is running at {url}. Press Ctrl-C to stop it.",
        f"  Overview    {url}/",
        f"  Dashboard   {url}/dashboard",
        f"  API         {url}/docs",
    )


def _say_ending(settings: Settings) -> None:
    if settings.ray_address is None:
        say(
            f"Stopping. Running trials write checkpoints first, for up to {settings.drain_seconds:g} s;"
            " press Ctrl-C again to skip this."
        )
