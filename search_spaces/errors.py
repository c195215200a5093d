"""Everything this package raises, and the fault that names what is wrong with a definition.

SearchSpaceError
├── InvalidDefinition   a user's document, with every fault in it
├── InvalidRecipe       hyperparameters that make no recipe
├── UnknownPresetError  no preset of that name
└── SuggestionError     a trial that the definition has no point for
    ├── SearchSpaceExhausted    every configuration of the space has had its trial
    ├── RequestRefusedError     a person's parameters have no configuration left
    └── TrialNumberTaken        a storage's word: there is a trial of that number already
"""

from __future__ import annotations

import errno
import re
from collections.abc import Iterable
from dataclasses import dataclass, replace
from typing import Any

MANY_NAMES = 80
"""Characters. A longer list of allowed names is left out where the one that was meant is known."""


@dataclass(frozen=True, kw_only=True)
class Fault:
    """One thing that is wrong, at one place in a document.

    `value` is safe to put into JSON as it stands: finite, without lone surrogates, and shortened.
    """

    path: str
    """Dotted, from the document's root: `search.space.learning_rate.min`. Empty for the root itself."""
    value: Any
    message: str
    """What is wrong and, where needed, what to do. It follows the path: "must be ...", "unknown key"."""
    allowed: str | None = None
    nearest: str | None = None
    """The known name that a misspelt one most resembles."""

    def below(self, path: str) -> Fault:
        """The same fault, seen from further up: `min` below `search.space` is `search.space.min`."""
        return replace(self, path=join_path(path, self.path))

    def __str__(self) -> str:
        text = f"{self.path or 'the definition'}: {self.message}"
        allowed = self.allowed or ""
        if adds_allowed(self.message, allowed) and (self.nearest is None or len(allowed) <= MANY_NAMES):
            text += f"; allowed: {allowed}"
        if self.nearest is not None:
            text += f"; did you mean {self.nearest!r}?"
        return text


def adds_allowed(message: str, allowed: str) -> bool:
    """Whether it says more than the message, which may begin with "must be" and what is allowed."""
    return bool(allowed) and not re.match(rf"must be {re.escape(allowed)}(?!\w|\.\d)", message)


def join_path(*parts: str) -> str:
    """Joins dotted paths, leaving out empty ones."""
    return ".".join(part for part in parts if part)


MACHINE_FAULTS = frozenset(
    {
        errno.ENOSPC,
        errno.EDQUOT,
        errno.EROFS,
        errno.EIO,
        errno.EMFILE,
        errno.ENFILE,
        errno.ENOMEM,
    }
)
"""What the operating system says when a disk is full or broken, or descriptors or memory have run out."""


def machine_fault(error: BaseException) -> str | None:
    """What is wrong with the machine, in the operating system's words; None: `error` is not about that.

    It is nobody's fault who works on it, and may be over in a while. The errors that it was raised from are
    looked at, too: libraries wrap what they meet.
    """
    seen: set[int] = set()
    cause: BaseException | None = error
    while cause is not None and id(cause) not in seen:
        seen.add(id(cause))
        if isinstance(cause, OSError) and cause.errno in MACHINE_FAULTS:
            return str(cause)
        cause = cause.__cause__ or cause.__context__
    return None


class SearchSpaceError(Exception):
    """Base of all errors of this package."""


class _FaultsError(SearchSpaceError):
    def __init__(self, faults: Iterable[Fault]) -> None:
        self.faults: tuple[Fault, ...] = tuple(faults)
        # The only argument, so that the exception survives pickling.
        super().__init__(self.faults)

    def __str__(self) -> str:
        return "\n".join(str(fault) for fault in self.faults)


class InvalidDefinition(_FaultsError):  # noqa: N818  (reads as what it says: raise InvalidDefinition)
    """A definition that cannot be accepted. `faults` holds everything that is wrong with it."""


class InvalidRecipe(_FaultsError):  # noqa: N818  (as above)
    """Hyperparameters that make no valid recipe. Paths are recipe fields."""


class UnknownPresetError(SearchSpaceError):
    """No preset has this name. The message lists those there are."""


class SuggestionError(SearchSpaceError):
    """A trial was asked for that the definition has no point for, such as one past a grid's end."""


class RequestRefusedError(SuggestionError):
    """The parameters that a person asked for have no configuration that has had no trial."""


class SearchSpaceExhausted(SuggestionError):  # noqa: N818  (reads as what it says)
    """Every configuration of a finite search space has had its trial."""


class TrialNumberTaken(SuggestionError):  # noqa: N818  (reads as what it says)
    """A storage refused to give a trial another number than it was drawn for, and created nothing."""
