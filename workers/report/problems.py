"""Collects what a report finds wrong. A fault that many rows share is said once, with how many have it."""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Collection
from dataclasses import dataclass, field

import httpx

from search_spaces.data_report import ProblemKind, ReportProblem
from workers.errors import AdapterError, DataError, LengthError, ModelError, RecipeLengthError, WorkerError

MOST_KINDS = 5
"""Kinds of faulty rows that are named; the rows of further kinds are counted alone."""
_ABOUT: dict[type[WorkerError], ProblemKind] = {
    ModelError: "model",
    DataError: "data",
    AdapterError: "recipe",
    RecipeLengthError: "recipe",
}
_QUOTED = re.compile(r"(['\"])(.*?)\1")


@dataclass
class _FoundProblem:
    """One problem, which more may turn out to be the same as."""

    problem: ReportProblem
    rows: Counter[str] = field(default_factory=Counter)
    """By data set, those that have it."""
    lengths: list[int] = field(default_factory=list)
    """Further values of a recipe's max_length that have it."""
    also: str = ""
    """The path of the other data, if it has it too."""


class Problems:
    """Everything that is wrong, in the order in which it was found."""

    def __init__(self) -> None:
        self._found: dict[str, _FoundProblem] = {}
        self._read: Counter[str] = Counter()
        self._kinds = 0
        self._bad_lengths: set[int] = set()

    def add(
        self,
        error: WorkerError,
        path: str,
        *,
        source: str = "",
        from_hub: bool = False,
        every_trial: bool = False,
    ) -> None:
        """Something that is not about a row, or at which the reading ended.

        Args:
            error: Said as it is.
            path: The definition's key that it is about.
            source: The data that it is about, by its name in messages.
            from_hub: Whether it came up while something was fetched. What the hub's client could not do (the
                cause is one of its errors) a worker may: it has another cache, another network, another
                token.
            every_trial: Of a recipe's fault: whether all recipes have one.
        """
        problem = _problem(error, path, from_hub=from_hub)
        if every_trial:
            problem = problem.model_copy(update={"every_trial": True})
        key = str(error).replace(source, "") if source else str(error)
        found = self._found.setdefault(key, _FoundProblem(problem))
        if found.problem.path != path and problem.about == "data":
            found.also = path

    def add_row(
        self, error: WorkerError, split: str, place: str, names: Collection[str], *, path: str
    ) -> None:
        """The fault of one row.

        Args:
            error: Names the place of the row.
            split: `train` or `eval`.
            place: Where the row is.
            names: Fields and columns. Faults that name different ones of these are not the same.
            path: The definition's key that it is about.
        """
        key = _kind(str(error).removeprefix(place), names)
        if key not in self._found:
            if self._kinds == MOST_KINDS:
                return
            self._kinds += 1
            self._found[key] = _FoundProblem(_problem(error, path))
        self._found[key].rows[split] += 1

    def add_read(self, split: str, rows: int) -> None:
        """How many rows of a data set were read, faulty or not."""
        self._read[split] += rows

    def add_length(self, fault: LengthError, length: int, *, own: bool, recipes: Collection[int]) -> None:
        """A length that leaves nothing, or that the base has no positions for.

        Said of the study where its own length is at fault, or the only one there is; else of recipes, of all
        that fail alike together.

        Args:
            fault: Said of `data.max_length`.
            length: That length.
            own: Whether it is the study's own.
            recipes: All lengths that recipes cut rows to.
        """
        error = fault if own else RecipeLengthError.of(fault)
        path = "data.max_length" if own else "recipe.max_length"
        if length in recipes:
            self._bad_lengths.add(length)
        key = str(error) if own else _kind(str(error), ())
        if key in self._found:
            self._found[key].lengths.append(length)
            return
        problem = _problem(error, path)
        if not own and len(recipes) == 1:
            problem = problem.model_copy(update={"about": "data"})
        self._found[key] = _FoundProblem(problem)

    def all(self, recipes: Collection[int] = ()) -> tuple[ReportProblem, ...]:
        """All of them.

        Args:
            recipes: All lengths that recipes cut rows to. Where all of them are at fault, every trial fails.
        """
        none_is_left = bool(recipes) and self._bad_lengths >= set(recipes)
        return tuple(self._whole(found, none_is_left) for found in self._found.values())

    def _whole(self, found: _FoundProblem, no_length_is_left: bool) -> ReportProblem:
        problem, rows = found.problem, found.rows.total()
        changes: dict[str, object] = {}
        message = problem.message
        if rows:
            changes["rows"] = rows
        if rows > 1:
            shares = [
                f"{count:,} of {self._read[split]:,} {split} rows" for split, count in found.rows.items()
            ]
            message += f" In all, {' and '.join(shares)} have this fault; this is the first."
        if found.also:
            message += f" The same goes for {found.also}."
        if found.lengths:
            message += f" The same goes for max_length {_listed(found.lengths)}."
        if no_length_is_left and problem.path == "recipe.max_length":
            changes["every_trial"] = True
        return problem.model_copy(update={**changes, "message": message})


def _problem(error: WorkerError, path: str, *, from_hub: bool = False) -> ReportProblem:
    about = next(about for kind, about in _ABOUT.items() if isinstance(error, kind))
    if from_hub and _is_of_the_hubs_client(error.__cause__):
        about = "host"
    path = "model.id" if about == "model" else path
    return ReportProblem(about=about, message=str(error), path=path, every_trial=about in ("model", "data"))


def _is_of_the_hubs_client(cause: BaseException | None) -> bool:
    from datasets.exceptions import DatasetsError  # imported late: it takes pandas along

    return isinstance(cause, (OSError, ValueError, httpx.HTTPError, DatasetsError))


def _kind(message: str, names: Collection[str]) -> str:
    """What faults of one kind have in common: the first sentence, without numbers and without the row's own
    words in quotes."""

    def general(quoted: re.Match[str]) -> str:
        return quoted[0] if quoted[2] in names else "'...'"

    return re.sub(r"\d[\d,]*", "#", _QUOTED.sub(general, message)).partition(". ")[0]


def _listed(values: list[int]) -> str:
    *others, last = [f"{value:,}" for value in values]
    return f"{', '.join(others)} and {last}" if others else last
