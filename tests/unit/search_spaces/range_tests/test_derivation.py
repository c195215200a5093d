"""The range test of a study: what it keeps of the study's definition."""

from __future__ import annotations

from search_spaces.definition import StudyDefinition
from search_spaces.parsing.document import parse_definition
from search_spaces.range_tests.derivation import derive
from tests.support.search_spaces.spaces import DOCUMENT


def test_a_range_test_trains_for_the_studys_task_and_measures_its_eval_loss_alone() -> None:
    space = DOCUMENT["search"]["space"] | {
        "loss": {"choices": ["focal", "cross_entropy"]},
        "label_smoothing": {"choices": [0.1, 0.0]},
    }
    study = parse_definition(
        DOCUMENT
        | {
            "task": "seq2seq_lm",
            "metrics": {"profit": "m:f"},
            "objective": {"metric": "rouge_l"},
            "recipe": {"neftune_alpha": 0},
            "search": DOCUMENT["search"] | {"space": space},
        }
    )
    derived = derive(study, "tone.range-test")
    assert (derived.task, derived.objective.metric) == ("seq2seq_lm", "eval_loss")
    assert (derived.metrics, derived.evaluation.generate) == ({}, None)
    fixed = {"neftune_alpha": 0.0, "loss": "focal", "label_smoothing": 0.0}
    assert {name: derived.recipe[name] for name in fixed} == fixed
    assert StudyDefinition.model_validate(derived.model_dump(mode="json")) == derived
