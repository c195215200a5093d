"""Pages over HTTP: what they show, that foreign text stays text, that nothing is loaded from elsewhere."""

from __future__ import annotations

import json
import re
from collections.abc import Callable
from datetime import UTC, datetime, timedelta
from html.parser import HTMLParser
from typing import Any

import pytest
import yaml
from pydantic import SecretStr
from sqlalchemy import select
from sqlalchemy.exc import OperationalError
from starlette.testclient import TestClient

from service.app import create_app
from service.db import reigns
from service.db.database import Database
from service.db.models import ContestRow, Device, Schedule, ScheduleEvent, Study
from service.optuna_store.storage import Storage
from service.pages import overview
from service.pages.assets import address
from service.settings import Settings
from service.states import AttemptState, StudyState
from tests.support.service.api import LOCAL, Make, database_away, expect_problem, on_sqlite
from tests.support.service.database_lab import Lab

Begin = Callable[..., Lab]
BROWSER = {"accept": "text/html,application/xhtml+xml,*/*;q=0.8"}
FOREIGN = "<script>alert(1)</script><img src=x onerror=alert(2)>"
PAGE = "/reports/studies/support-tone"
FIRST = datetime(2026, 3, 1, 21, 0, tzinfo=UTC)


@pytest.fixture
def begin(client: TestClient, definition: Make, service_database: Database, storage: Storage) -> Begin:
    def make(**sections: Any) -> Lab:
        answer = client.post("/v1/studies", json=definition(**sections))
        assert answer.status_code == 201, answer.text
        return Lab(answer.json(), service_database, storage)

    return make


class _Reader(HTMLParser):
    """What a page would have a browser load or run."""

    def __init__(self) -> None:
        super().__init__()
        self.loads: list[str] = []
        self.handlers: list[str] = []
        self.tags: list[str] = []

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append(tag)
        for name, value in attrs:
            if name.startswith("on") or (value or "").strip().lower().startswith("javascript:"):
                self.handlers.append(f"{tag} {name}")
            if name in ("src", "srcset", "poster", "data") or (tag == "link" and name == "href"):
                self.loads.append(value or "")


def read(page: str) -> _Reader:
    reader = _Reader()
    reader.feed(page)
    return reader


def text_of(page: str) -> str:
    """Its words, without tags."""
    return " ".join(
        re.sub(r"<[^>]*>", " ", re.sub(r"<script.*?</script>", "", page, flags=re.DOTALL)).split()
    )


def get(client: TestClient, path: str, status: int = 200) -> str:
    answer = client.get(path, headers=BROWSER)
    assert (answer.status_code, answer.headers["content-type"]) == (status, "text/html; charset=utf-8"), path
    return answer.text


def figures(page: str) -> dict[str, Any]:
    """Each plot's data by its name."""
    found = re.findall(
        r'data-figure="([\w-]+)".*?<script type="application/json">(.*?)</script>', page, re.DOTALL
    )
    return {name: json.loads(document) for name, document in found}


def run_some(lab: Lab) -> None:
    """A study with trials that completed, one that diverged, one that failed and one that was lost."""
    lab.advance(StudyState.RUNNING)
    lab.complete(2.0, rungs=[(3.0, 3.5), (2.0, 2.1)])
    lab.complete(1.5, rungs=[(2.5, 3.5), (1.5, 2.1)])
    lab.complete(9.0, end=AttemptState.DIVERGED)
    number, _ = lab.ask()
    lab.attempt(number, end=AttemptState.LOST)
    lab.attempt(number, 2, resumed_at_examples=100)


def change(database: Database, work: Callable[[Study], None]) -> None:
    with database.write() as session:
        for study in session.scalars(select(Study)):
            work(study)


# -- studies -------------------------------------------------------------------------------------------


def test_a_running_study_has_a_report(client: TestClient, begin: Begin) -> None:
    lab = begin()
    run_some(lab)
    page = get(client, PAGE)
    text = text_of(page)
    assert "The study is running" in text
    assert "Trial 1 is the best of 2 completed trials: eval_loss 1.5, 25.0% lower than the second" in text
    assert "One run says nothing about luck" in text
    assert "1 trial diverged." in text
    assert "1 attempt was lost" in text
    assert "1 went on from a checkpoint" in text
    drawn = figures(page)
    assert set(drawn) == {"best-by-examples", "best-by-hours", "curves", "parallel", "timeline"}
    names = [trace["name"] for trace in drawn["curves"]["data"]]
    assert names == ["completed", "trial 1, the best"]
    assert "resumed from a checkpoint" in [trace["name"] for trace in drawn["timeline"]["data"]]
    # While it runs the page asks again; its end is the last change.
    assert f'data-watch="/v1/studies/{lab.id} ' in page
    lab.advance(StudyState.COMPLETED)
    assert 'data-watch=""' in get(client, f"/reports/studies/{lab.id}")


def test_what_a_page_watches_is_there(client: TestClient, begin: Begin) -> None:
    begin()
    for path in ("/", PAGE):
        [watched] = re.findall(r'data-watch="([^"]*)"', get(client, path))
        addresses = watched.replace("&amp;", "&").split()
        assert addresses
        for each in addresses:
            assert client.get(each).status_code == 200, each


def test_a_study_that_waits_has_a_report(client: TestClient, begin: Begin) -> None:
    begin()
    page = get(client, PAGE)
    assert "No trial has completed yet." in page
    assert figures(page) == {}
    assert "The best recipe" not in page


def test_costs_have_a_front_and_the_recipe_can_be_copied(client: TestClient, begin: Begin) -> None:
    lab = begin(objective={"metric": "eval_loss", "costs": ["trainable_parameters"]}, recipe={"epochs": 2})
    for value, cost in ((1.0, 400.0), (2.0, 100.0), (1.5, 500.0)):
        lab.complete(value, costs=[cost])
    page = get(client, PAGE)
    front = next(t for t in figures(page)["front-0"]["data"] if t["name"] == "Pareto front")
    assert (front["x"], front["y"]) == ([100.0, 400.0], [2.0, 1.0])
    recipe = re.search(r'<pre id="recipe-yaml"[^>]*><code>(.*?)</code>', page, re.DOTALL)
    assert recipe is not None
    params = client.get("/v1/studies/support-tone/best").json()["params"]
    assert yaml.safe_load(recipe[1]) == {"recipe": {"epochs": 2, **params}}


def test_an_objective_that_is_measured_at_the_end_alone_shows_the_eval_loss(
    client: TestClient, begin: Begin
) -> None:
    lab = begin()
    number, _ = lab.ask()
    lab.attempt(number)
    lab.report(number, 100, {"eval_loss": 2.5}, 2.4)
    lab.report(number, 200, {"eval_loss": 1.5}, 1.4)
    trace = figures(get(client, PAGE))["curves"]["data"][0]
    assert (trace["x"], trace["y"]) == ([100, 200, None], [2.5, 1.5, None])


def test_foreign_text_is_text(client: TestClient, begin: Begin, service_database: Database) -> None:
    lab = begin(model={"id": "org/model"})
    lab.advance(StudyState.RUNNING)
    lab.complete(1.0, rungs=[(2.0, 2.0), (1.0, 1.0)])

    def spoil(study: Study) -> None:
        study.reason, study.state = FOREIGN, StudyState.FAILED
        study.definition = {**study.definition, "model": {**study.definition["model"], "id": FOREIGN}}
        study.preparation = {"notes": [FOREIGN]}

    change(service_database, spoil)
    with service_database.write() as session:
        session.add(Device(id="box/GPU-0", put_aside_at=FIRST, reason=FOREIGN))
        schedule = Schedule(
            name="nightly", cron="0 2 * * *", timezone="UTC", definition={}, next_fire_at=FIRST
        )
        session.add(schedule)
        session.flush()
        session.add(
            ScheduleEvent(
                schedule_id=schedule.id,
                schedule_name="nightly",
                kind="skipped",
                message=FOREIGN,
                fired_for=FIRST,
            )
        )
        [study] = session.scalars(select(Study))
        study.schedule_id, study.schedule_name, study.fired_for = schedule.id, "nightly", FIRST
    for path in ("/", PAGE, "/reports/schedules/nightly", f"{PAGE}/file", "/reports/schedules/nightly/file"):
        page = get(client, path)
        assert "&lt;script&gt;alert(1)" in page, path
        found = read(page)
        assert "<script>alert(1)" not in page
        assert "img" not in found.tags
        assert found.handlers == []


@on_sqlite
def test_a_range_test_has_a_page(client: TestClient, definition: Make) -> None:
    client.post("/v1/range-tests", json=definition())
    page = get(client, "/reports/studies/support-tone.range-test")
    assert "No corner of the search space has been swept yet." in page
    expect_problem(client.get("/reports/studies/support-tone.range-test/file"), 409)


def test_a_study_of_another_version_has_a_page(
    client: TestClient, begin: Begin, service_database: Database
) -> None:
    run_some(begin())

    def spoil(study: Study) -> None:
        study.definition = {**study.definition, "task": "of another version"}

    change(service_database, spoil)
    page = get(client, PAGE)
    assert "This version cannot read the stored definition." in page


# -- schedules -----------------------------------------------------------------------------------------


def sweeps(client: TestClient, definition: Make, database: Database, prints: list[dict[str, str]]) -> str:
    """A schedule with a completed sweep for each of these fingerprints, a night apart; its id."""
    with database.write() as session:
        schedule = Schedule(
            name="nightly",
            cron="0 21 * * *",
            timezone="Europe/Berlin",
            definition=definition(),
            next_fire_at=FIRST,
        )
        session.add(schedule)
        session.flush()
        schedule_id = schedule.id
    for night, found in enumerate(prints):
        name = f"night-{night}"
        assert client.post("/v1/studies", json=definition(name=name)).status_code == 201
        with database.write() as session:
            study = session.scalars(select(Study).where(Study.name == name)).one()
            study.schedule_id, study.schedule_name = schedule_id, "nightly"
            study.fired_for = FIRST + timedelta(days=night)
            study.preparation = {"fingerprints": found}
    return schedule_id


def complete(database: Database, storage: Storage, name: str, value: float) -> None:
    with database.read() as session:
        study = session.scalars(select(Study).where(Study.name == name)).one()
        found = {"id": study.id, "name": study.name, "definition": study.definition}
    Lab(found, database, storage).complete(value)


def test_a_schedule_shows_its_nights_and_breaks_where_data_changed(
    client: TestClient, definition: Make, service_database: Database, storage: Storage
) -> None:
    same, other = {"data.eval": "sha256:a", "model": "hub:m"}, {"data.eval": "sha256:b", "model": "hub:m"}
    schedule_id = sweeps(client, definition, service_database, [same, {}, same, other])
    for night, value in ((0, 3.0), (2, 2.0), (3, 2.5)):
        complete(service_database, storage, f"night-{night}", value)
    with service_database.write() as session:
        session.add(
            ScheduleEvent(
                schedule_id=schedule_id, schedule_name="nightly", kind="skipped",
                message="night-2 is running",
                fired_for=FIRST + timedelta(days=9),
            )
        )  # fmt: skip
    page = get(client, "/reports/schedules/nightly")
    trend = figures(page)["trend"]
    assert next(t for t in trend["data"] if t["name"] == "best of a sweep")["y"] == [3.0, 2.0, None, 2.5]
    assert [each["text"] for each in trend["layout"]["annotations"]] == ["data.eval changed"]
    text = text_of(page)
    assert "data.eval changed" in text
    assert "night-2 is running" in text
    assert "1 firing made no sweep." in text
    assert "1 Mar 2026, 22:00:00 Europe/Berlin" in text
    assert get(client, f"/reports/schedules/{schedule_id}").count("<h1>nightly") == 1


def test_a_schedule_shows_its_champion_and_what_each_sweep_decided(
    client: TestClient, definition: Make, service_database: Database
) -> None:
    schedule_id = sweeps(client, definition, service_database, [{}, {}])
    assert "Champion" not in text_of(get(client, "/reports/schedules/nightly"))
    with service_database.write() as session:
        schedule = session.get_one(Schedule, schedule_id)
        study = session.scalars(select(Study).where(Study.name == "night-0")).one()
        names = {"study_id": study.id, "study_name": study.name}
        session.add(
            ContestRow(
                schedule_id=schedule_id, **names, decision="crowned", why="the first", metric="eval_loss"
            )
        )
        reigns.enthrone(
            session, schedule, **names, trial_number=3, adapter="/a", lineage={}, why="it is <the> first",
            ended_why="",
        )  # fmt: skip
    text = text_of(get(client, "/reports/schedules/nightly"))
    assert re.search(
        r"Trial 3 of night-0 is the best adapter so far, since [^:]+:\d\d:\d\d [^:]+: it is", text
    )
    assert "it is &lt;the&gt; first" in text
    assert "crowned : the first" in text
    assert "nightsweep champion nightly --download nightly-champion" in text


def test_a_removed_schedule_still_has_its_page(
    client: TestClient, definition: Make, service_database: Database
) -> None:
    sweeps(client, definition, service_database, [{}])
    assert client.delete("/v1/schedules/nightly").status_code == 204
    page = get(client, "/reports/schedules/nightly")
    assert "The schedule was removed." in page
    assert "night-0" in page


# -- overview ------------------------------------------------------------------------------------------


def test_the_overview_shows_what_runs_what_waits_and_what_failed(
    client: TestClient, begin: Begin, definition: Make, service_database: Database
) -> None:
    assert "There are no studies yet." in get(client, "/")
    run_some(begin())
    for name in ("waits", "broke"):
        assert client.post("/v1/studies", json=definition(name=name)).status_code == 201
    with service_database.write() as session:
        broke = session.scalars(select(Study).where(Study.name == "broke")).one()
        broke.state, broke.reason, broke.ended_at = StudyState.FAILED, "the disk is full", FIRST
        session.add(Device(id="box/GPU-7", put_aside_at=FIRST, reason="three workers died"))
    page = get(client, "/")
    parts = dict(re.findall(r'<section data-part="(\w+)".*?>(.*?)</section>', page, re.DOTALL))
    assert "support-tone" in parts["running"]
    assert "3 of 4 trials ended" in text_of(parts["running"])
    assert "Best eval_loss so far 1.5" in text_of(parts["running"])
    assert "waits" in parts["waiting"]
    assert "the disk is full" in parts["failed"]
    assert "three workers died" in parts["workers"]
    assert 'href="/reports/studies/support-tone"' in page
    assert 'href="/dashboard"' in page


# -- every page ----------------------------------------------------------------------------------------


def test_pages_load_only_what_this_server_keeps_for_good(client: TestClient, begin: Begin) -> None:
    run_some(begin())
    for path in ("/", PAGE):
        answer = client.get(path, headers=BROWSER)
        loads = [each for each in read(answer.text).loads if not each.startswith("data:")]
        assert loads == [address("pages.css"), address("plotly.min.js"), address("pages.js")]
        policies = answer.headers.get_list("content-security-policy")
        assert "default-src 'none'; script-src 'self'; " in policies[0]
        assert "unsafe-eval" not in policies[0]
        assert not re.search(r"<script(?![^>]*\bsrc=)(?! type=\"application/json\")", answer.text)
    for each in loads:
        asset = client.get(each)
        assert asset.headers["cache-control"] == "public, max-age=31536000, immutable"
        assert asset.headers["content-encoding"] == "gzip"
        assert client.get(each, headers={"accept-encoding": "identity"}).content == asset.content
    other = client.get("/pages/of-another-version/pages.js")
    assert (other.status_code, other.headers["cache-control"]) == (200, "no-cache")
    expect_problem(client.get("/pages/0/settings.py"), 404)


def test_a_file_has_everything_in_it(client: TestClient, begin: Begin) -> None:
    run_some(begin())
    answer = client.get(f"{PAGE}/file", headers=BROWSER)
    assert answer.headers["content-disposition"] == 'attachment; filename="support-tone-report.html"'
    found = read(answer.text)
    assert [each for each in found.loads if not each.startswith("data:")] == []
    assert not re.search(r"""@import|url\(["']?(?!data:)http""", answer.text.split("</style>")[0])
    assert "<a " not in answer.text.split("<script>")[0].replace('<a class="skip"', "")
    assert set(figures(answer.text)) == set(figures(get(client, PAGE)))


def test_errors_are_pages_for_browsers_and_problems_for_programs(client: TestClient) -> None:
    for path in ("/reports/studies/nothing", "/reports/schedules/nothing", "/reports/studies/<b>"):
        page = get(client, path, 404)
        assert "There is no" in page
        assert "<b>" not in page
        expect_problem(client.get(path), 404)


@on_sqlite
def test_pages_are_for_reading_and_head_is_answered(client: TestClient, begin: Begin) -> None:
    begin()
    for path in ("/", PAGE, f"{PAGE}/file"):
        assert client.head(path).status_code == 200
        assert client.post(path).status_code == 405


@on_sqlite
def test_pages_need_the_key(settings: Settings) -> None:
    with TestClient(
        create_app(settings.model_copy(update={"api_key": SecretStr("k" * 20)})), base_url=LOCAL
    ) as guarded:
        for path in ("/", PAGE, "/reports/schedules/x", address("pages.css")):
            assert expect_problem(guarded.get(path), 401)["title"] == "Unauthorized"
            led = guarded.get(path, headers=BROWSER, follow_redirects=False)
            assert (led.status_code, led.headers["location"].partition("?")[0]) == (303, "/login")


def test_who_has_logged_in_can_log_out(settings: Settings) -> None:
    own = settings.model_copy(update={"api_key": SecretStr("k" * 20)})
    with TestClient(create_app(own), base_url=LOCAL) as guarded:
        by_key = guarded.get("/", headers={**BROWSER, "authorization": f"Bearer {'k' * 20}"})
        assert "/logout" not in by_key.text
        token = guarded.get("/login").text.split('name="csrf_token" value="')[1].split('"')[0]
        page = guarded.post("/login", data={"key": "k" * 20, "csrf_token": token, "next": "/"})
        assert '<a href="/logout">Log out default</a>' in page.text


def test_a_database_that_is_away_is_said(
    settings: Settings, client: TestClient, monkeypatch: pytest.MonkeyPatch
) -> None:
    def away(*_: object) -> None:
        raise OperationalError("SELECT 1", {}, database_away(settings))

    monkeypatch.setattr(overview, "read_overview", away)
    assert "The database does not answer" in get(client, "/", 503)
    expect_problem(client.get("/"), 503)
