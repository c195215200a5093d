"""A study's plan, from its definition, a report and what ran before. Pure."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

from search_spaces.data_report import FilesReport, ReportProblem
from search_spaces.definition import StudyDefinition
from service.devices.cluster import Cluster
from service.plans.cluster import cluster_warnings, plan_cluster
from service.plans.costs import plan_memory, plan_time
from service.plans.data_reports.request import path_in
from service.plans.history import EarlierTrial
from service.plans.lengths import rows_of, rung_fault
from service.plans.schemas import PlanView, PlanWarning, warning
from service.plans.training import plan_training, plan_trials, trial_lengths
from service.plans.warnings.data import data_warnings
from service.plans.warnings.model import model_warnings
from service.plans.warnings.search import search_warnings
from service.plans.warnings.training import training_warnings


def make_plan(
    definition: StudyDefinition,
    report: FilesReport | None,
    report_unknown: str | None,
    earlier: Sequence[EarlierTrial] | None,
    *,
    name_taken: bool,
    cluster: Cluster | None = None,
) -> PlanView:
    """The plan.

    Args:
        definition: An accepted one.
        report: On its data and its base; None: there is none.
        report_unknown: Why there is none.
        earlier: Trials of the model on this server; None: there is no server.
        name_taken: Whether a study of that name exists.
        cluster: What a coordinator saw of the Ray cluster; None: none has, or there is no server.
    """
    trials = plan_trials(definition)
    warnings: list[PlanWarning] = []
    if name_taken:
        message = (
            f"A study named {definition.name!r} already exists; to submit this one, choose another name."
        )
        warnings.append(warning("name_taken", message, name=definition.name))
    warnings += search_warnings(definition, trials)
    machines = plan_cluster(definition.resources, cluster, has_server=earlier is not None)
    warnings += cluster_warnings(definition.resources, machines)
    if report is not None and report.model is not None:
        warnings += model_warnings(report.model)
    data = report.data if report is not None else None
    problems = [
        problem.model_copy(update={"path": path_in(definition, problem.path)})
        for problem in (report.problems if report is not None else ())
    ]
    reasons = list(_reasons(definition, problems, report_unknown, name_taken=name_taken))
    if (rungs := rung_fault(definition, data)) is not None:
        reasons.append(f"{rungs.path} {rungs.message}.")
    model_unknown = report_unknown or "the model cannot be read; see the problems"
    training, training_unknown, rows = None, report_unknown, None
    if data is not None:
        rows, training_unknown = rows_of(data)
        warnings += data_warnings(definition, data)
    elif report is not None:
        training_unknown = "the data cannot be tokenised; see the problems"
    if rows is not None:
        lengths, exact = trial_lengths(definition, trials.search, rows)
        training = plan_training(definition, trials, lengths, exact=exact, rows=rows)
        warnings += training_warnings(definition, lengths, rows)
    return PlanView(
        name=definition.name,
        acceptable=not reasons,
        reasons=reasons,
        problems=problems,
        warnings=warnings,
        trials=trials,
        training=training,
        training_unknown=training_unknown,
        memory=plan_memory(
            definition, trials.search, report.model if report is not None else None, model_unknown, earlier
        ),
        time=plan_time(definition, training, training_unknown, earlier),
        cluster=machines,
        model=report.model if report is not None else None,
        data=data,
        report_unknown=report_unknown,
        definition=definition.model_dump(mode="json"),
    )


def _reasons(
    definition: StudyDefinition,
    problems: Sequence[ReportProblem],
    report_unknown: str | None,
    *,
    name_taken: bool,
) -> Iterator[str]:
    """Why the study is not acceptable."""
    if name_taken:
        yield f"A study named {definition.name!r} already exists."
    for problem in problems:
        if problem.every_trial:
            yield f"Every trial would fail: {problem.message}"
        elif problem.about == "host":
            yield f"The data or the model could not be looked at from here: {problem.message}"
    if report_unknown is not None:
        yield f"The data and the model were not looked at: {report_unknown}."
