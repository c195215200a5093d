"""Champions as the REST API shows them."""

from __future__ import annotations

from datetime import datetime
from typing import Any

from pydantic import Field

from service.answers import Answer, Open
from service.db.kinds import ContestDecision


class ContestView(Answer):
    """What one sweep decided about the champion, on its own eval data."""

    id: int
    at: datetime
    study: str = Field(description="The sweep's name")
    study_id: str
    decision: Open[ContestDecision] = Field(
        description="`crowned`: the first champion; `dethroned`: the sweep's winner is better beyond noise;"
        " `defended`: it is not, or that cannot be told; `unchallenged`: the sweep has nobody to put up;"
        " `succeeded`: the champion cannot be evaluated any more, so the winner follows it"
    )
    why: str = Field(description="In words, with the numbers")
    metric: str
    champion_value: float | None = Field(
        description="The champion's objective on this sweep's eval data; null: it was not evaluated"
    )
    challenger_trial: int | None = Field(description="The sweep's winner")
    challenger_value: float | None = Field(description="Its objective, evaluated again after the search")
    data: str | None = Field(description="SHA-256 of the eval rows, as the base reads them")
    data_changed: bool | None = Field(
        description="Whether the eval rows differ from those of the contest before; null: there is none"
    )
    evidence: dict[str, Any] | None = Field(
        description="The paired comparison: lead, interval, p value, rows; null: none was made"
    )


class ReignView(Answer):
    """An adapter while it is or was champion."""

    id: int
    study: str = Field(description="The name of the study whose trial made the adapter")
    study_id: str
    trial: int
    adapter: str = Field(description="The path or URL of its folder")
    since: datetime
    until: datetime | None = Field(description="null: it reigns")
    why: str
    ended_why: str | None
    promoted_by: str | None = Field(description="Whose API key put it there; null: a sweep did")
    lineage: dict[str, Any] = Field(
        description="Task, model, recipe, seed, fingerprints of data and model, and versions of the libraries"
        " that evaluated it, where they are known"
    )


class ChampionView(ReignView):
    """A schedule's champion."""

    schedule: str
    url: str = Field(description="The address under which the champion's adapter is always downloaded")
    last_contest: ContestView | None = Field(description="What the latest sweep decided")
    rollbacks: list[ReignView] = Field(
        description="Earlier champions that rollbacks would bring back, the first one first. Their adapters"
        " are kept"
    )


class ChampionHistory(Answer):
    contests: list[ContestView] = Field(description="What each sweep decided, newest first")
    reigns: list[ReignView] = Field(description="All champions, the present one first")
