"""Whether others can reach the API, and whether it is guarded then."""

from __future__ import annotations

import ipaddress

from service.errors import Unavailable
from service.settings import Settings


class OpenApi(Unavailable):
    title = "API without a key"


def require_key(settings: Settings) -> None:
    """Refuse to listen where others can reach the API while nobody needs a key, or while none opens it.

    Raises:
        OpenApi: says what to set.
    """
    if settings.guarded or settings.allow_open_api or is_loopback(settings.host):
        return
    # Imported late: where the API is for this machine alone, nothing is looked for in tables.
    from sqlalchemy import inspect

    from service.access.keys import queries as keys
    from service.db.database import open_database
    from service.db.kinds import Role
    from service.db.models import ApiKey

    where = settings.host or "every address"
    opened = open_database(settings)
    try:
        inspector = inspect(opened.engine)
        if inspector.has_table(ApiKey.__tablename__):  # else nobody can have a key yet
            if "role" not in {column["name"] for column in inspector.get_columns(ApiKey.__tablename__)}:
                return  # tables of an older version, which the server upgrades or refuses
            with opened.read() as session:
                if keys.any_working(session, Role.ADMIN):
                    return
                if keys.any_key(session):
                    raise OpenApi(_nobody_administers(where, working=keys.any_working(session)))
    finally:
        opened.dispose()
    raise OpenApi(
        f"The API would listen on {where}, where others may reach it, and there is no API key: whoever "
        f"reached it could run studies here. {_MAKE_ONE} Or listen on 127.0.0.1. Where nobody else "
        "can reach the port, set NIGHTSWEEP_ALLOW_OPEN_API=true to go on."
    )


_MAKE_ONE = (
    "Set NIGHTSWEEP_API_KEY to a secret, such as what `openssl rand -hex 24` prints, or make a key with "
    "`nightsweep keys add NAME --role admin`."
)


def _nobody_administers(where: str, *, working: bool) -> str:
    what = "none is an admin's" if working else "all have expired or were revoked"
    return (
        f"The API would listen on {where}, where others may reach it, but of its API keys {what}, so nobody "
        f"could give or take keys there. {_MAKE_ONE}"
    )


def is_loopback(name: str) -> bool:
    """Whether a host's name or address always means the machine it is used on."""
    if name.lower() == "localhost":
        return True
    try:
        return ipaddress.ip_address(name).is_loopback
    except ValueError:
        return False
