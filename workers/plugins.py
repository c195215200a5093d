"""Metrics and losses of a study's own: functions in modules that NIGHTSWEEP_PLUGINS names.

A module imports from here what it is given, and nothing else of the package::

    from workers.plugins import EvalAnswers

    def profit(eval_answers: EvalAnswers) -> float: ...

    def under_predicting(answers: torch.Tensor, targets: torch.Tensor) -> torch.Tensor: ...

The definition names them as `metrics: {profit: "my_metrics:profit"}` and
`losses: {under_predicting: "my_losses:under_predicting"}`. The module must be importable where the workers
run. Light to import: no torch.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Collection, Iterator, Mapping
from dataclasses import dataclass
from importlib import import_module
from numbers import Real
from typing import TYPE_CHECKING, Any, Protocol

import numpy as np
from numpy.typing import NDArray

from search_spaces.tasks import Task
from workers.errors import PluginError, WorkerError, without_values

if TYPE_CHECKING:
    from torch import Tensor


@dataclass(frozen=True, kw_only=True, eq=False)
class EvalAnswers:
    """What one trial's model answers on the eval data, in the data's own order: N examples, C labels.

    Rows that were left out, because nothing in them carries loss, are not among them.
    """

    task: Task
    metrics: Mapping[str, float]
    """The task's own metrics, `eval_loss` always; the generated ones where text was generated."""
    labels: tuple[str, ...] = ()
    """Names of a classification's classes, by index."""
    answers: NDArray[np.float32] | None = None
    """Of a classification the logits, [N, C], or [S, C] of S labelled tokens; of a regression the scores,
    [N]; of a ranking or a preference by how much the chosen answer is ahead, [N]. None: a language model."""
    targets: NDArray[Any] | None = None
    """Of a classification the class of each row or token, int64 [N] or [S], or float32 [N, C] of 0 and 1
    where a row may have several; of a regression the scores, float32 [N]. None: of the other tasks."""
    rows: NDArray[np.int64] | None = None
    """[S]: which example each labelled token is of. None: targets are of whole rows."""
    texts: tuple[str, ...] | None = None
    """What a language model wrote for each of the first `evaluation.generate.examples` examples. None:
    nothing was generated."""
    references: tuple[str, ...] | None = None
    """What it should have written."""


class EvalMetric(Protocol):
    """What a name in `metrics` leads to."""

    def __call__(self, eval_answers: EvalAnswers, /) -> float:
        """The metric, a finite number; equal for equal answers, since a trial may be evaluated again."""


class TargetLoss(Protocol):
    """What a name in `losses` leads to."""

    def __call__(self, answers: Tensor, targets: Tensor, /) -> Tensor:
        """The loss of each of S targets by itself, float32 [S], finite for finite answers.

        Torch must be able to differentiate it with regard to the answers, and the gradient must be finite. It
        must not depend on the other targets, which are there by chance (batches are split, and trials share
        passes), nor on random numbers.

        Args:
            answers: Of a classification the logits, float32 [S, C] of C labels; of a language model those of
                the next token, float32 [S, V]; of a regression the scores, float32 [S].
            targets: The right class or token, int64 [S]; float32 [S, C] of 0 and 1 where a row may have
                several labels; of a regression the right scores, float32 [S]. Not to be changed.
        """


@dataclass(frozen=True)
class OwnMetric:
    """One of a study's own metrics."""

    name: str
    path: str
    """As `module:function`."""
    function: EvalMetric

    def measure(self, eval_answers: EvalAnswers) -> float:
        """Its value.

        Raises:
            WorkerError: The function raised, or returned something else than a finite number.
        """
        try:
            value: object = self.function(eval_answers)
        except Exception as error:
            raise WorkerError(f"The metric {self.name} of {self.path} raised {in_words(error)}.") from error
        number = float(value) if isinstance(value, Real) else None
        if number is not None and math.isfinite(number):
            return number
        what = number if number is not None else f"an object of type {type(value).__name__}"
        raise WorkerError(
            f"The metric {self.name} of {self.path} returned {what}; it must return a finite number."
        )


@dataclass(frozen=True)
class OwnLoss:
    """One of a study's own losses. `workers.training.objectives.own_losses` calls it and checks it."""

    name: str
    path: str
    """As `module:function`."""
    function: TargetLoss

    def __str__(self) -> str:
        return f"loss {self.name} of {self.path}"


def load_metrics(metrics: Mapping[str, str], plugins: Collection[str]) -> tuple[OwnMetric, ...]:
    """A study's own metrics.

    Args:
        metrics: Name -> `module:function`.
        plugins: Modules that they may be from.

    Raises:
        PluginError: One is not from these, or there is no such function.
    """
    return tuple(OwnMetric(*found) for found in _functions("metric", metrics, plugins))


def load_losses(losses: Mapping[str, str], plugins: Collection[str]) -> dict[str, OwnLoss]:
    """A study's own losses by name.

    Args:
        losses: Name -> `module:function`.
        plugins: Modules that they may be from.

    Raises:
        PluginError: One is not from these, or there is no such function.
    """
    return {found[0]: OwnLoss(*found) for found in _functions("loss", losses, plugins)}


def _functions(
    what: str, paths: Mapping[str, str], plugins: Collection[str]
) -> Iterator[tuple[str, str, Callable[..., Any]]]:
    """Name, path and function of each."""
    for name, path in paths.items():
        module, _, attribute = path.partition(":")
        if module not in plugins:
            raise PluginError(
                f"The {what} {name} is from the module {module}, which NIGHTSWEEP_PLUGINS does not name."
                " Whoever runs the service can add it there."
            )
        try:
            function = getattr(import_module(module), attribute)
        except Exception as error:
            raise PluginError(
                f"The {what} {name} of {path} cannot be loaded: {in_words(error)}. The module must be"
                " importable where the workers run."
            ) from error
        if not callable(function):
            raise PluginError(f"The {what} {name} of {path} is not a function.")
        yield name, path, function


def in_words(error: Exception) -> str:
    """What a function of a study's own raised, without values that its message quotes."""
    text = without_values(str(error)).rstrip(".")
    return f"{type(error).__name__}: {text}" if text else type(error).__name__
