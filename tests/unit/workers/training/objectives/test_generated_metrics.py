"""Metrics of generated texts: exact values, and those of the libraries."""

from __future__ import annotations

import random
from collections.abc import Sequence

import pytest
from hypothesis import given
from hypothesis import strategies as st
from rouge_score.rouge_scorer import RougeScorer
from sacrebleu import corpus_bleu

from search_spaces.tasks import TASKS
from workers.errors import DataError
from workers.training.objectives.generated_metrics import (
    LONGEST_PATTERN,
    SEARCHED,
    check_references,
    compile_answer_pattern,
    generated_metrics,
)

FINAL = r"#### (.+)"
WORDS = ("the", "name", "of", "a", "restaurant", "near", "river", "is", "cheap", "and", "serves", "food")
METRICS = TASKS["causal_lm"].generated


def measure(
    metric: str,
    predictions: Sequence[str],
    references: Sequence[str],
    keys: Sequence[object] | None = None,
    pattern: str | None = None,
) -> float:
    own = range(len(predictions)) if keys is None else keys
    found = generated_metrics(predictions, references, own, [metric], pattern)  # type: ignore[arg-type]
    assert found.keys() == {metric}
    return found[metric]


def random_texts(count: int, seed: int) -> list[str]:
    choose = random.Random(seed)
    return [" ".join(choose.choices(WORDS, k=choose.randint(1, 12))) + "." for _ in range(count)]


def test_exact_match_is_the_share_of_equal_texts_whatever_white_space_is_around_them() -> None:
    predictions = [" on\n", "ON", "on", "o n"]
    assert measure("exact_match", predictions, ["on"] * 4) == 0.5


def test_the_best_reference_of_a_prompt_counts_and_each_prompt_counts_once() -> None:
    predictions = ["one", "one", "one", "two"]
    references = ["uno", "one", "eins", "zwei"]
    keys = ["a", "a", "a", "b"]
    assert measure("exact_match", predictions, references, keys) == 0.5
    assert measure("rouge_l", predictions, references, keys) == 0.5
    assert measure("answer_match", predictions, references, keys, ".+") == 0.5


def test_rouge_l_is_the_f_measure_of_the_longest_common_subsequence() -> None:
    """Four words of five and four of six: P 0.8, R 2/3."""
    found = measure("rouge_l", ["The cat sat on mats"], ["the cat has sat on it"])
    assert found == pytest.approx(2 * 0.8 * (4 / 6) / (0.8 + 4 / 6))


def test_rouge_l_is_that_of_rouge_score() -> None:
    predictions, references = random_texts(30, 1), random_texts(30, 2)
    scorer = RougeScorer(["rougeL"])
    scores = [scorer.score(r, p)["rougeL"].fmeasure for p, r in zip(predictions, references, strict=True)]
    assert measure("rouge_l", predictions, references) == pytest.approx(sum(scores) / 30)


def test_bleu_is_that_of_sacrebleu() -> None:
    predictions, references = random_texts(30, 1), random_texts(30, 1)[:20] + random_texts(10, 3)
    expected = corpus_bleu(predictions, [references], force=True).score
    assert 50 < expected < 100
    assert measure("bleu", predictions, references) == expected


def test_bleu_takes_all_references_of_a_prompt_together() -> None:
    """Two prompts, of which one has three references and the other one."""
    predictions = ["the cat sat on the mat", "a dog ran in the park"]
    cats = ["a cat sat on the mat", "the cat is on a mat", "there was a cat on the mat"]
    dogs = ["a dog ran through the park"]
    found = measure(
        "bleu", [predictions[0]] * 3 + [predictions[1]], cats + dogs, keys=["cat", "cat", "cat", "dog"]
    )
    padded = [[one, two] for one, two in zip(cats, [dogs[0], None, None], strict=True)]
    assert found == corpus_bleu(predictions, padded).score
    assert found > measure("bleu", predictions, [cats[0], dogs[0]])


def test_equal_texts_are_worth_one_and_a_hundred() -> None:
    texts = ["the cat sat on the mat. #### 7"] * 2
    found = generated_metrics(texts, texts, [1, 2], METRICS, FINAL)
    assert found == {"exact_match": 1.0, "rouge_l": 1.0, "bleu": 100.0, "answer_match": 1.0}


def test_empty_predictions_are_worth_nothing() -> None:
    found = generated_metrics([""], ["the cat. #### 7"], [1], METRICS, FINAL)
    assert found == {"exact_match": 0.0, "rouge_l": 0.0, "bleu": 0.0, "answer_match": 0.0}


def test_metrics_that_are_not_of_generated_texts_are_passed_over() -> None:
    assert generated_metrics(["x"], ["x"], [1], ["eval_loss", "exact_match"]) == {"exact_match": 1.0}


@pytest.mark.parametrize(
    ("prediction", "reference", "right"),
    [
        ("so it is\n#### 1000", "#### 1,000", True),
        ("#### 1000.00 ", "#### 1000", True),
        ("#### +7", "#### 7.", True),
        ("#### .5", "#### 0.50", True),
        ("#### 1e3", "#### 1000", True),
        ("#### -7", "#### 7", False),
        ("#### 1,00", "#### 100", False),
        ("#### 0.1", "#### 0.10000000000000001", False),
        ("#### 3\n#### 4", "#### 4", True),
        ("#### 4\n#### 3", "#### 4", False),
        ("#### Paris", "#### Paris ", True),
        ("#### paris", "#### Paris", False),
        ("it is 4", "#### 4", False),
        ("####  ", "#### 4", False),
        ("#### nan", "#### nan", True),
    ],
)
def test_the_last_answer_counts_and_numbers_are_compared_as_numbers(
    prediction: str, reference: str, right: bool
) -> None:
    assert measure("answer_match", [prediction], [reference], pattern=FINAL) == float(right)


def test_a_pattern_without_a_group_is_the_answer_as_a_whole() -> None:
    assert measure("answer_match", ["12 and 7"], ["7"], pattern=r"\d+") == 1.0


def test_an_empty_match_is_no_answer() -> None:
    """Else a pattern that matches nothing at the end of any text would call all texts right."""
    assert measure("answer_match", ["12 and", "8 or"], ["12.", "7!"], pattern=r"\d*") == 0.5


@given(st.integers(-(10**12), 10**12), st.sampled_from(["{:,}", "{}", "{:+}", "{}.0", "{:,}.000"]))
def test_a_number_may_be_written_in_any_way(number: int, form: str) -> None:
    assert measure("answer_match", [f"#### {form.format(number)}"], [f"#### {number}"], pattern=FINAL) == 1.0


@given(
    st.lists(st.tuples(st.text(max_size=20), st.text("abc 1", max_size=20)), min_size=1, max_size=6),
    st.lists(st.integers(0, 2), min_size=6, max_size=6),
)
def test_every_metric_has_its_range_for_whatever_texts(
    rows: list[tuple[str, str]], owners: list[int]
) -> None:
    keys = owners[: len(rows)]
    predictions = [dict(zip(reversed(keys), (p for p, _ in rows), strict=True))[key] for key in keys]
    references = [f"a{reference}" for _, reference in rows]
    found = generated_metrics(predictions, references, keys, METRICS, "a")
    assert found.keys() == set(METRICS)
    assert all(0 <= value <= (100 if name == "bleu" else 1) for name, value in found.items())


def test_references_of_which_none_has_an_answer_are_refused() -> None:
    references = ["two", "four"]
    with pytest.raises(DataError) as raised:
        check_references(references, ["answer_match"], FINAL)
    assert str(raised.value) == (
        "evaluation.generate.answer_pattern finds no answer in any reference of the eval data (2 references)."
        " The first one is 'two'. Change the pattern so that it matches the answer, or correct the data."
    )
    with pytest.raises(DataError, match="finds no answer in any reference"):
        measure("answer_match", references, references, pattern=FINAL)


def test_a_reference_without_an_answer_is_met_by_none() -> None:
    references = ["#### 1", "2"]
    assert measure("answer_match", ["#### 1", "2"], references, pattern=FINAL) == 0.5
    assert measure("answer_match", ["#### 1", "#### 2"], references, pattern=FINAL) == 0.5


def test_references_without_letters_that_rouge_knows_are_refused() -> None:
    with pytest.raises(DataError, match="it knows the letters a to z and digits only"):
        check_references(["你好", "мир"], ["rouge_l"])
    check_references(["你好", "WORLD"], ["rouge_l"])
    check_references(["你好"], ["bleu", "exact_match"])


@pytest.mark.parametrize(
    ("pattern", "words"),
    [
        ("(", r"is not a valid regular expression of RE2, .*: missing \): \(\."),
        ("a(?=b)", r"neither look-around nor backreferences: invalid perl operator: \(\?=\."),
        (r"(a)\1", "invalid escape sequence"),
        ("(a{1000}){1000}", "bad repetition|invalid repetition"),
        ("\ud800", "surrogates not allowed"),
        ("a" * (LONGEST_PATTERN + 1), "has 1001 characters; at most 1000 are allowed"),
        (None, "The metric answer_match needs evaluation.generate.answer_pattern"),
    ],
)
def test_a_pattern_that_cannot_be_used_is_refused(pattern: str | None, words: str) -> None:
    with pytest.raises(DataError, match=words):
        compile_answer_pattern(pattern)


def test_only_the_end_of_a_long_text_is_searched() -> None:
    assert measure("answer_match", ["7" + "x" * SEARCHED], ["7"], pattern=r"\d") == 0.0
    assert measure("answer_match", ["x" * SEARCHED + "7"], ["7"], pattern=r"\d") == 1.0


def test_patterns_that_take_other_engines_for_ever_come_to_an_end() -> None:
    """Python's own would try all ways to part the text."""
    text = "a" * SEARCHED
    assert measure("answer_match", [text], ["aab"], pattern="(a|aa)+(a+)+b") == 0.0
    assert measure("answer_match", [text], ["a"], pattern="(?s)a.*b|a") == 1.0
