"""A study's plan, from its definition, a report and what ran before. Pure."""

from __future__ import annotations

from collections.abc import Sequence

from search_spaces.data_report import Report
from search_spaces.definition import StudyDefinition
from service.plans.costs import plan_memory, plan_time
from service.plans.data_warnings import data_warnings
from service.plans.history import EarlierTrial
from service.plans.lengths import rows_of
from service.plans.schemas import PlanView, PlanWarning, warning
from service.plans.search_warnings import search_warnings
from service.plans.training import plan_training, plan_trials, trial_lengths
from service.plans.training_warnings import training_warnings


def make_plan(
    definition: StudyDefinition,
    report: Report | None,
    report_unknown: str | None,
    earlier: Sequence[EarlierTrial] | None,
    *,
    name_taken: bool,
) -> PlanView:
    """The plan.

    Args:
        definition: An accepted one.
        report: On its data and its base; None: there is none.
        report_unknown: Why there is none.
        earlier: Trials of the model on this server; None: there is no server.
        name_taken: Whether a study of that name exists.
    """
    trials = plan_trials(definition)
    warnings: list[PlanWarning] = []
    if name_taken:
        message = (
            f"A study named {definition.name!r} already exists; to submit this one, choose another name."
        )
        warnings.append(warning("name_taken", message, name=definition.name))
    warnings += search_warnings(definition, trials)
    data = report.data if report is not None else None
    problems = list(report.problems) if report is not None else []
    model_unknown = report_unknown or "the model cannot be read; see the problems"
    training, training_unknown, rows = None, report_unknown, None
    if data is not None:
        rows, training_unknown = rows_of(data)
        warnings += data_warnings(data)
    elif report is not None:
        training_unknown = "the data cannot be tokenised; see the problems"
    if rows is not None:
        lengths, exact = trial_lengths(definition, trials.search, rows)
        training = plan_training(definition, trials, lengths, exact=exact, rows=rows)
        warnings += training_warnings(definition, lengths, rows)
    return PlanView(
        name=definition.name,
        acceptable=not name_taken and not any(problem.about in ("model", "data") for problem in problems),
        problems=problems,
        warnings=warnings,
        trials=trials,
        training=training,
        training_unknown=training_unknown,
        memory=plan_memory(
            definition, trials.search, report.model if report is not None else None, model_unknown, earlier
        ),
        time=plan_time(definition, training, training_unknown, earlier),
        model=report.model if report is not None else None,
        data=data,
        report_unknown=report_unknown,
        definition=definition.model_dump(mode="json"),
    )
