"""A loss and a metric of one's own: people mind a room that is too dark three times as much as a bright one.

The squared error, which the task `regression` minimizes, minds both alike. Start the service where this
module can be imported, and name it:

    PYTHONPATH=examples/own_functions NIGHTSWEEP_PLUGINS=my_functions nightsweep serve

`study.yaml` names the two functions. The loss is given tensors and is differentiated by torch; the metric is
given numpy arrays, at each rung.
"""

from __future__ import annotations

import numpy as np
import torch
from torch import Tensor

from workers.plugins import EvalAnswers

TOO_DARK, TOO_BRIGHT = 3.0, 1.0


def too_dark(answers: Tensor, targets: Tensor) -> Tensor:
    """The squared error, three times as much where the light is darker than it is to be.

    Args:
        answers: Predicted brightness, float32 [S].
        targets: The right one, float32 [S].

    Returns:
        float32 [S].
    """
    error = answers - targets
    return torch.where(error < 0, TOO_DARK, TOO_BRIGHT) * error**2


def annoyance(eval_answers: EvalAnswers) -> float:
    """By how much a light is off, on average, three times as much where it is too dark.

    Raises:
        ValueError: The task is not a regression.
    """
    if eval_answers.task != "regression" or eval_answers.answers is None:
        raise ValueError("annoyance is for a regression")
    error = eval_answers.answers - eval_answers.targets
    return float(np.where(error < 0, -TOO_DARK * error, TOO_BRIGHT * error).mean())
