"""What the rows of a task with labels, scores, targets or pairs amount to, and what no learning reaches."""

from __future__ import annotations

import math
import statistics
from collections import Counter
from collections.abc import Sequence

import torch
from transformers import PreTrainedTokenizerBase

from search_spaces.data_report import Baseline, DecodedExample, Lengths, Scores, Segment
from search_spaces.tasks import Task
from workers.base.heads import Labels
from workers.data.datasets import is_equal_pair
from workers.data.examples import (
    AnyExample,
    Example,
    LabelledExample,
    PairExample,
    Seq2SeqExample,
    TokenLabelsExample,
)
from workers.data.tokenization import IGNORED
from workers.training.objectives.metrics import class_metrics, regression_metrics, token_metrics

_LONGEST_TEXT = 2_000
"""Characters of a decoded segment; the middle of a longer one is left out."""


class TaskStatistics:
    """Counts what one data set's examples are to be answered with.

    Args:
        task: Theirs.
        labels: Of the train data; None: the task has none.
    """

    def __init__(self, task: Task, labels: Labels | None) -> None:
        self._task = task
        self._labels = labels
        self._classes: list[torch.Tensor] = []
        self._scores: list[float] = []
        self._targets: list[int] = []
        self._pairs = self._equal_pairs = 0

    def add(self, example: AnyExample) -> None:
        """Counts an example, uncut."""
        match example:
            case LabelledExample(label=label) if self._labels is None:
                self._scores.append(label.item())
            case LabelledExample(label=label):
                self._classes.append(label)
            case TokenLabelsExample(labels=labels):
                self._classes.append(labels[labels != IGNORED])
            case Seq2SeqExample(labels=labels):
                self._targets.append(len(labels))
            case PairExample():
                self._pairs += 1
                self._equal_pairs += is_equal_pair(example)
            case _:
                pass

    @property
    def equal_pairs(self) -> int | None:
        """Pairs whose answers are the same; None: there are no pairs."""
        return self._equal_pairs if self._task in ("ranking", "preference") else None

    @property
    def all_pairs_equal(self) -> bool:
        """Whether there are pairs, and nothing to learn from any."""
        return 0 < self._pairs == self._equal_pairs

    def counts(self) -> Counter[str] | None:
        """How often each label occurs, those that do not with 0; None: the task has none."""
        if self._labels is None:
            return None
        counts = self._occurrences().tolist()
        return Counter({name: int(count) for name, count in zip(self._labels.names, counts, strict=True)})

    def scores(self) -> Scores | None:
        """How the scores are distributed; None: there are none."""
        if not self._scores:
            return None
        return Scores(
            lowest=min(self._scores),
            mean=statistics.fmean(self._scores),
            highest=max(self._scores),
            standard_deviation=statistics.pstdev(self._scores),
        )

    def targets(self) -> Lengths | None:
        """How long the targets are; None: there are none."""
        return lengths(self._targets)

    def baseline(self, evaluation: TaskStatistics) -> Baseline | None:
        """What the eval data gives for the most frequent label or the mean score of this, the train data.

        With several labels for a row, those are given that more than half of the rows have.
        """
        if self._scores and evaluation._scores:
            mean = statistics.fmean(self._scores)
            targets = torch.tensor(evaluation._scores)
            return Baseline(
                answer=f"{mean:.4g}", metrics=regression_metrics(torch.full_like(targets, mean), targets)
            )
        if self._labels is None or not self._classes or not evaluation._classes:
            return None
        names, counts = self._labels.names, self._occurrences()
        given = torch.zeros(len(names))
        if self._labels.multi_label:
            given = (counts > len(self._classes) / 2).float()
        else:
            given[counts.argmax()] = 1.0
        answer = (
            ", ".join(name for name, is_given in zip(names, given, strict=True) if is_given) or "no label"
        )
        targets = self._together(evaluation._classes)
        logits = (given - 0.5).expand(len(targets), len(names))
        if self._task == "token_classification":
            rows = [len(labels) for labels in evaluation._classes]
            return Baseline(answer=answer, metrics=token_metrics(logits, targets, rows, names))
        return Baseline(answer=answer, metrics=class_metrics(logits, targets))

    def _occurrences(self) -> torch.Tensor:
        """Of each label, [C]."""
        assert self._labels is not None
        size = len(self._labels.names)
        if not self._classes:
            return torch.zeros(size)
        classes = self._together(self._classes)
        return classes.sum(0) if self._labels.multi_label else torch.bincount(classes, minlength=size)

    def _together(self, classes: Sequence[torch.Tensor]) -> torch.Tensor:
        return (
            torch.cat(list(classes)) if self._task == "token_classification" else torch.stack(list(classes))
        )


def lengths(tokens: Sequence[int]) -> Lengths | None:
    """How numbers of tokens are distributed; None: there are none."""
    if not tokens:
        return None
    ascending = sorted(tokens)
    return Lengths(
        median=quantile(ascending, 0.5), p95=quantile(ascending, 0.95), longest=quantile(ascending, 1.0)
    )


def quantile(ascending: Sequence[int], share: float) -> int:
    """The smallest number that at least this share of the numbers does not exceed. There is at least one."""
    return ascending[max(0, math.ceil(share * len(ascending)) - 1)]


def middle_out(text: str) -> str:
    """A text as it is, or the ends of a long one."""
    if len(text) <= _LONGEST_TEXT:
        return text
    half = _LONGEST_TEXT // 2
    return f"{text[:half]} [... {len(text) - 2 * half:,} characters ...] {text[-half:]}"


def tokens_of(example: AnyExample) -> int:
    """Tokens of an example, without padding."""
    if isinstance(example, PairExample):
        return example.chosen.length + example.rejected.length
    return example.length


def decoded_example(
    place: str, example: AnyExample, labels: Labels | None, tokenizer: PreTrainedTokenizerBase
) -> DecodedExample:
    """An example as text: what the model reads, and what carries loss.

    Args:
        place: Where its row is.
        example: After the cut.
        labels: Of the train data; None: the task has none.
        tokenizer: Of the base.
    """

    def text(ids: torch.Tensor) -> str:
        decoded: str = tokenizer.decode(
            ids.tolist(), skip_special_tokens=False, clean_up_tokenization_spaces=False
        )
        return middle_out(decoded)

    def answer(row: Example) -> list[Segment]:
        shown = row.labels != IGNORED
        if not shown.any():  # of a ranked pair: its reward carries loss, not its tokens
            return [Segment(text=text(row.input_ids), supervised=True)]
        first = int(shown.int().argmax())
        return [
            Segment(text=text(row.input_ids[:first]), supervised=False),
            Segment(text=text(row.input_ids[first:]), supervised=True),
        ]

    match example:
        case PairExample(chosen=chosen, rejected=rejected):
            segments = [
                Segment(text="chosen: ", supervised=False),
                *answer(chosen),
                Segment(text="\nrejected: ", supervised=False),
                *answer(rejected),
            ]
        case Seq2SeqExample(input_ids=source, labels=target):
            segments = [
                Segment(text=f"{text(source)}\n", supervised=False),
                Segment(text=text(target), supervised=True),
            ]
        case LabelledExample(input_ids=ids, label=label):
            segments = [
                Segment(text=f"{text(ids)} -> ", supervised=False),
                Segment(text=_label_text(label, labels), supervised=True),
            ]
        case TokenLabelsExample(input_ids=ids, labels=numbers):
            names = labels.names if labels is not None else ()
            segments = [
                Segment(text=f"{text(ids[at : at + 1])}/{names[number]} ", supervised=True)
                if number != IGNORED
                else Segment(text=f"{text(ids[at : at + 1])} ", supervised=False)
                for at, number in enumerate(numbers.tolist())
            ]
        case Example():
            segments = answer(example)
    return DecodedExample(place=place, tokens=tokens_of(example), segments=tuple(segments))


def _label_text(label: torch.Tensor, labels: Labels | None) -> str:
    if labels is None:
        return f"{label.item():g}"
    if labels.multi_label:
        return ", ".join(labels.names[i] for i in label.nonzero().flatten().tolist()) or "no label"
    return labels.names[int(label)]
