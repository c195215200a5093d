"""A study's report as Markdown, for people. Pure."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

from service.cli.live_table import counts_line
from service.cli.output import duration, moment, number, one_line, setting, settings_line
from service.client import Report
from service.client.reports import Candidate, ParameterImportance

_VERDICT_MEANINGS = {
    "diverged": "the loss or a gradient was not finite, or the loss exploded",
    "learning_rate_too_high": "the loss went up and down, or a gentler recipe was far ahead",
    "learning_rate_too_low": "the loss was still falling about as fast as at first",
    "overfitting": "the eval loss rose while the train loss fell",
    "plateaued_early": "the second half brought next to nothing",
    "under_trained": "the loss was still falling when the training ended",
    "not_enough_rungs": "too few evaluations to judge the curve",
}


def markdown(report: Report) -> str:
    """The whole report."""
    parts = [_head(report), _best(report), _front(report), _importance(report), _verdicts(report)]
    parts += [_advice(report), _cost(report)]
    return "\n\n".join("\n".join(part) for part in (list(p) for p in parts) if part) + "\n"


def mean_and_spread(candidate: Candidate) -> str:
    """`0.412 ± 0.008`; `-` without a run."""
    if candidate.mean is None:
        return "-"
    spread = candidate.standard_deviation
    return number(candidate.mean) + (f" ± {number(spread)}" if spread is not None else "")


def share(value: float | None) -> str:
    """A share in per cent; `-` for none."""
    return "-" if value is None else f"{value:.0%}"


def chance(parameter: ParameterImportance) -> str:
    """Whether an importance is more than chance, or why there is none."""
    if parameter.above_chance is None:
        return parameter.reason or "-"
    return "above" if parameter.above_chance else "not above"


def _head(report: Report) -> Iterator[str]:
    study = report.study
    yield f"# {study.name}"
    yield ""
    ended = f", ended {moment(study.ended_at)}" if study.ended_at else f", as of {moment(report.made_at)}"
    stage = f" ({study.stage})" if study.stage else ""
    yield f"- **State**: {study.state}{stage}" + (f": {_text(study.reason)}" if study.reason else "")
    if report.seconds is not None:
        yield f"- **Time**: {duration(report.seconds)}{ended}"
    repeats = f", of which {study.counts.repeats} repeats" if study.counts.repeats else ""
    yield f"- **Trials**: {counts_line(study)}{repeats}"
    yield f"- **Model**: {_text(str(study.definition['model']['id']))}"
    yield f"- **Objective**: {study.definition['objective']['direction']} {study.metric}"
    prepared = study.preparation
    if prepared is not None and prepared.learning_rate_bounds is not None:
        low, high = prepared.learning_rate_bounds
        test = f" of the range test {study.range_test}" if study.range_test else ""
        yield f"- **Learning rate**: searched from {low:.3g} to {high:.3g}, the bounds{test}"
    if prepared is not None and (prepared.enqueued or prepared.prior):
        counts = f"{prepared.enqueued} recipes evaluated first, {prepared.prior} earlier results"
        yield f"- **Warm start**: {counts}"
    for note in prepared.notes if prepared is not None else ():
        yield f"- {_text(note)}"


def _best(report: Report) -> Iterator[str]:
    best, metric = report.best, report.study.metric
    yield "## Best trial"
    yield ""
    if best is None:
        broken = any(constraint.broken for constraint in report.constraints)
        yield "None has completed within the constraints." if broken else "None has completed."
        return
    yield f"Trial {best.number}, {metric} {number(best.value)}: {_text(settings_line(best.params))}"
    judged = best.judgement
    if judged is None:
        return
    yield ""
    if any(candidate.runs for candidate in judged.candidates):
        yield from _table(
            ("trial", f"{metric} in the search", "mean ± sd with fresh seeds", "runs"),
            [(c.trial_number, number(c.value), mean_and_spread(c), c.n) for c in judged.candidates],
        )
        yield ""
    yield _text(judged.sentence)


def _front(report: Report) -> Iterator[str]:
    front = report.study.pareto_front
    if not front:
        return
    costs = list(front[0].costs)
    yield "## Pareto front"
    yield ""
    yield "No other trial is at least as good in all of these and better in one."
    yield ""
    yield from _table(
        ("trial", report.study.metric, *costs, "hyperparameters"),
        [
            (
                point.trial_number,
                number(point.value),
                *(number(point.costs.get(cost)) for cost in costs),
                settings_line(point.params),
            )
            for point in front
        ],
    )


def _importance(report: Report) -> Iterator[str]:
    found = report.importance
    yield "## Which hyperparameters mattered"
    yield ""
    if any(p.importance is not None for p in found.parameters):
        yield from _table(
            ("hyperparameter", "importance", "beside chance"),
            [(p.name, share(p.importance), chance(p)) for p in found.parameters],
        )
        yield ""
    yield _text(found.sentence)


def _verdicts(report: Report) -> Iterator[str]:
    if not report.verdicts:
        return
    yield "## What the curves say"
    yield ""
    yield from _table(
        ("verdict", "trials", "meaning"),
        [(name.replace("_", " "), n, _VERDICT_MEANINGS.get(name, "")) for name, n in report.verdicts.items()],
    )


def _advice(report: Report) -> Iterator[str]:
    broken = [c for c in report.constraints if c.broken]
    if not report.advice and not broken:
        return
    yield "## Advice"
    yield ""
    for advice in report.advice:
        yield f"- {_text(advice.sentence)}"
    for constraint in broken:
        count = f"{constraint.broken} of {constraint.completed}"
        yield f"- constraint {constraint.name}: broken by {count} completed trials."


def _cost(report: Report) -> Iterator[str]:
    cost = report.cost
    yield "## Cost"
    yield ""
    yield f"- {cost.gpu_hours:.3g} GPU-hours, {cost.worker_hours:.3g} worker-hours"
    saved = f" ({share(cost.saved_share)} of all, with what diverged trials had left)"
    yield (
        f"- {cost.examples_trained:,} training examples; pruning saved {cost.examples_saved_by_pruning:,}"
        + (saved if cost.saved_share else "")
    )


def _table(columns: Sequence[str], rows: Sequence[Sequence[object]]) -> Iterator[str]:
    yield "| " + " | ".join(columns) + " |"
    yield "|" + " --- |" * len(columns)
    for row in rows:
        yield "| " + " | ".join(_text(setting(cell)) for cell in row) + " |"


def _text(text: str) -> str:
    """One line that Markdown shows as it is, inside a table too."""
    return one_line(text).replace("\\", "\\\\").replace("|", "\\|").replace("*", "\\*").replace("`", "\\`")
