"""Sharing as the REST API shows it."""

from __future__ import annotations

from typing import Literal

from pydantic import Field

from service.answers import Answer


class AccessView(Answer):
    """Who may change a study or a schedule. Everybody who has a key may read it, and admins may change it."""

    owner: str
    shared: Literal["none", "team"] | list[str] = Field(
        description="Who may change it beside its owner: none, team (every owner whose key is at least a "
        "submitter's), or these owners"
    )
