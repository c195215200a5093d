"""One broken rule, and where."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True, kw_only=True)
class Violation:
    """Something that no fault may leave behind."""

    rule: str
    """A short name, such as `one-end`: see `service.maintenance.integrity.rules.SENTENCES`."""
    study: str
    """The study's name; empty where no study is known."""
    trial: int | None = None
    found: str
    """What was found, in words."""

    def __str__(self) -> str:
        study = f"study {self.study}" if self.study else "no study"
        trial = "" if self.trial is None else f", trial {self.trial}"
        return f"{study}{trial}: {self.found} [{self.rule}]"
