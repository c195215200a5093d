"""Whether others can reach the API, and whether it is guarded then."""

from __future__ import annotations

import ipaddress

from service.errors import Unavailable
from service.settings import Settings


class OpenApi(Unavailable):
    title = "API without a key"


def require_key(settings: Settings) -> None:
    """Refuse to listen where others can reach the API while nobody needs a key.

    Raises:
        OpenApi: says what to set.
    """
    if settings.api_key is not None or settings.allow_open_api or is_loopback(settings.host):
        return
    # Imported late: where the API is for this machine alone, nothing is looked for in tables.
    from sqlalchemy import inspect

    from service.access import keys
    from service.db.database import open_database
    from service.db.models import ApiKey

    opened = open_database(settings)
    try:
        if inspect(opened.engine).has_table(ApiKey.__tablename__):  # else nobody can have a key yet
            with opened.read() as session:
                if keys.any_key(session):
                    return
    finally:
        opened.dispose()
    raise OpenApi(
        f"The API would listen on {settings.host or 'every address'}, where others may reach it, and there "
        "is no API key: whoever reached it could run studies here. Set NIGHTSWEEP_API_KEY to a secret, such "
        "as what `openssl rand -hex 24` prints, or make keys with `nightsweep keys add NAME`; or listen on "
        "127.0.0.1. Where nobody else can reach the port, set NIGHTSWEEP_ALLOW_OPEN_API=true to go on."
    )


def is_loopback(name: str) -> bool:
    """Whether a host's name or address always means the machine it is used on."""
    if name.lower() == "localhost":
        return True
    try:
        return ipaddress.ip_address(name).is_loopback
    except ValueError:
        return False
