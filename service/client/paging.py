"""Lists that are read page by page, and the parts of addresses."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from typing import TypeVar
from urllib.parse import quote

from service.answers import Answer
from service.client.connection import Connection

PAGE = 100
"""Items of a page."""
A = TypeVar("A", bound=Answer)


class Paged(Connection):
    """A connection over which long lists are read."""

    def _pages(self, path: str, filters: Mapping[str, str | list[str]], kind: type[A]) -> Iterator[A]:
        query: dict[str, str | list[str]] = {"limit": str(PAGE), **filters}
        while True:
            page = self._json("GET", path, query=query)
            yield from self._items(kind, page)
            cursor = page.get("next_cursor")
            if not cursor:
                return
            query["cursor"] = cursor


def given(**filters: str | int | Sequence[str] | None) -> dict[str, str | list[str]]:
    """The query of the filters that are given."""
    query: dict[str, str | list[str]] = {}
    for name, value in filters.items():
        if isinstance(value, bool | int):
            query[name] = str(value).lower()
        elif value is not None:
            query[name] = value if isinstance(value, str) else list(value)
    return query


def segment(name: str | int) -> str:
    return quote(str(name), safe="")
