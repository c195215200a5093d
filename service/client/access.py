"""What the client asks about who may do what."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from service.access.audit.schemas import AuditView
from service.access.keys.schemas import KeyView, Me, NewKeyView
from service.access.sharing.schemas import AccessView
from service.client.errors import RefusedError
from service.client.paging import Paged, given, segment


class AccessRequests(Paged):
    """Keys, sharing and the audit log."""

    def me(self) -> Me:
        """Who the server takes this client for."""
        return self._one(Me, "GET", "/v1/me")

    def keys(self) -> list[KeyView]:
        return self._items(KeyView, self._json("GET", "/v1/keys"))

    def key_id(self, ref: str) -> str:
        """The id of a key by its id, or by its owner's name if they have one working key only.

        Raises:
            RefusedError: there is no such key, or there are several.
        """
        known = self.keys()
        if any(key.id == ref for key in known):
            return ref
        working = [key.id for key in known if key.owner == ref and key.state == "active"]
        if len(working) != 1:
            what = "several keys: " + ", ".join(working) if working else "no working key"
            raise RefusedError(
                404, "Not found", f"{ref!r} is not the id of a key, and as an owner has {what}."
            )
        return working[0]

    def add_key(self, wanted: Mapping[str, Any]) -> NewKeyView:
        """Makes a key: `owner`, `role`, `label`, `expires_in`. Its answer alone has the key itself."""
        return self._one(NewKeyView, "POST", "/v1/keys", wanted)

    def change_key(self, key: str, changes: Mapping[str, Any]) -> KeyView:
        """Changes `role` or `label`."""
        return self._one(KeyView, "PATCH", f"/v1/keys/{segment(key)}", changes)

    def rotate_key(self, key: str, wanted: Mapping[str, Any]) -> NewKeyView:
        """Makes a key in place of another, which works on for `overlap`."""
        return self._one(NewKeyView, "POST", f"/v1/keys/{segment(key)}/rotate", wanted)

    def revoke_key(self, key: str) -> None:
        self._send("DELETE", f"/v1/keys/{segment(key)}")

    def share(self, name: str, shared: str | Sequence[str], *, schedule: bool = False) -> AccessView:
        """Says who may change a study or a schedule beside its owner: `none`, `team`, or these owners."""
        noun = "schedules" if schedule else "studies"
        return self._one(AccessView, "PUT", f"/v1/{noun}/{segment(name)}/access", {"shared": shared})

    def audit(self, **filters: str | None) -> Iterator[AuditView]:
        """Entries of the audit log, newest first: `owner`, `object`, `since`, `until`."""
        query: dict[str, str | list[str]] = {"limit": "1000", **given(**filters)}
        while True:
            page = self._json("GET", "/v1/audit", query=query)
            yield from self._items(AuditView, page)
            cursor = page.get("next_cursor")
            if not cursor:
                return
            query["cursor"] = str(cursor)
