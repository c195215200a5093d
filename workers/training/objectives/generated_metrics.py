"""Metrics of generated texts against their references.

Rows of one prompt are one question with several references: the prompt counts once, at its best reference
(`bleu` takes all of them together). Texts are compared as they are but for white space at both ends.
"""

from __future__ import annotations

import re
from collections.abc import Collection, Hashable, Sequence
from dataclasses import dataclass, field
from decimal import Decimal
from itertools import zip_longest
from typing import Any

import re2

from search_spaces.definition import GenerateSpec
from search_spaces.tasks import TASKS, Task
from search_spaces.wording import counted, shortened
from workers.errors import DataError

LONGEST_PATTERN = 1_000
"""Characters of an answer pattern."""

SEARCHED = 10_000
"""Characters at the end of a text in which an answer is looked for. One search takes time that is linear in
the text, but the last match is the last of many searches: half a second with the worst of patterns."""

_SHOWN = 200
"""Characters of a reference in messages."""

_NUMBER = re.compile(
    r"[-+]?(?:(?:[0-9]{1,3}(?:,[0-9]{3})+|[0-9]+)(?:\.[0-9]*)?|\.[0-9]+)(?:[eE][-+]?[0-9]{1,3})?"
)


@dataclass
class _Question:
    """What was written from one prompt, and all that would have been right."""

    prediction: str
    references: list[str] = field(default_factory=list)


def generated_metrics(
    predictions: Sequence[str],
    references: Sequence[str],
    prompt_keys: Sequence[Hashable],
    wanted: Collection[str],
    answer_pattern: str | None = None,
) -> dict[str, float]:
    """The mean of each metric over the prompts.

    - `exact_match`: the share of predictions that are equal to a reference, without white space at the ends.
    - `rouge_l`: F-measure by rouge-score, 0 to 1. It knows the letters a to z and digits only, without case.
    - `bleu`: over the corpus by sacrebleu with its own defaults, 0 to 100.
    - `answer_match`: the share of predictions whose answer is that of a reference. The answer is the last
      match of the pattern that is not empty: its first group, or all of it where it has none. Two numbers
      are compared as numbers (1,000 is 1000.0), anything else without white space at the ends. A reference
      without an answer is met by none.

    Args:
        predictions: One for each row, at least one; equal where the prompts are.
        references: One for each row.
        prompt_keys: Equal for rows of the same prompt.
        wanted: Names of metrics; others than these four are passed over.
        answer_pattern: For `answer_match`.

    Raises:
        DataError: As `check_references`.
    """
    check_references(references, wanted, answer_pattern)
    asked = _questions(predictions, references, prompt_keys)
    found = {}
    for name in ("exact_match", "rouge_l", "bleu", "answer_match"):
        if name in wanted:
            scores = None if name == "bleu" else _scores(asked, name, answer_pattern)
            found[name] = _bleu(asked) if scores is None else sum(scores) / len(scores)
    return found


def prompt_scores(
    predictions: Sequence[str],
    references: Sequence[str],
    prompt_keys: Sequence[Hashable],
    metric: str,
    answer_pattern: str | None = None,
) -> list[float] | None:
    """What each prompt adds to the mean that a metric is; None: `bleu` is no mean over prompts.

    Args:
        predictions: As for `generated_metrics`, and all else.
        references: One for each row.
        prompt_keys: Equal for rows of the same prompt.
        metric: One of the four.
        answer_pattern: For `answer_match`.
    """
    if metric == "bleu":
        return None
    return _scores(_questions(predictions, references, prompt_keys), metric, answer_pattern)


def _questions(
    predictions: Sequence[str], references: Sequence[str], prompt_keys: Sequence[Hashable]
) -> list[_Question]:
    questions: dict[Hashable, _Question] = {}
    for prediction, reference, key in zip(predictions, references, prompt_keys, strict=True):
        questions.setdefault(key, _Question(prediction)).references.append(reference)
    return list(questions.values())


def _scores(asked: Sequence[_Question], metric: str, answer_pattern: str | None) -> list[float]:
    if metric == "exact_match":
        return [float(q.prediction.strip() in {r.strip() for r in q.references}) for q in asked]
    if metric == "rouge_l":
        return _rouge_l(asked)
    return _answer_match(asked, compile_answer_pattern(answer_pattern))


def wanted_metrics(
    task: Task, generate: GenerateSpec | None, needed: Collection[str]
) -> tuple[GenerateSpec, tuple[str, ...]]:
    """How text is generated in a study, and the metrics of it that are wanted; none: nothing is generated.

    Args:
        task: The study's.
        generate: Its `evaluation.generate`; None: only what is needed is generated.
        needed: Its objective and the metrics that have a constraint.
    """
    names: tuple[str, ...] = TASKS[task].generated
    if generate is None:
        return GenerateSpec(), tuple(name for name in names if name in needed)
    without_answers = generate.answer_pattern is None and "answer_match" not in needed
    return generate, tuple(name for name in names if name != "answer_match" or not without_answers)


def measurable(
    references: Sequence[str],
    wanted: Sequence[str],
    needed: Collection[str],
    answer_pattern: str | None = None,
) -> tuple[str, ...]:
    """Those of the wanted metrics that references allow: `rouge_l` is left out unless it is needed.

    Raises:
        DataError: As `check_references`, for what is needed, and for `answer_match` in any case.
    """
    possible = []
    for name in wanted:
        try:
            check_references(references, [name], answer_pattern)
        except DataError:
            if name in needed or name == "answer_match":
                raise
        else:
            possible.append(name)
    return tuple(possible)


def check_references(
    references: Sequence[str], wanted: Collection[str], answer_pattern: str | None = None
) -> None:
    """What is wrong with references shows before any text is generated.

    Raises:
        DataError: `answer_pattern` cannot be used or finds no answer in any reference, or no reference has a
            letter that `rouge_l` knows.
    """
    if "answer_match" in wanted:
        pattern = compile_answer_pattern(answer_pattern)
        if not any(has_answer(pattern, text) for text in references):
            raise DataError(
                "evaluation.generate.answer_pattern finds no answer in any reference of the eval data"
                f" ({counted(len(references), 'reference')}). The first one is"
                f" {shortened(repr(references[0]), _SHOWN)}. Change the pattern so that it matches the"
                " answer, or correct the data."
            )
    if "rouge_l" in wanted and not any(re.search("[a-z0-9]", text.lower()) for text in references):
        raise DataError(
            "rouge_l cannot be measured: it knows the letters a to z and digits only, and no reference has "
            "any. Use bleu or exact_match."
        )


def compile_answer_pattern(pattern: str | None) -> Any:
    """A pattern in the syntax of RE2, whose time is linear in the text: without look-around and references.

    Raises:
        DataError: It is none, or longer than `LONGEST_PATTERN`.
    """
    what = "evaluation.generate.answer_pattern"
    if pattern is None:
        raise DataError(f"The metric answer_match needs {what}.")
    if len(pattern) > LONGEST_PATTERN:
        raise DataError(f"{what} has {len(pattern)} characters; at most {LONGEST_PATTERN} are allowed.")
    options = re2.Options()
    options.log_errors = False
    try:
        return re2.compile(pattern, options)
    except (re2.error, UnicodeError) as error:
        reason = error.args[0]
        text = reason.decode(errors="replace") if isinstance(reason, bytes) else str(error)
        raise DataError(
            f"{what} is not a valid regular expression of RE2, which has neither look-around nor "
            f"backreferences: {shortened(text, 200)}."
        ) from error


def has_answer(pattern: Any, text: str) -> bool:
    """Whether a pattern of `compile_answer_pattern` finds an answer in a text."""
    return _answer(pattern, text) is not None


def _answer(pattern: Any, text: str) -> str | None:
    found = None
    for match in pattern.finditer(text[-SEARCHED:]):
        found = (match.group(1 if pattern.groups else 0) or "").strip() or found
    return found


def _answer_match(questions: Sequence[_Question], pattern: Any) -> list[float]:
    def right(question: _Question) -> bool:
        own = _answer(pattern, question.prediction)
        return own is not None and _value(own) in {
            _value(answer) for text in question.references if (answer := _answer(pattern, text)) is not None
        }

    return [float(right(question)) for question in questions]


def _value(answer: str) -> str | Decimal:
    """A number where it is one, exactly."""
    return Decimal(answer.replace(",", "")) if _NUMBER.fullmatch(answer) else answer


def _rouge_l(questions: Sequence[_Question]) -> list[float]:
    from rouge_score.rouge_scorer import RougeScorer  # takes two seconds to import, for nltk

    scorer = RougeScorer(["rougeL"], use_stemmer=False)
    return [float(scorer.score_multi(q.references, q.prediction)["rougeL"].fmeasure) for q in questions]


def _bleu(questions: Sequence[_Question]) -> float:
    from sacrebleu.metrics.bleu import BLEU

    # One stream for each first, second ... reference; None where a prompt has fewer than others.
    streams: Any = list(zip_longest(*(q.references for q in questions)))
    # Forced: else it warns of texts that end in a full stop as if they had been tokenised.
    score: float = BLEU(force=True).corpus_score([q.prediction for q in questions], streams).score
    return min(score, 100.0)  # rounding takes it beyond
