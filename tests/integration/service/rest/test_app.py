"""The application as a whole: problems everywhere, health, the dashboard, the key, the OpenAPI document."""

from __future__ import annotations

import base64
import re
from collections.abc import Callable, Iterator
from typing import Any

import pytest
from pydantic import SecretStr
from sqlalchemy import text
from starlette.testclient import TestClient

from search_spaces.parsing.document import parse_definition
from service.app import create_app
from service.db.database import open_database
from service.health import readiness
from service.maintenance.schema import VERSION_TABLE, upgrade
from service.optuna_store.asking import ask
from service.optuna_store.storage import Storage, close_storage, open_storage
from service.optuna_store.studies import ensure_study
from service.settings import Settings
from tests.support.service.api import LOCAL, database_away, expect_problem

Make = Callable[..., dict[str, Any]]
KEY = "correct horse"
# Nothing here reaches the database, so one of the two is enough.
on_sqlite = pytest.mark.parametrize("backend", ["sqlite"], indirect=True)


API_ALONE = {"exclude": "coordinator"}
OPEN: list[tuple[str, dict[str, str]]] = [("/healthz", {}), ("/readyz", API_ALONE)]


@pytest.fixture(autouse=True)
def fresh_readiness(monkeypatch: pytest.MonkeyPatch) -> None:
    """Every question is answered anew, however busy the machine is."""
    monkeypatch.setattr(readiness, "CACHE_SECONDS", 0.0)
    monkeypatch.setattr(readiness, "ANSWER_SECONDS", 120.0)


@pytest.fixture
def guarded(settings: Settings) -> Iterator[TestClient]:
    """A client of a server that wants its key."""
    with TestClient(
        create_app(settings.model_copy(update={"api_key": SecretStr(KEY)})), base_url=LOCAL
    ) as client:
        yield client


def _basic(user: str, password: str) -> str:
    return "Basic " + base64.b64encode(f"{user}:{password}".encode()).decode()


@on_sqlite
@pytest.mark.parametrize(
    ("method", "path", "status"),
    [
        ("GET", "/nothing", 404),
        ("GET", "/v1", 404),
        ("GET", "/v1/studies/", 404),
        ("GET", "/v1/studies/a/b/c", 404),
        ("GET", "/dashboardish", 404),
        ("DELETE", "/v1/studies", 405),
        ("PUT", "/v1/studies/a", 405),
        ("GET", "/v1/studies/a/cancel", 405),
        ("POST", "/healthz", 405),
        ("TRACE", "/v1/studies", 405),
    ],
)
def test_what_is_not_there_is_a_problem(client: TestClient, method: str, path: str, status: int) -> None:
    answer = client.request(method, path)
    assert (answer.status_code, answer.headers["content-type"]) == (status, "application/problem+json")
    problem = answer.json()
    assert set(problem) == {"type", "title", "status", "detail", "instance", "faults"}
    assert (problem["status"], problem["instance"]) == (status, path)
    assert ("allow" in answer.headers) == (status == 405)


def test_an_unexpected_error_is_a_problem_that_gives_nothing_away(settings: Settings) -> None:
    app = create_app(settings)

    @app.get("/break")
    def _break() -> None:
        raise KeyError("the secret")

    with TestClient(app, base_url=LOCAL, raise_server_exceptions=False) as client:
        answer = client.get("/break")
    assert (answer.status_code, answer.headers["content-type"]) == (500, "application/problem+json")
    assert "secret" not in answer.text


def test_readiness_fails_when_the_schema_is_not_ours(empty_settings: Settings) -> None:
    upgrade(empty_settings)
    database = open_database(empty_settings)
    with TestClient(create_app(empty_settings), base_url=LOCAL) as client:
        with database.write() as session:
            session.execute(text(f"UPDATE {VERSION_TABLE} SET version_num = 'other'"))
        answer = client.get("/readyz", params=API_ALONE)
        assert [fault["path"] for fault in answer.json()["faults"]] == ["database"]
        assert (answer.status_code, answer.headers["content-type"]) == (503, "application/problem+json")
        assert client.get("/healthz").status_code == 200
    database.dispose()


def test_readiness_fails_when_optunas_tables_are_not_ours(empty_settings: Settings) -> None:
    upgrade(empty_settings)
    storage = open_storage(empty_settings)
    with TestClient(create_app(empty_settings), base_url=LOCAL) as client:
        with storage.engine.begin() as connection:
            connection.execute(text("DELETE FROM alembic_version"))
        problem = expect_problem(client.get("/readyz", params=API_ALONE), 503)
        assert [fault["path"] for fault in problem["faults"]] == ["optuna"]
    close_storage(storage)


@pytest.mark.parametrize("which", ["database", "storage"])
def test_a_database_that_is_away_is_a_503_for_as_long_as_it_is(
    client: TestClient,
    settings: Settings,
    definition: Make,
    which: str,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    assert client.post("/v1/studies", json=definition()).status_code == 201
    resources = client.app.state.resources  # type: ignore[attr-defined]
    engines = [getattr(resources, which).engine]
    engines += [resources.database.writing] if which == "database" else []

    def refuse(*_: object, **__: object) -> None:
        raise database_away(settings)

    with monkeypatch.context() as patched:
        for engine in engines:
            engine.dispose()
            patched.setattr(engine.dialect, "connect", refuse)
        if which == "database":
            expect_problem(client.get("/v1/studies/support-tone"), 503)
            expect_problem(client.post("/v1/studies/support-tone/cancel"), 503)
        else:  # which few answers need
            assert client.get("/v1/studies/support-tone/trials").status_code == 200
            expect_problem(client.get("/v1/studies/support-tone/importance"), 503)
        problem = expect_problem(client.get("/readyz", params=API_ALONE), 503)
        assert {fault["path"] for fault in problem["faults"]} == {
            {"database": "database", "storage": "optuna"}[which]
        }
    assert client.get("/readyz", params=API_ALONE).status_code == 200
    assert client.post("/v1/studies/support-tone/cancel").status_code == 202


def test_search_spaces_are_listed_and_shown(client: TestClient, definition: Make) -> None:
    items = client.get("/v1/search-spaces").json()["items"]
    assert {"qlora-quick", "qlora-default", "qlora-thorough"} <= {item["name"] for item in items}
    for item in items:
        assert client.get(f"/v1/search-spaces/{item['name']}").json() == item
        search = {"algorithm": "random", "trials": 2, "space": item["parameters"]}
        answer = client.post(
            "/v1/studies", json=definition(name=item["name"], search=search, recipe=item["recipe"])
        )
        assert answer.status_code == 201, answer.text
    assert client.get("/v1/search-spaces/nothing").status_code == 404


def test_the_dashboard_shows_a_study(client: TestClient, storage: Storage, definition: Make) -> None:
    study = ensure_study(storage, "support-tone", parse_definition(definition()))
    ask(study, parse_definition(definition()))
    listed = client.get("/api/studies").json()["study_summaries"]
    assert [s["study_name"] for s in listed] == ["support-tone"]
    number = listed[0]["study_id"]
    assert len(client.get(f"/api/studies/{number}").json()["trials"]) == 1
    assert "Optuna Dashboard" in client.get(f"/dashboard/studies/{number}").text
    assert client.get(f"/csv/{number}").status_code == 200
    assert client.head("/dashboard").status_code == 200


@on_sqlite
def test_the_root_is_a_page_of_ours_that_leads_to_the_dashboard(client: TestClient) -> None:
    answer = client.get("/")
    assert (answer.status_code, answer.headers["content-type"]) == (200, "text/html; charset=utf-8")
    assert 'href="/dashboard"' in answer.text


@on_sqlite
def test_the_documentation_s_page_names_this_server_alone(client: TestClient) -> None:
    page = client.get("/docs")
    assert (page.status_code, page.headers["content-type"]) == (200, "text/html; charset=utf-8")
    named = re.findall(r"""(?:src|href)="([^"]*)"|url: '([^']*)'""", page.text)
    served = {path: client.get(path) for path in (left or right for left, right in named)}
    assert {path: answer.headers["content-type"] for path, answer in served.items()} == {
        "/static-offline-docs/swagger-ui.css": "text/css; charset=utf-8",
        "/static-offline-docs/swagger-ui-bundle.js": "text/javascript; charset=utf-8",
        "/static-offline-docs/favicon.png": "image/png",
        "/openapi.json": "application/json",
    }
    assert {answer.status_code for answer in served.values()} == {200}
    assert "//" not in re.sub(r"<!--.*?-->", "", page.text)  # no other host
    assert '"validatorUrl": null' in page.text


@on_sqlite
def test_no_page_may_load_anything_from_elsewhere(client: TestClient) -> None:
    for path in ("/docs", "/docs/oauth2-redirect", "/dashboard", "/v1/studies", "/x"):
        assert (
            client.get(path).headers.get_list("content-security-policy")[-1].startswith("default-src 'self'")
        )
    assert client.get("/redoc").status_code == 404  # its script loads a picture from another host


@on_sqlite
@pytest.mark.parametrize("encoding", [None, "identity", "gzip", "br"])
def test_the_dashboards_script_is_served_whatever_encoding_is_asked_for(
    client: TestClient, encoding: str | None
) -> None:
    client.headers.pop("accept-encoding")
    headers = {} if encoding is None else {"accept-encoding": encoding}
    answer = client.get("/static/bundle.js", headers=headers)
    assert answer.status_code == 200
    assert len(answer.content) > 100_000


def test_a_query_of_raw_bytes_reaches_the_dashboard_unharmed(client: TestClient) -> None:
    assert client.get("/api/studies?x=%FF&y=é").status_code == 200


@on_sqlite
@pytest.mark.parametrize("method", ["POST", "PUT", "PATCH", "DELETE", "OPTIONS"])
@pytest.mark.parametrize("path", ["/api/studies", "/api/studies/1", "/dashboard", "/incompatible-rdb-schema"])
def test_the_dashboard_is_for_reading_only(
    client: TestClient, storage: Storage, definition: Make, method: str, path: str
) -> None:
    ensure_study(storage, "support-tone", parse_definition(definition()))
    answer = client.request(method, path)
    assert (answer.status_code, answer.headers["allow"]) == (405, "GET, HEAD")
    assert answer.headers["content-type"] == "application/problem+json"
    assert [s.study_name for s in storage.get_all_studies()] == ["support-tone"]


@on_sqlite
@pytest.mark.parametrize(
    "path",
    [
        "/v1/studies",
        "/dashboard",
        "/api/studies",
        "/static/bundle.js",
        "/openapi.json",
        "/docs",
        "/static-offline-docs/swagger-ui.css",
        "/x",
    ],
)
def test_nothing_is_shown_without_the_key(guarded: TestClient, path: str) -> None:
    answer = guarded.get(path)
    assert (answer.status_code, answer.headers["content-type"]) == (401, "application/problem+json")
    assert answer.headers["www-authenticate"].startswith("Basic ")


@on_sqlite
@pytest.mark.parametrize(
    "header",
    [
        "Bearer wrong",
        "Bearer ",
        "Bearer",
        f"Token {KEY}",
        KEY,
        "Basic !!!",
        "Basic " + base64.b64encode(KEY.encode()).decode(),
        _basic(KEY, ""),
        _basic("me", KEY + "x"),
    ],
)
def test_a_wrong_key_is_refused(guarded: TestClient, header: str) -> None:
    assert guarded.get("/v1/studies", headers={"authorization": header}).status_code == 401


@on_sqlite
@pytest.mark.parametrize(
    "header", [f"Bearer {KEY}", f"bearer {KEY}", _basic("anybody", KEY), _basic("", KEY)]
)
def test_the_key_opens_the_api_and_the_dashboard(guarded: TestClient, header: str) -> None:
    for path in ("/v1/studies", "/dashboard", "/api/studies"):
        assert guarded.get(path, headers={"authorization": header}).status_code == 200


def test_the_health_checks_need_no_key(guarded: TestClient) -> None:
    assert [guarded.get(path, params=params).status_code for path, params in OPEN] == [200, 200]


@on_sqlite
def test_the_openapi_document_declares_problems_and_nothing_of_fastapis_own(client: TestClient) -> None:
    document = client.get("/openapi.json").json()
    assert "HTTPValidationError" not in str(document)
    declared = {
        f"{method} {path}": {
            status
            for status, response in operation["responses"].items()
            if "application/problem+json" in response.get("content", {})
        }
        for path, operations in document["paths"].items()
        for method, operation in operations.items()
    }
    # 422 everywhere: each of them refuses a query parameter that it does not have.
    everywhere, body = {"401", "403", "422", "503"}, {"400", "408", "413", "415"}
    asked = {"404", "408", "409", "412", "413"}
    assert {operation: statuses - everywhere for operation, statuses in declared.items()} == {
        "get /healthz": set(),
        "get /readyz": set(),
        "get /metrics": set(),
        "get /v1/search-spaces": set(),
        "get /v1/search-spaces/{name}": {"404"},
        "get /v1/studies": set(),
        "post /v1/studies": body | {"409", "429"},
        "get /v1/studies/{study}": {"404"},
        "patch /v1/studies/{study}": asked | body,
        "delete /v1/studies/{study}": asked,
        "post /v1/studies/{study}/restore": asked,
        "post /v1/studies/{study}/archive": asked,
        "post /v1/studies/{study}/unarchive": asked,
        "post /v1/studies/{study}/extend": asked | body | {"429"},
        "get /v1/studies/{study}/enqueued": {"404"},
        "post /v1/studies/{study}/trials": asked | body,
        "post /v1/studies/{study}/trials/{number}/stop": asked | body,
        "post /v1/studies/{study}/cancel": asked,
        "post /v1/studies/{study}/pause": asked,
        "post /v1/studies/{study}/resume": asked,
        "get /v1/studies/{study}/events": {"404"},
        "get /v1/studies/{study}/events/stream": {"404"},
        "get /v1/events": set(),
        "get /v1/events/stream": set(),
        "get /v1/studies/{study}/report": {"404", "409"},
        "get /v1/studies/{study}/importance": {"404", "409"},
        "get /v1/studies/{study}/pareto-front": {"404", "409"},
        "get /v1/studies/{study}/trials": {"404"},
        "get /v1/studies/{study}/attempts": {"404"},
        "get /v1/studies/{study}/trials/{number}": {"404"},
        "get /v1/studies/{study}/trials/{number}/log": {"404"},
        "get /v1/studies/{study}/best": {"404", "409"},
        "get /v1/studies/{study}/trials/{number}/adapter": {"404"},
        "get /v1/range-tests": set(),
        "post /v1/range-tests": body | {"429"},
        "get /v1/range-tests/{range_test}": {"404"},
        "post /v1/range-tests/{range_test}/cancel": asked,
        "get /v1/schedules": set(),
        "post /v1/schedules": body | {"409"},
        "get /v1/schedules/{schedule}": {"404"},
        "patch /v1/schedules/{schedule}": body | {"404", "409", "412"},
        "get /v1/schedules/{schedule}/studies": {"404"},
        "get /v1/schedules/{schedule}/history": {"404"},
        "get /v1/schedules/{schedule}/firings": {"404"},
        "get /v1/schedule-preview": set(),
        "post /v1/schedules/{schedule}/run": asked | {"429"},
        "delete /v1/schedules/{schedule}": {"404", "412"},
        "get /v1/studies/{study}/access": {"404"},
        "put /v1/studies/{study}/access": body | {"404"},
        "get /v1/schedules/{schedule}/access": {"404"},
        "put /v1/schedules/{schedule}/access": body | {"404"},
        "get /v1/me": set(),
        "get /v1/keys": set(),
        "post /v1/keys": body,
        "get /v1/keys/{key}": {"404"},
        "patch /v1/keys/{key}": body | {"404", "409"},
        "post /v1/keys/{key}/rotate": body | {"404", "409"},
        "delete /v1/keys/{key}": {"404"},
        "get /v1/audit": set(),
        "get /v1/schedules/{schedule}/champion": {"404"},
        "get /v1/schedules/{schedule}/champion/history": {"404"},
        "get /v1/schedules/{schedule}/champion/adapter": {"404"},
        "post /v1/schedules/{schedule}/champion": body | {"404", "409"},
        "post /v1/schedules/{schedule}/champion/rollback": {"404", "408", "409", "413"},
        "get /v1/workers": set(),
        "post /v1/workers/devices/{device}/restore": {"404", "408", "413"},
    }
    for operation, statuses in declared.items():
        if operation.endswith(("/healthz", "/readyz")):
            assert statuses <= {"422", "503"}
        else:
            assert everywhere <= statuses


@on_sqlite
def test_the_openapi_document_declares_the_headers_of_changes(client: TestClient) -> None:
    paths = client.get("/openapi.json").json()["paths"]
    for path, operations in paths.items():
        for method, operation in operations.items():
            what = f"{method} {path}"
            sent = {p["name"] for p in operation.get("parameters", ()) if p["in"] == "header"}
            answers = {h for r in operation["responses"].values() for h in r.get("headers", ())}
            of_one = re.match(r"/v1/(studies|schedules|range-tests)/\{", path) is not None
            # Every POST can be repeated, and so can all changes of studies.
            repeatable = method == "post" or what in (
                "patch /v1/studies/{study}",
                "delete /v1/studies/{study}",
            )
            assert ("idempotency-key" in sent) == repeatable, what
            assert ("Idempotent-Replayed" in answers) == repeatable, what
            # What has a revision can be insisted on. Champions and sharing have none of their own.
            without = path.endswith("/access") or "/champion" in path
            revised = method in ("post", "patch", "delete") and of_one and not without
            assert ("if-match" in sent) == revised, what
            makes = method == "post" and (path.count("/") == 2 or path.endswith(("/run", "/rotate")))
            assert ("Location" in answers) == makes, what
            shown = method == "get" and of_one and path.count("/") == 3
            made = makes and not path.startswith("/v1/keys")
            changed = revised and "/trials" not in path and what != "delete /v1/schedules/{schedule}"
            cached = "304" in operation["responses"]
            assert ("ETag" in answers) == (shown or made or changed or cached), what
            assert ("if-none-match" in sent) == cached, what


@on_sqlite
def test_the_openapi_document_says_when_a_key_is_needed(guarded: TestClient) -> None:
    document = guarded.get("/openapi.json", headers={"authorization": f"Bearer {KEY}"}).json()
    assert "401" in document["paths"]["/v1/studies"]["get"]["responses"]
    assert "401" not in document["paths"]["/healthz"]["get"]["responses"]
    assert set(document["components"]["securitySchemes"]) == {"bearer", "basic"}
