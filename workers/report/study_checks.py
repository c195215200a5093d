"""What a study's metrics and class weights ask of its labels, and of what it compares generated text with.

The checks are those of a worker, so that a fault reads alike at submission and in a trial.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import suppress
from typing import Any

from transformers import PreTrainedTokenizerBase

from search_spaces.data_report import Answers, ReportRequest
from workers.base.heads import Labels
from workers.data.examples import AnyExample, Example, Seq2SeqExample
from workers.errors import DataError, RowError
from workers.training.generation import prompt_of
from workers.training.objectives.generated_metrics import (
    compile_answer_pattern,
    has_answer,
    measurable,
    wanted_metrics,
)
from workers.training.objectives.labels import check_class_weights, check_label_metrics

_PATTERN = "evaluation.generate.answer_pattern"


def faults_of_settings(request: ReportRequest, labels: Labels | None) -> Iterator[tuple[str, DataError]]:
    """What every trial of a study would fail at, whatever its rows hold.

    Args:
        request: On the study.
        labels: Of its train data; None: the task has none, or they cannot be read.

    Yields:
        The key of the definition that is at fault, and the fault.
    """
    if labels is not None:
        for metric in dict.fromkeys(request.needed):
            try:
                check_label_metrics(labels, [metric])
            except DataError as error:
                yield _path(request, metric), error
        try:
            check_class_weights(request.class_weights, labels)
        except DataError as error:
            yield "recipe.class_weights", error
    spec, wanted = wanted_metrics(request.task, request.generate, request.needed)
    if "answer_match" in wanted:
        try:
            compile_answer_pattern(spec.answer_pattern)
        except DataError as error:
            yield _PATTERN, error


class References:
    """What a study compares generated text with: of each eval row, what should have been written."""

    def __init__(self, request: ReportRequest, tokenizer: PreTrainedTokenizerBase) -> None:
        """
        Args:
            request: On the study.
            tokenizer: Of its base.
        """
        self._request = request
        self._tokenizer = tokenizer
        self._spec, self._wanted = wanted_metrics(request.task, request.generate, request.needed)
        self._pattern: Any = None
        if "answer_match" in self._wanted:
            with suppress(DataError):  # which `faults_of_settings` says
                self._pattern = compile_answer_pattern(self._spec.answer_pattern)
        self._texts: list[str] = []
        self._places: list[str] = []

    def add(self, place: str, example: AnyExample | None) -> None:
        """Takes in an eval row, unless nothing is generated from it.

        Args:
            place: Where it is.
            example: What it becomes; None: it is left out.

        Raises:
            RowError: It has no prompt.
        """
        if not self._wanted or self._are_all or not isinstance(example, Example | Seq2SeqExample):
            return
        try:
            prompt = prompt_of(example, self._tokenizer)
        except RowError as error:
            raise RowError(f"{place}: {error}") from error
        self._texts.append(prompt.reference)
        self._places.append(place)

    @property
    def _are_all(self) -> bool:
        return self._spec.examples is not None and len(self._texts) >= self._spec.examples

    def faults(self, *, is_whole: bool) -> Iterator[tuple[str, DataError]]:
        """What every trial would fail at, each with the definition's key; nothing while rows are missing.

        Args:
            is_whole: Whether every row of the eval data was read.
        """
        if not self._texts or not (is_whole or self._are_all):
            return
        for metric in self._wanted:
            if metric == "answer_match" and self._pattern is None:
                continue
            try:
                measurable(self._texts, [metric], self._request.needed, self._spec.answer_pattern)
            except DataError as error:
                yield _PATTERN if metric == "answer_match" else _path(self._request, metric), error

    def answers(self) -> Answers | None:
        """What the pattern finds; None: it is not used."""
        if self._pattern is None:
            return None
        searched = zip(self._places, self._texts, strict=True)
        without = [place for place, text in searched if not has_answer(self._pattern, text)]
        return Answers(
            references=len(self._texts),
            without_answer=len(without),
            first_without=without[0] if without else None,
        )


def _path(request: ReportRequest, metric: str) -> str:
    """The key of the definition that names a metric."""
    return "objective.metric" if metric == request.objective else f"constraints.{metric}"
