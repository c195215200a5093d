"""`python -m workers.report.data_report`: a `ReportRequest` on stdin, a `FilesReport` on stdout, both JSON.

A process of its own, because the service's must never import torch, and so that a file that takes too long
can be given up. Rows go through the same functions as in a trial, so a fault reads as a trial would put it;
where a trial ends at the first faulty row, the report goes on and says once what many rows share.
"""

from __future__ import annotations

import sys
from collections.abc import Callable, Mapping, Sequence
from contextlib import redirect_stdout
from datetime import UTC, datetime
from itertools import islice
from typing import Any, Literal

from transformers.utils import logging as transformers_logging

from search_spaces.data_report import (
    AdapterBytes,
    DataReport,
    DecodedExample,
    FilesReport,
    ModelReport,
    ReportRequest,
    SplitReport,
)
from search_spaces.definition import HubData
from workers.base.heads import Labels
from workers.base.model_files import is_local
from workers.data.chat.chat_templates import ChatTemplate, Rendering
from workers.data.data_files import describe_source
from workers.data.datasets import (
    check_positions,
    encode_row,
    nothing_to_prefer,
    nothing_usable,
    row_encoder,
)
from workers.data.formats import FORMATS, Format, RowShape
from workers.data.labels import needs_labels, read_labels
from workers.data.loss_flags import FLAGS, is_empty
from workers.data.rows import TASK_SHAPES, open_rows, renamed_row
from workers.data.task_formats import cut
from workers.data.tokenization import IGNORED
from workers.device.memory import limited_memory
from workers.errors import AdapterError, DataError, LengthError, ModelError, faults_of_libraries
from workers.report.base_geometry import BaseGeometry
from workers.report.base_reader import BaseReader, read_base
from workers.report.data_statistics import SplitStatistics, decoded
from workers.report.problems import Problems
from workers.report.study_checks import References, faults_of_settings
from workers.report.task_statistics import TaskStatistics, decoded_example

_EXAMPLES = 2
_UNCUT = 2**30
"""Tokens that no row has."""
_UNREADABLE = "The data cannot be read"
_READ_KEYS = FLAGS | {"role", "content"}


def make_report(request: ReportRequest) -> FilesReport:
    """The report. Faults of the model, the data and the recipes become its problems."""
    problems = Problems()
    labels = _read_labels(request, problems)
    for path, fault in faults_of_settings(request, labels):
        problems.add(fault, path)
    try:
        geometry, reader = read_base(request.model, request.limits, request.task, labels)
    except (ModelError, DataError) as error:
        problems.add(error, "model.id", from_hub=not is_local(request.model))
        return FilesReport(model=None, data=None, problems=problems.all())
    model = _model_report(request, geometry, problems)
    data = None
    try:
        with (
            limited_memory(request.limits.memory_gib, _UNREADABLE),
            faults_of_libraries(lambda: _UNREADABLE, DataError),
        ):
            if labels is not None or not needs_labels(request.task):
                data = _DataReader(request, reader, problems).report()
    except DataError as error:
        problems.add(error, "data")
    return FilesReport(model=model, data=data, problems=problems.all(request.max_lengths))


def _read_labels(request: ReportRequest, problems: Problems) -> Labels | None:
    """The labels of the train data, all of which is read for them: one that occurs late is one, too."""
    source = request.data.train
    try:
        with (
            limited_memory(request.limits.memory_gib, _UNREADABLE),
            faults_of_libraries(lambda: _UNREADABLE, DataError),
        ):
            return read_labels(request.data, request.task, request.limits.data_roots)
    except (DataError, ModelError) as error:
        name, hub = describe_source(source), isinstance(source, HubData)
        problems.add(error, "data.train", source=name, from_hub=hub)
        return None


def _model_report(request: ReportRequest, geometry: BaseGeometry, problems: Problems) -> ModelReport:
    adapters: list[AdapterBytes] = []
    faults: list[AdapterError] = []
    for shape in request.adapters:
        try:
            adapters.append(geometry.adapter(shape))
        except AdapterError as error:
            faults.append(error)
    for fault in faults:
        problems.add(fault, "recipe.target_modules", every_trial=not adapters)
    return ModelReport(
        architecture=geometry.architecture,
        own_dropout=geometry.own_dropout and request.model.dropout == "keep",
        parameters=geometry.parameters,
        quantizable_parameters=geometry.quantizable_parameters,
        max_positions=geometry.max_positions,
        bases=tuple(
            geometry.base_bytes(request.model, quantization, dtype)
            for quantization in request.quantizations
            for dtype in request.compute_dtypes
        ),
        adapters=tuple(adapters),
    )


class _DataReader:
    """Reads both data sets once. `problems` grows on the way."""

    def __init__(self, request: ReportRequest, base: BaseReader, problems: Problems) -> None:
        self._request = request
        self._base = base
        self._problems = problems
        self._examples: list[DecodedExample] = []
        self._references = References(request, base.tokenizer)
        self._now = datetime.now(UTC)

    def report(self) -> DataReport:
        spec = self._request.data
        lengths = self._request.max_lengths
        for length in dict.fromkeys([spec.max_length, *lengths]):
            try:
                check_positions(spec.model_copy(update={"max_length": length}), self._base)
            except LengthError as error:
                self._add_length_fault(error, length)
        format_: RowShape | None = None if spec.format == "auto" else FORMATS[spec.format]
        if self._base.task != "causal_lm":
            format_ = TASK_SHAPES[self._base.task]
        train = self._read("train", format_, lengths, decode=_EXAMPLES)
        format_ = train[0] if train is not None else format_
        evaluation = self._read("eval", format_, [spec.max_length])
        overlap = baseline = None
        if train is not None and evaluation is not None:
            of_train, of_eval = train[1].task, evaluation[1].task
            if of_train is not None and of_eval is not None:
                baseline = of_train.baseline(of_eval)
            overlap = sum(rows for text, rows in evaluation[1].texts.items() if text in train[1].texts)
        return DataReport(
            format=format_.name if format_ is not None else None,
            train=train[2] if train is not None else None,
            eval=evaluation[2] if evaluation is not None else None,
            overlap_rows=overlap,
            examples=tuple(self._examples),
            baseline=baseline,
        )

    def _read(
        self,
        split: Literal["train", "eval"],
        format_: RowShape | None,
        max_lengths: Sequence[int],
        *,
        decode: int = 0,
    ) -> tuple[RowShape, SplitStatistics, SplitReport] | None:
        """One data set; None if not even its first row could be read."""
        request, spec = self._request, self._request.data
        columns, path = spec.columns, f"data.{split}"
        source, limit = spec.train, spec.max_train_examples
        if split == "eval":
            source, limit = spec.eval, spec.max_eval_examples
        name = describe_source(source)
        try:
            format_, rows = open_rows(source, columns, limit, format_, request.limits.data_roots, spec.header)
        except (DataError, ModelError) as error:
            self._problems.add(error, path, source=name, from_hub=isinstance(source, HubData))
            return None
        names = {*format_.fields, *columns, *columns.values()}
        statistics = self._statistics(format_, max_lengths)
        add = self._adder(split, format_, statistics, max_lengths, decode)
        read = faulty = unread = 0
        ended = True
        try:
            for place, row in islice(rows, request.max_rows):
                read += 1
                try:
                    named = add(place, row)
                except DataError as error:
                    faulty += 1
                    self._problems.add_row(error, split, place, names, path=path)
                    continue
                statistics.add_unread(self._unread_columns(named, format_), self._unread_keys(named, format_))
            unread = sum(1 for _ in islice(rows, request.max_counted))
            ended = next(rows, None) is None
        except (DataError, ModelError) as error:
            # A line that is no row, or a tokenizer without an end token: nothing comes after.
            ended = False
            self._problems.add(error, path, source=name)
        self._problems.add_read(split, read)
        counted = read + unread
        report = statistics.report(
            name, rows=counted if ended else None, counted=counted, read=read, faulty=faulty
        )
        is_whole = not faulty and ended and not unread
        if is_whole:
            self._check_rows(split, statistics, report, format_)
        if split == "eval":
            for key, fault in self._references.faults(is_whole=is_whole):
                self._problems.add(fault, key)
            report = report.model_copy(update={"answers": self._references.answers()})
        return format_, statistics, report

    def _check_rows(
        self, split: str, statistics: SplitStatistics, report: SplitReport, format_: RowShape
    ) -> None:
        """What is wrong with a data set as a whole, of which each row was read."""
        name, path = report.source, f"data.{split}"
        if statistics.task is not None and statistics.task.all_pairs_equal:
            length = report.by_length[0].max_length
            self._problems.add(DataError(nothing_to_prefer(name, length)), path, source=name)
        for rows in report.by_length:
            if not rows.usable_rows:
                shortest = statistics.fewest_tokens_before_supervised(rows.max_length)
                message = nothing_usable(name, report.rows_read, format_, rows.max_length, shortest)
                if shortest is None:
                    self._problems.add(DataError(message), path)
                else:
                    self._add_length_fault(LengthError(message), rows.max_length)

    def _statistics(self, shape: RowShape, max_lengths: Sequence[int]) -> SplitStatistics:
        task = None if isinstance(shape, Format) else TaskStatistics(self._base.task, self._base.labels)
        return SplitStatistics(shape, max_lengths, self._request.data.columns, task)

    def _adder(
        self,
        split: str,
        shape: RowShape,
        statistics: SplitStatistics,
        max_lengths: Sequence[int],
        decode: int,
    ) -> Callable[[str, dict[str, Any]], dict[str, Any]]:
        """What counts a row and answers it under its fields' names. The first rows are decoded, too."""
        spec, base, tokenizer = self._request.data, self._base, self._base.tokenizer
        columns, own = spec.columns, max_lengths[0]
        is_compared = split == "eval"  # with what trials generate

        def add_text(place: str, row: dict[str, Any]) -> dict[str, Any]:
            assert isinstance(shape, Format)
            encoded = encode_row(place, row, shape, columns, base, Rendering(self._now, spec.unrendered))
            if is_compared:
                self._references.add(place, cut(encoded, own).example)
            named = renamed_row(place, row, columns, shape)
            statistics.add(named, encoded)
            ids, labels = encoded.input_ids[:own], encoded.labels[:own]
            if len(self._examples) < decode and any(label != IGNORED for label in labels):
                self._examples.append(decoded(place, ids, labels, tokenizer))
            return named

        if isinstance(shape, Format):
            return add_text
        encoders = {
            length: row_encoder(
                shape,
                spec.model_copy(update={"max_length": length}),
                base,
                self._now,
                trains=length != _UNCUT,
            )
            for length in (_UNCUT, *max_lengths)
        }

        def add_example(place: str, row: dict[str, Any]) -> dict[str, Any]:
            read = {length: encode(place, row) for length, encode in encoders.items()}
            example = read[own].example
            if is_compared:
                self._references.add(place, example)
            named = renamed_row(place, row, columns, shape)
            statistics.add_read(named, read[_UNCUT], read)
            if len(self._examples) < decode and example is not None:
                self._examples.append(decoded_example(place, example, base.labels, tokenizer))
            return named

        return add_example

    def _unread_columns(self, row: Mapping[str, Any], format_: RowShape) -> list[str]:
        """Columns that hold something and that nothing reads."""
        return [
            name
            for name, value in row.items()
            if name not in format_.fields and name not in FLAGS and not is_empty(value)
        ]

    def _unread_keys(self, row: Mapping[str, Any], format_: RowShape) -> list[str]:
        """Keys of messages that hold something and that neither the template nor anything else reads."""
        found: dict[str, None] = {}
        for field in format_.fields:
            messages = row.get(field)
            if field == "tools" or not isinstance(messages, list):
                continue
            if not all(isinstance(message, Mapping) for message in messages):
                continue  # words or labels
            template = ChatTemplate(self._base.tokenizer, row.get("tools"), self._now)
            for message in messages:
                for key, value in message.items():
                    if key not in _READ_KEYS and not is_empty(value) and not template.reads(key):
                        found[f"{message['role']}.{key}"] = None
        return list(found)

    def _add_length_fault(self, fault: LengthError, length: int) -> None:
        own = length == self._request.data.max_length
        self._problems.add_length(fault, length, own=own, recipes=self._request.max_lengths)


def main() -> None:
    """Answers the request on stdin."""
    request = ReportRequest.model_validate_json(sys.stdin.buffer.read())
    transformers_logging.set_verbosity_error()
    transformers_logging.disable_progress_bar()
    with redirect_stdout(sys.stderr):  # whatever a library prints is no part of the answer
        report = make_report(request)
    sys.stdout.write(report.model_dump_json())


if __name__ == "__main__":
    main()
