"""What a data set's rows amount to, counted row by row. Pure but for the tokenizer that decodes."""

from __future__ import annotations

import hashlib
import json
import math
from array import array
from collections import Counter
from collections.abc import Collection, Iterable, Mapping, Sequence
from typing import Any

from transformers import PreTrainedTokenizerBase

from search_spaces.data_report import Balance, Count, CutRows, DecodedExample, Segment, SplitReport
from workers.data.formats import Format
from workers.data.row_structures import Unread
from workers.data.rows import TASK_COLUMNS
from workers.data.tokenization import IGNORED, EncodedRow

MOST_LABELS = 50
"""Distinct values above which a column is not shown as a distribution."""
_SHOWN = 10
_MOST_UNREAD = 50
_LONGEST_VALUE = 80
_LONGEST_TEXT = 2_000
"""Characters of a decoded segment; the middle of a longer one is left out."""


class SplitStatistics:
    """Counts the rows of one data set.

    Args:
        format_: Of the rows.
        max_lengths: At which rows are cut, in tokens.
        columns: As in a definition's data: those named here are part of the format.
    """

    def __init__(self, format_: Format, max_lengths: Sequence[int], columns: Mapping[str, str]) -> None:
        self._format = format_
        self._own_columns = {*format_.fields, *columns.values()}
        self._cuts = {length: _Cut() for length in max_lengths}
        self._lengths = array("L")
        self._unsupervised = 0
        self._seen: set[bytes] = set()
        self._duplicates = 0
        self._found_by: Counter[str] = Counter()
        self._unrendered: Counter[str] = Counter()
        self._unread_columns: Counter[str] = Counter()
        self._unread_keys: Counter[str] = Counter()
        self._labels: Counter[str] | None = Counter()
        self._tasks: dict[str, Counter[str] | None] = {name: Counter() for name in TASK_COLUMNS}
        self.texts: Counter[bytes] = Counter()
        """Digests of the rows' texts, without case and white space, and how many rows have each."""

    def add(self, row: Mapping[str, Any], encoded: EncodedRow) -> None:
        """Counts a row.

        Args:
            row: Under the format's names.
            encoded: Before any cut; the first token is never supervised.
        """
        input_ids, labels = encoded.input_ids, encoded.labels
        self._found_by.update([encoded.found_by] if encoded.found_by is not None else [])
        self._unrendered.update(encoded.unrendered)
        self._lengths.append(len(input_ids))
        supervised = [index for index, label in enumerate(labels) if label != IGNORED]
        self._unsupervised += not supervised
        if supervised:
            for length, cut in self._cuts.items():
                cut.add(len(input_ids), supervised, length)
        digest = _digest(array("q", input_ids).tobytes() + b"/" + array("q", labels).tobytes())
        self._duplicates += digest in self._seen
        self._seen.add(digest)
        self.texts[_digest(_plain_text(row, self._format.fields).encode("utf-8", "replace"))] += 1
        self._labels = _count(self._labels, _label(row, self._format.name))
        for name, counts in self._tasks.items():
            self._tasks[name] = _count(counts, None if name in self._own_columns else row.get(name))

    def add_unread(self, columns: Iterable[str], keys: Iterable[str]) -> None:
        """Counts what a row holds that nothing reads: columns, and keys of its messages."""
        for counts, names in ((self._unread_columns, columns), (self._unread_keys, keys)):
            counts.update(name for name in names if name in counts or len(counts) < _MOST_UNREAD)

    def report(self, source: str, *, rows: int | None, counted: int, read: int, faulty: int) -> SplitReport:
        """What was counted; see `SplitReport` for the arguments."""
        lengths = sorted(self._lengths)
        rows_added = len(lengths)
        tasks = ((name, counts) for name, counts in self._tasks.items() if counts)
        named, task_counts = next(tasks, ("", None))
        return SplitReport(
            source=source,
            rows=rows,
            rows_counted=counted,
            rows_read=read,
            faulty_rows=faulty,
            unsupervised_rows=self._unsupervised,
            median_tokens=_quantile(lengths, 0.5),
            p95_tokens=_quantile(lengths, 0.95),
            longest_tokens=lengths[-1] if lengths else None,
            by_length=tuple(cut.report(length) for length, cut in self._cuts.items()),
            duplicate_rows=self._duplicates,
            turns_found_by=_counts(self._found_by, rows_added),
            unrendered=_counts(self._unrendered, rows_added),
            unread_columns=_counts(self._unread_columns, rows_added),
            unread_message_keys=_counts(self._unread_keys, rows_added),
            labels=_balance("completion", self._labels, twice=True),
            tasks=_balance(named, task_counts),
        )

    def fewest_tokens_before_supervised(self, max_length: int) -> int | None:
        """Of the rows that lose all that is supervised to the cut; None: no row does."""
        return self._cuts[max_length].shortest_cut


class _Cut:
    """The rows at one length."""

    def __init__(self) -> None:
        self.usable = self.truncated = self.cut_away = self.tokens = self.supervised = 0
        self.shortest_cut: int | None = None

    def add(self, tokens: int, supervised: Sequence[int], max_length: int) -> None:
        first = supervised[0]
        if first >= max_length:
            self.cut_away += 1
            self.shortest_cut = min(first, self.shortest_cut or first)
            return
        self.usable += 1
        self.truncated += tokens > max_length
        self.tokens += min(tokens, max_length)
        self.supervised += sum(index < max_length for index in supervised)

    def report(self, max_length: int) -> CutRows:
        return CutRows(
            max_length=max_length,
            usable_rows=self.usable,
            truncated_rows=self.truncated,
            cut_away_rows=self.cut_away,
            tokens=self.tokens,
            supervised_tokens=self.supervised,
        )


def decoded(
    place: str, input_ids: Sequence[int], labels: Sequence[int], tokenizer: PreTrainedTokenizerBase
) -> DecodedExample:
    """An example as text, in runs that are supervised or not.

    Args:
        place: Where its row is.
        input_ids: After the cut.
        labels: Likewise.
        tokenizer: Of the base.
    """
    segments: list[Segment] = []
    start = 0
    for index in range(1, len(input_ids) + 1):
        if index == len(input_ids) or (labels[index] == IGNORED) != (labels[start] == IGNORED):
            text = tokenizer.decode(
                list(input_ids[start:index]), skip_special_tokens=False, clean_up_tokenization_spaces=False
            )
            segments.append(Segment(text=_middle_out(text), supervised=labels[start] != IGNORED))
            start = index
    return DecodedExample(place=place, tokens=len(input_ids), segments=tuple(segments))


def _middle_out(text: str) -> str:
    if len(text) <= _LONGEST_TEXT:
        return text
    half = _LONGEST_TEXT // 2
    return f"{text[:half]} [... {len(text) - 2 * half:,} characters ...] {text[-half:]}"


def _plain_text(row: Mapping[str, Any], fields: Collection[str]) -> str:
    """The row's texts without case and white space, so that trivial changes do not hide a copy."""
    values = [row.get(field) for field in fields]
    texts = [
        value if isinstance(value, str) else json.dumps(value, default=str, sort_keys=True)
        for value in values
        if value is not None
    ]
    return "\x1f".join(" ".join(text.casefold().split()) for text in texts)


def _label(row: Mapping[str, Any], format_name: str) -> Any:
    """What may be a label: the supervised text, where there is one."""
    value = row.get(
        {"prompt_completion": "completion", "alpaca": "output", "messages": "messages"}.get(format_name, "")
    )
    if isinstance(value, list) and value and isinstance(value[-1], Mapping):
        value = value[-1].get("content")  # a conversation's last turn
    return value.strip() if isinstance(value, str) else None


def _count(counts: Counter[str] | None, value: Any) -> Counter[str] | None:
    """The counts with one value more; None once they have too many values to be a distribution."""
    if counts is None or value is None or isinstance(value, (list, dict, Unread)):
        return counts
    counts[str(value)] += 1
    return counts if len(counts) <= MOST_LABELS else None


def _counts(counts: Counter[str], rows: int) -> tuple[Count, ...]:
    """The most frequent first."""
    return tuple(
        Count(value=_shortened(value), rows=found, share=found / rows)
        for value, found in counts.most_common()
    )


def _balance(column: str, counts: Counter[str] | None, *, twice: bool = False) -> Balance | None:
    if not counts or (twice and counts.total() < 2 * len(counts)):
        return None
    most = [
        Count(value=_shortened(value), rows=rows, share=rows / counts.total())
        for value, rows in sorted(counts.items(), key=lambda item: (-item[1], item[0]))[:_SHOWN]
    ]
    return Balance(column=column, distinct=len(counts), most_frequent=tuple(most))


def _shortened(value: str) -> str:
    value = value.encode("utf-8", "backslashreplace").decode()  # it may hold half of a surrogate pair
    return value if len(value) <= _LONGEST_VALUE else f"{value[: _LONGEST_VALUE - 3]}..."


def _quantile(ascending: Sequence[int], share: float) -> int | None:
    """The smallest number that at least this share of the numbers does not exceed; None of no numbers."""
    if not ascending:
        return None
    return ascending[max(0, math.ceil(share * len(ascending)) - 1)]


def _digest(content: bytes) -> bytes:
    return hashlib.blake2b(content, digest_size=16).digest()
