"""The objective of each task."""

from __future__ import annotations

from workers.base.base_model import LoadedBase
from workers.training.objectives.base import Objective
from workers.training.objectives.labels import LabelledRows, LabelledTokens
from workers.training.objectives.language import LanguageModel
from workers.training.objectives.pairs import PreferredPairs, RankedPairs


def objective_of(base: LoadedBase) -> Objective:
    """What the base's task computes in a pass."""
    match base.task:
        case "causal_lm" | "seq2seq_lm":
            return LanguageModel()
        case "sequence_classification" | "regression":
            return LabelledRows(base.labels)
        case "token_classification":
            assert base.labels is not None  # they are read from the train data before the base is loaded
            return LabelledTokens(base.labels)
        case "ranking":
            return RankedPairs()
        case "preference":
            return PreferredPairs()
