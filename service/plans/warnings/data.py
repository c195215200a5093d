"""Warnings about the data of a study. Pure."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

from search_spaces.data_report import Count, DataReport, SplitReport
from search_spaces.definition import StudyDefinition
from search_spaces.tasks import Task
from search_spaces.wording import counted
from service.plans.schemas import PlanWarning, warning

FEW_EVAL_ROWS = 30
MUCH_TRUNCATED = 0.10
LITTLE_SUPERVISED = 0.05
IMBALANCED = 0.8
"""Share of the most frequent label from which accuracy says little."""
_SHOWN = 8
_MASKS: dict[str, str] = {
    "markers": "the chat template's {% generation %} markers leave out a part of the assistant's turns, which"
    " carries no loss.",
    "markers_unverified": "only the chat template's {% generation %} markers say which tokens are the"
    " assistant's. They could not be verified, because the template renders a turn differently when other"
    " messages follow it.",
    "prefixes_despite_markers": "the chat template's {% generation %} markers go beyond the assistant's turns"
    " and are not followed: the turns carry loss.",
}


def data_warnings(definition: StudyDefinition, report: DataReport) -> Iterator[PlanWarning]:
    """What the rows show."""
    for name, split in (("train", report.train), ("eval", report.eval)):
        if split is not None and split.rows_read:
            yield from _split_warnings(name, split, definition.task)
    if report.eval is not None:
        yield from _answer_warnings(definition, report.eval)
    if report.overlap_rows and report.eval is not None:
        rows, read = report.overlap_rows, report.eval.rows_read
        yield warning(
            "overlap",
            f"Of {counted(read, 'row')} of the eval data, {counted(rows, 'also occurs', 'also occur')} in the"
            " train data, ignoring case and white space. The search would favour trials that memorise them.",
            rows=rows,
            eval_rows=read,
        )
    if report.eval is not None and 0 < (usable := report.eval.by_length[0].usable_rows) < FEW_EVAL_ROWS:
        yield warning(
            "few_eval_rows",
            f"The eval data has only {counted(usable, 'row')}, so one row decides {1 / usable:.0%} of the"
            " metric, and differences between trials may be due to chance.",
            rows=usable,
        )


def _answer_warnings(definition: StudyDefinition, evaluation: SplitReport) -> Iterator[PlanWarning]:
    """What the eval data says of the objective."""
    labels, metric = evaluation.labels, definition.objective.metric
    most = labels.most_frequent[0] if labels is not None else None
    of_labels = definition.task in ("sequence_classification", "token_classification")
    if of_labels and metric == "accuracy" and most is not None and most.share >= IMBALANCED:
        better = "macro_f1 or mcc" if definition.task == "sequence_classification" else "micro_f1"
        yield warning(
            "imbalanced",
            f"{most.share:.0%} of the labels in the eval data are {most.value}, so a trial that always"
            f" answers that has an accuracy of {most.share:.2f}. Use {better} as the objective.",
            label=most.value,
            share=round(most.share, 4),
        )
    generate, targets = definition.evaluation.generate, evaluation.targets
    if generate is not None and targets is not None and targets.p95 > generate.max_new_tokens:
        yield warning(
            "long_targets",
            f"At least 5 % of the targets in the eval data have {targets.p95:,} tokens or more, but"
            f" evaluation.generate.max_new_tokens is {generate.max_new_tokens:,}: no trial can write them.",
            p95_tokens=targets.p95,
            max_new_tokens=generate.max_new_tokens,
        )
    answers = evaluation.answers
    if answers is not None and answers.without_answer:
        yield warning(
            "answers_missing",
            f"evaluation.generate.answer_pattern finds no answer in {answers.without_answer:,} of"
            f" {counted(answers.references, 'reference')} of the eval data. The first of them is that of"
            f" {answers.first_without}. Whatever a trial writes there counts as wrong, unless another"
            " reference of the same prompt has an answer.",
            without_answer=answers.without_answer,
            references=answers.references,
        )


def _split_warnings(name: str, split: SplitReport, task: Task) -> Iterator[PlanWarning]:
    if split.sampled and split.rows is not None:
        yield warning(
            "sampled",
            f"Only the first {split.rows_read:,} of {split.rows:,} {name} rows were tokenised. The numbers of"
            " tokens, duplicates and overlapping rows are based on them, and totals assume that the other"
            " rows are similar.",
            read=split.rows_read,
            rows=split.rows,
        )
    if split.duplicate_rows:
        yield warning(
            "duplicates",
            f"Of {counted(split.rows_read, 'row')} of the {name} data,"
            f" {counted(split.duplicate_rows, 'repeats', 'repeat')} an earlier row exactly.",
            split=name,
            rows=split.duplicate_rows,
            of=split.rows_read,
        )
    if split.equal_pairs:
        yield warning(
            "equal_pairs",
            f"Of {counted(split.rows_read, 'row')} of the {name} data,"
            f" {counted(split.equal_pairs, 'has', 'have')} a rejected answer that equals the chosen one: they"
            " teach nothing, and no trial can get them right.",
            split=name,
            rows=split.equal_pairs,
            of=split.rows_read,
        )
    yield from _lost_warnings(name, split)
    of_language = task in ("causal_lm", "seq2seq_lm")
    for cut in split.by_length:
        left_out = split.unsupervised_rows + cut.cut_away_rows
        if left_out:
            yield warning(
                "rows_left_out",
                f"{counted(left_out, 'row')} of {split.rows_read:,} in the {name} data would be left out at"
                f" max_length {cut.max_length:,}: {split.unsupervised_rows:,} without a supervised token,"
                f" {cut.cut_away_rows:,} because the supervised part is cut away.",
                split=name,
                max_length=cut.max_length,
                unsupervised=split.unsupervised_rows,
                cut_away=cut.cut_away_rows,
            )
        share = cut.truncated_rows / cut.usable_rows if cut.usable_rows else 0.0
        if share > MUCH_TRUNCATED:
            yield warning(
                "truncated",
                f"{share:.0%} of the {name} rows are longer than max_length {cut.max_length:,} and lose their"
                f" end{', and with it the end token' if of_language else ''}. 95 % have at most"
                f" {split.p95_tokens:,} tokens.",
                split=name,
                max_length=cut.max_length,
                share=round(share, 4),
                p95_tokens=split.p95_tokens or 0,
            )
    own = split.by_length[0]
    share = own.supervised_tokens / own.tokens if own.tokens else 1.0
    if of_language and share < LITTLE_SUPERVISED:
        yield warning(
            "little_supervised",
            f"Only {share:.1%} of the tokens in the {name} data carry loss; the others cost as much to train"
            " on.",
            split=name,
            share=round(share, 4),
        )


def _lost_warnings(name: str, split: SplitReport) -> Iterator[PlanWarning]:
    """What rows say that is not trained on, and how surely the assistant's turns were found."""
    if split.unrendered:
        yield warning(
            "unrendered",
            f"The chat template leaves out, cuts or rewrites a part of the {name} data, which"
            f" data.unrendered allows: {_listed(split.unrendered)}.",
            split=name,
            **{count.value: count.rows for count in split.unrendered},
        )
    unread = (("columns", split.unread_columns), ("message keys", split.unread_message_keys))
    if found := [f"the {what} {_listed(counts)}" for what, counts in unread if counts]:
        yield warning(
            "unread_fields",
            f"In the {name} data, nothing reads {' and '.join(found)}.",
            split=name,
            columns=len(split.unread_columns),
            message_keys=len(split.unread_message_keys),
        )
    for count in split.turns_found_by:
        if count.value in _MASKS:
            yield warning(
                "assistant_mask",
                f"{counted(count.rows, 'row')} of {split.rows_read:,} in the {name} data:"
                f" {_MASKS[count.value]}",
                split=name,
                found_by=count.value,
                rows=count.rows,
            )


def _listed(counts: Sequence[Count]) -> str:
    shown = ", ".join(f"{count.value} ({counted(count.rows, 'row')})" for count in counts[:_SHOWN])
    more = len(counts) - _SHOWN
    return shown if more <= 0 else f"{shown} and {more:,} more"
