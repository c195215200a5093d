"""The environment of child processes: settings as variables, and none of the service's secrets for Ray."""

from __future__ import annotations

import os

from pydantic import SecretStr

from service.settings import Settings


def settings_environment(settings: Settings) -> dict[str, str]:
    """The settings as the environment variables that give them back."""
    environment = {}
    for name in type(settings).model_fields:
        value = getattr(settings, name)
        if value is None:
            continue
        if name == "data_roots":
            text = os.pathsep.join(str(root) for root in value)
        elif isinstance(value, tuple):
            text = ",".join(value)
        elif isinstance(value, SecretStr):
            text = value.get_secret_value()
        else:
            text = str(value)
        environment[f"NIGHTSWEEP_{name.upper()}"] = text
    return environment


def is_ours(variable: str) -> bool:
    """Whether it is a setting of the service's (the API key, a database's password), or libpq's password."""
    return variable.upper().startswith("NIGHTSWEEP_") or variable in ("PGPASSWORD", "PGPASSFILE")
