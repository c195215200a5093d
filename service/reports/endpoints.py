"""/v1/studies/{study}/report, …/importance and …/pareto-front"""

from __future__ import annotations

from fastapi import APIRouter

from service.reports import queries
from service.reports.schemas import ImportanceView, ParetoFront, ReportView
from service.rest.dependencies import OptunaStorage, Reading
from service.rest.problems import declare
from service.studies.parameters import StudyRef
from service.studies.queries import get_search

router = APIRouter(prefix="/v1/studies/{study}", tags=["reports"])


@router.get("/report", response_model=ReportView, responses=declare(404, 409))
def get_report(study: StudyRef, session: Reading, storage: OptunaStorage) -> ReportView:
    """What the study has found so far: winner, importance, verdicts, advice and cost."""
    return queries.get_report(session, storage, get_search(session, study))


@router.get("/importance", response_model=ImportanceView, responses=declare(404, 409))
def get_importance(study: StudyRef, session: Reading, storage: OptunaStorage) -> ImportanceView:
    """Which hyperparameters set the best completed trials apart, by PED-ANOVA."""
    return queries.get_importance(session, storage, get_search(session, study))


@router.get("/pareto-front", response_model=ParetoFront, responses=declare(404, 409))
def get_pareto_front(study: StudyRef, session: Reading) -> ParetoFront:
    """The completed trials that no other one beats in the objective and all costs, the best objective first.

    Trials that break a constraint are left out. With a single objective it holds the best trial.
    """
    return queries.get_pareto_front(session, get_search(session, study))
