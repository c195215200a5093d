"""A sweep and its schedule's champion: what is to be evaluated, and what is decided when the sweep ends.

The decision is worked out before the study's end is recorded, from rows that do not change any more, and is
recorded in the same transaction: so a sweep decides once, wherever a coordinator dies.
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Mapping
from dataclasses import asdict
from functools import partial
from typing import Any

from sqlalchemy import select
from sqlalchemy.orm import Session

from search_spaces.wording import SENTENCE_CHARACTERS, shortened
from service.analysis import best
from service.analysis.contest import seed_noise
from service.champions.lineage import evaluated_recipe, lineage_of, misfit
from service.champions.verdicts import CHANGED, WINS, Evaluation, Standing, Verdict, judge
from service.coordinator.study.attempts import attempts_of
from service.coordinator.study.leased_study import LeasedStudy
from service.db import reigns
from service.db.kinds import Contestant, ContestDecision, StudyKind
from service.db.models import Attempt, ContestRow, EvaluationRow, Reign, Schedule, Study
from service.db.transitions import append_event
from service.errors import NotFound
from service.states import AttemptState, StudyState
from service.studies import results
from service.trials.queries import adapter_folder
from workers.evaluated import Evaluated

log = logging.getLogger(__name__)


def evaluations_due(session: Session, leased: LeasedStudy, study: Study) -> frozenset[Contestant]:
    """Whose adapters a study is to evaluate."""
    schedule = _schedule_of(session, leased, study)
    if schedule is None:
        return frozenset()
    reign = reigns.reigning(session, schedule.id)
    if reign is None or misfit(reign.lineage, leased.definition, leased.preparation) is not None:
        return frozenset({Contestant.CHALLENGER})
    return frozenset(Contestant)


def _schedule_of(
    session: Session, leased: LeasedStudy, study: Study, *, lock: bool = False
) -> Schedule | None:
    """The schedule whose champion a study is about; None: it is about none."""
    if study.schedule_id is None or leased.kind is not StudyKind.SEARCH or leased.definition.objective.costs:
        return None
    decided = select(ContestRow.id).where(ContestRow.study_id == study.id)
    if session.scalars(decided).first() is not None:
        return None  # it was extended after its end: each sweep decides once
    schedule = session.get(Schedule, study.schedule_id, with_for_update=lock or None)
    return schedule if schedule is not None and schedule.champion else None


def ask(leased: LeasedStudy, role: Contestant) -> int | None:
    """Make the trial that evaluates an adapter: its number; None: there is nothing to evaluate any more."""
    with leased.database.read() as session:
        study = session.get_one(Study, leased.study_id)
        evaluates = (
            _champion(session, study) if role is Contestant.CHAMPION else _challenger(session, leased, study)
        )
    return None if evaluates is None else leased.ask_evaluation({"role": str(role), **evaluates})


def _champion(session: Session, study: Study) -> dict[str, Any] | None:
    reign = None if study.schedule_id is None else reigns.reigning(session, study.schedule_id)
    if reign is None:
        return None
    return {
        "study": reign.study_name,
        "trial": reign.trial_number,
        "adapter": reign.adapter,
        "recipe": reign.lineage["recipe"],
        "reign": reign.id,
    }


def _challenger(session: Session, leased: LeasedStudy, study: Study) -> dict[str, Any] | None:
    definition = leased.definition
    goal = best.Goal(task=definition.task, objective=definition.objective, repeats=definition.repeats)
    judged = best.judgement(goal, results.compared(session, study, goal), over=True)
    if judged is None:
        return None
    try:
        adapter = adapter_folder(session, study, judged.winner, "best")
    except NotFound:
        adapter = ""  # its evaluation will say so
    recipe = evaluated_recipe(definition, leased.recipe(judged.winner))
    return {
        "study": leased.name,
        "trial": judged.winner,
        "adapter": adapter,
        "recipe": recipe.model_dump(mode="json"),
    }


def keep(session: Session, attempt: Attempt, evaluated: Evaluated) -> dict[str, Any]:
    """Write down what an evaluation saw of each row; what of it belongs to the outcome."""
    document = asdict(evaluated)
    key = {"study_id": attempt.study_id, "trial_number": attempt.trial_number}
    session.merge(EvaluationRow(**key, evaluated={**document, "versions": dict(evaluated.versions)}))
    return {name: document[name] for name in ("data", "rows", "statistic", "versions")}


def note(session: Session, leased: LeasedStudy, attempt: Attempt, value: float) -> None:
    """Say in the study's history what an adapter came to."""
    asked = leased.asked[attempt.trial_number]
    whose = asked.evaluates
    assert whose is not None
    metric = leased.definition.objective.metric
    message = f"the {whose['role']}, trial {whose['trial']} of {whose['study']}, has {metric} {value:.6g}"
    append_event(
        session,
        attempt.study_id,
        f"{whose['role']}_evaluated",
        message,
        trial_number=attempt.trial_number,
        data={"study": whose["study"], "trial": whose["trial"], "metric": metric, "value": value},
    )


# -- the decision ------------------------------------------------------------------------------------


def settlement(leased: LeasedStudy, state: StudyState, reason: str) -> Callable[[Session, Study], None]:
    """What is to be recorded with a study's end about its schedule's champion.

    Args:
        leased: the study; all its trials have ended.
        state: what the study becomes.
        reason: why.
    """
    with leased.database.read() as session:
        study = session.get_one(Study, leased.study_id)
        schedule = _schedule_of(session, leased, study)
        if schedule is None:
            return lambda *_: None
        standing = _standing(session, leased, study, schedule)
    if state is not StudyState.COMPLETED:
        standing = Standing(**{**vars(standing), "ended_early": f"the sweep {state}: {reason}"})
    try:
        verdict = judge(standing)
    except Exception:  # a study must end all the same
        log.exception("champion and challenger of study %s cannot be compared", leased.name)
        why = "the two could not be compared; the coordinator's log says why"
        verdict = Verdict(decision=ContestDecision.DEFENDED, why=why)
    return partial(_settle, leased, standing, verdict)


def _standing(session: Session, leased: LeasedStudy, study: Study, schedule: Schedule) -> Standing:
    definition = leased.definition
    goal = best.Goal(task=definition.task, objective=definition.objective, repeats=definition.repeats)
    judged = best.judgement(goal, results.compared(session, study, goal), over=True)
    reign = reigns.reigning(session, schedule.id)
    unfit = None if reign is None else misfit(reign.lineage, definition, leased.preparation)
    return Standing(
        metric=definition.objective.metric,
        minimize=definition.objective.direction == "minimize",
        candidates=results.count_eligible(session, study),
        noise=None if judged is None else seed_noise(judged.candidates),
        seed=definition.search.seed,
        ended_early=None,
        reign=None if reign is None else reign.id,
        reign_name="" if reign is None else _name(reign),
        misfit=unfit,
        champion=_evaluation(session, leased, Contestant.CHAMPION),
        challenger=_evaluation(session, leased, Contestant.CHALLENGER),
    )


def _name(reign: Reign) -> str:
    return f"trial {reign.trial_number} of {reign.study_name}"


def _evaluation(session: Session, leased: LeasedStudy, role: Contestant) -> Evaluation | None:
    number = next((n for n, asked in leased.asked.items() if asked.role is role), None)
    if number is None:
        return None
    whose = leased.asked[number].evaluates or {}
    end = leased.ends.get(number)
    last = next(iter(reversed(attempts_of(session, leased.study_id, number))), None)
    outcome: Mapping[str, Any] = (last.outcome if last is not None else None) or {}
    row = session.get(EvaluationRow, (leased.study_id, number))
    completed = end is not None and end.outcome is AttemptState.COMPLETED
    return Evaluation(
        trial=whose["trial"],
        study=whose["study"],
        reign=whose.get("reign"),
        value=end.value if completed and end is not None else None,
        why_not="the sweep ended before" if last is None else last.reason,
        unusable=bool(outcome.get("unusable_adapter")),
        evaluated=row.evaluated if completed and row is not None else None,
    )


def _settle(
    leased: LeasedStudy, standing: Standing, verdict: Verdict, session: Session, study: Study
) -> None:
    """Record the decision, and let the winner reign."""
    schedule = _schedule_of(session, leased, study, lock=True)
    if schedule is None:
        return  # it was removed, or wants no champion any more
    reign = reigns.reigning(session, schedule.id)
    changed = (None if reign is None else reign.id) != standing.reign
    if changed and verdict.decision is not ContestDecision.UNCHALLENGED:
        stays = "" if reign is None else f"{_name(reign)} stays: "
        verdict = Verdict(decision=ContestDecision.DEFENDED, why=f"{stays}{CHANGED}")
    champion, challenger = standing.champion, standing.challenger
    contest = ContestRow(
        schedule_id=schedule.id,
        study_id=study.id,
        study_name=study.name,
        decision=verdict.decision,
        why=shortened(verdict.why, SENTENCE_CHARACTERS),
        metric=standing.metric,
        champion_reign=standing.reign,
        champion_value=None if champion is None else champion.value,
        challenger_trial=None if challenger is None else challenger.trial,
        challenger_value=None if challenger is None else challenger.value,
        data=_data(standing),
        data_changed=_has_changed(session, schedule, _data(standing)),
        evidence=None if verdict.comparison is None else verdict.comparison.document(),
    )
    session.add(contest)
    session.flush()
    if verdict.decision in WINS and challenger is not None and challenger.evaluated is not None:
        reigns.enthrone(
            session,
            schedule,
            study_id=study.id,
            study_name=study.name,
            trial_number=challenger.trial,
            adapter=_adapter(leased),
            lineage=lineage_of(
                leased.definition,
                leased.recipe(challenger.trial),
                leased.preparation,
                data=challenger.evaluated["data"],
                versions=challenger.evaluated["versions"],
            ),
            why=verdict.why,
            ended_why=verdict.why,
            contest_id=contest.id,
        )
    _say(session, contest)


def _adapter(leased: LeasedStudy) -> str:
    evaluates = next(a.evaluates for a in leased.asked.values() if a.role is Contestant.CHALLENGER)
    assert evaluates is not None
    return str(evaluates["adapter"])


def _data(standing: Standing) -> str | None:
    """SHA-256 of the eval rows of this sweep."""
    for found in (standing.challenger, standing.champion):
        if found is not None and found.evaluated is not None:
            return str(found.evaluated["data"])
    return None


def _has_changed(session: Session, schedule: Schedule, data: str | None) -> bool | None:
    """Whether the eval rows are other ones than those of the latest contest that had any."""
    known = select(ContestRow.data).where(ContestRow.schedule_id == schedule.id, ContestRow.data.is_not(None))
    before = session.scalars(known.order_by(ContestRow.id.desc()).limit(1)).one_or_none()
    return None if data is None or before is None else data != before


def _say(session: Session, contest: ContestRow) -> None:
    changed = "; the eval data has changed since the contest before" if contest.data_changed else ""
    append_event(
        session,
        contest.study_id,
        f"champion_{contest.decision}",
        f"{contest.why}{changed}",
        data={
            "contest": contest.id,
            "decision": str(contest.decision),
            "metric": contest.metric,
            "champion_value": contest.champion_value,
            "challenger_trial": contest.challenger_trial,
            "challenger_value": contest.challenger_value,
            "data_changed": contest.data_changed,
        },
    )
