"""A metric of one's own: what the answers of a support desk's classifier are worth.

A request in the right queue saves a minute; one in the wrong queue costs five, and an outage that nobody is
told of costs an hour. Accuracy counts all three alike.

Start the service where this module can be imported, and name it:

    PYTHONPATH=examples/own_metric NIGHTSWEEP_PLUGINS=my_metrics nightsweep serve

and in the definition of a study with `task: sequence_classification`:

    metrics: {minutes_saved: "my_metrics:minutes_saved"}
    objective: {metric: minutes_saved, direction: maximize}
"""

from __future__ import annotations

from workers.plugins import EvalAnswers

RIGHT, WRONG, MISSED_OUTAGE = 1.0, -5.0, -60.0


def minutes_saved(eval_answers: EvalAnswers) -> float:
    """Minutes saved per request, on average.

    Raises:
        ValueError: The rows do not have one class each.
    """
    answers, targets, labels = eval_answers.answers, eval_answers.targets, eval_answers.labels
    if answers is None or targets is None or targets.ndim != 1 or not labels:
        raise ValueError("minutes_saved is for a classification with one class for each row")
    minutes = 0.0
    for chosen, right in zip(answers.argmax(axis=1), targets, strict=True):
        if chosen == right:
            minutes += RIGHT
        else:
            minutes += MISSED_OUTAGE if labels[right] == "outage" else WRONG
    return minutes / len(targets)
