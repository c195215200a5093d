"""What a change insists on: the revision that its sender has seen. Imports nothing of FastAPI, since the
coordinator changes studies, too."""

from __future__ import annotations

from dataclasses import dataclass

from service.errors import PreconditionFailed


def etag(revision: int) -> dict[str, str]:
    """The header that says which revision an answer shows."""
    return {"ETag": f'"{revision}"'}


@dataclass(frozen=True)
class Precondition:
    """What `If-Match` asks for.

    Attributes:
        tags: the entity tags of which one must be the present one, as sent; None: whatever it is.
    """

    tags: frozenset[str] | None = None

    def check(self, what: str, revision: int) -> None:
        """Raise `PreconditionFailed` unless the sender has seen the present revision.

        Tags are compared strongly, as `If-Match` wants it: a weak one (`W/"3"`) is never the present one.

        Args:
            what: for the message: "The study 'tone'".
            revision: the present one.

        Raises:
            PreconditionFailed: it is another one.
        """
        present = etag(revision)["ETag"]
        if self.tags is None or present in self.tags:
            return
        sent = ", ".join(sorted(self.tags))
        if f"W/{present}" in self.tags:
            raise PreconditionFailed(
                f"If-Match has the weak tag {sent}, which never matches. {what} is at {present}; send that"
                " tag."
            )
        raise PreconditionFailed(
            f"{what} is at {present}, but If-Match has {sent}, so it was changed in the meantime. Nothing"
            " was done; read it again and send its new ETag."
        )


ANYTHING = Precondition()
