"""Requests that a browser was tricked into, and requests made to break the server."""

from __future__ import annotations

import gzip
import socket
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import uvicorn
from pydantic import SecretStr
from starlette.testclient import TestClient

from service import web_server
from service.app import create_app
from service.embedded.ports import free_port
from service.rest.body_limit import BodyLimit
from service.settings import Settings
from tests.support.service.api import LOCAL, Make, expect_problem, stored
from tests.support.waiting import wait_until

KEY = "correct horse"


@pytest.fixture
def backend() -> str:
    """Nothing here depends on the database."""
    return "sqlite"


def client_of(settings: Settings, base_url: str = LOCAL, **changes: Any) -> TestClient:
    return TestClient(create_app(settings.model_copy(update=changes)), base_url=base_url)


# Host: names that their owner can point to this machine


@pytest.mark.parametrize(
    "host",
    ["evil.example", "evil.example:8787", "127.0.0.1.evil.example", "localhost.evil.example", "0.0.0.0"],
)
def test_without_a_key_no_other_name_than_this_machines_own_is_answered(
    client: TestClient, host: str
) -> None:
    for path in ("/v1/studies", "/dashboard", "/api/studies", "/openapi.json"):
        problem = expect_problem(client.get(path, headers={"host": host}), 403)
        assert problem["title"] == "Unknown host"
        assert "NIGHTSWEEP_API_KEY" in problem["detail"]
    assert client.get("/healthz", headers={"host": host}).status_code == 200


@pytest.mark.parametrize(
    "host", ["localhost", "LOCALHOST:8787", "localhost.:80", "127.0.0.1", "127.8.8.8:1", "[::1]:8787"]
)
def test_this_machines_own_names_are_answered(client: TestClient, host: str) -> None:
    assert client.get("/v1/studies", headers={"host": host}).status_code == 200


def test_with_a_key_or_an_address_for_others_any_name_is_answered(settings: Settings) -> None:
    with client_of(settings, "http://gpu-box.example", api_key=SecretStr(KEY)) as client:
        assert client.get("/v1/studies", headers={"authorization": f"Bearer {KEY}"}).status_code == 200
        assert client.get("/v1/studies").status_code == 401
    with client_of(settings, "http://gpu-box.example", host="0.0.0.0") as client:
        assert client.get("/v1/studies").status_code == 200


# Origin: pages of other sites


@pytest.mark.parametrize(
    "headers",
    [
        {"origin": "https://evil.example"},
        {"origin": "null"},
        {"origin": "http://localhost:3000"},
        {"origin": "http://[broken"},
        {"sec-fetch-site": "cross-site"},
        {"sec-fetch-site": "same-site"},
        {"sec-fetch-site": "cross-site", "origin": LOCAL},
    ],
)
def test_a_page_of_another_site_changes_nothing(
    client: TestClient, definition: Make, headers: dict[str, str]
) -> None:
    answer = client.post("/v1/studies", json=definition(), headers=headers)
    assert expect_problem(answer, 403)["title"] == "Cross-site request"
    assert stored(client) == 0
    client.post("/v1/studies", json=definition())
    for method, path in (
        ("POST", "/v1/studies/support-tone/cancel"),
        ("DELETE", "/v1/schedules/x"),
        ("PATCH", "/v1/schedules/x"),
        ("PUT", "/nothing"),
    ):
        expect_problem(client.request(method, path, headers=headers), 403)
    assert client.get("/v1/studies/support-tone").json()["state"] == "queued"


def test_a_browser_that_sends_its_password_for_another_site_is_refused_all_the_same(
    settings: Settings, definition: Make
) -> None:
    with client_of(settings, api_key=SecretStr(KEY)) as client:
        headers = {"sec-fetch-site": "cross-site"}
        answer = client.post("/v1/studies", json=definition(), headers=headers, auth=("anybody", KEY))
        expect_problem(answer, 403)


@pytest.mark.parametrize(
    "headers",
    [{}, {"origin": LOCAL}, {"sec-fetch-site": "same-origin"}, {"sec-fetch-site": "none", "origin": "null"}],
)
def test_programs_and_pages_of_our_own_may_change_things(
    client: TestClient, definition: Make, headers: dict[str, str]
) -> None:
    assert client.post("/v1/studies", json=definition(), headers=headers).status_code == 201


# What every answer carries


@pytest.mark.parametrize(
    "path", ["/dashboard", "/static/bundle.js", "/v1/studies", "/nothing", "/openapi.json"]
)
def test_no_other_site_may_frame_or_embed_an_answer(client: TestClient, path: str) -> None:
    headers = client.get(path).headers
    assert headers["x-content-type-options"] == "nosniff"
    assert headers["x-frame-options"] == "DENY"
    assert "frame-ancestors 'none'" in headers["content-security-policy"]
    assert headers["cross-origin-resource-policy"] == "same-origin"
    assert "access-control-allow-origin" not in headers


def test_the_overview_names_no_host(settings: Settings) -> None:
    with client_of(settings, host="0.0.0.0") as client:
        answer = client.get("/", headers={"host": "evil.example"})
    assert answer.status_code == 200
    assert "evil.example" not in answer.text


@pytest.mark.parametrize("name", ["a%0d%0aSet-Cookie:%20x=1", "%E2%80%AEgnp", "..%2f..%2fetc", "x%00"])
def test_a_name_with_control_characters_reaches_no_header(client: TestClient, name: str) -> None:
    answer = client.get(f"/v1/studies/{name}/trials/0/adapter")
    expect_problem(answer, 404)
    assert "set-cookie" not in answer.headers


@pytest.mark.parametrize(
    "name",
    [
        "a\r\nSet-Cookie: x=1",
        "café",
        "\uff53tudy",
        "a\u202eb",
        "a b",
        'a"b',
        "../up",
        ".hidden",
        "a" * 129,
        "",
    ],
)
def test_names_are_plain_letters_so_that_paths_and_headers_can_hold_them(
    client: TestClient, definition: Make, name: str
) -> None:
    problem = expect_problem(client.post("/v1/studies", json=definition(name=name)), 422)
    assert [fault["path"] for fault in problem["faults"]] == ["name"]
    schedule = {"name": name, "cron": "0 3 * * *", "definition": definition()}
    problem = expect_problem(client.post("/v1/schedules", json=schedule), 422)
    assert [fault["path"] for fault in problem["faults"]] == ["name"]


def test_a_study_cannot_stand_in_for_another_by_taking_its_id_for_a_name(
    client: TestClient, definition: Make
) -> None:
    first = client.post("/v1/studies", json=definition()).json()
    client.post("/v1/studies", json=definition(name=first["id"]))
    assert client.get(f"/v1/studies/{first['id']}").json()["name"] == "support-tone"


# Bodies


@pytest.mark.parametrize("encoding", ["gzip", "br", "deflate", "gzip, identity", "x"])
def test_a_compressed_body_is_refused_unread(client: TestClient, encoding: str) -> None:
    headers = {"content-type": "application/json", "content-encoding": encoding}
    bomb = gzip.compress(b"[" * 10_000_000)
    problem = expect_problem(client.post("/v1/studies", content=bomb, headers=headers), 415)
    assert "without compression" in problem["detail"]


@pytest.mark.parametrize("path", ["/v1/studies?dry_run=1", "/v1/studies?dry_run=yes", "/v1/studies?dry_run="])
def test_dry_run_has_one_spelling_so_that_nobody_submits_by_mistake(
    client: TestClient, definition: Make, path: str
) -> None:
    problem = expect_problem(client.post(path, json=definition()), 422)
    assert [fault["path"] for fault in problem["faults"]] == ["query.dry_run"]
    assert stored(client) == 0


@pytest.fixture
def slow_server(settings: Settings, monkeypatch: pytest.MonkeyPatch) -> Iterator[int]:
    """The port of a real server that waits a third of a second for a body."""
    monkeypatch.setattr(BodyLimit.__init__, "__kwdefaults__", {"max_seconds": 0.3})
    port = free_port()
    server = uvicorn.Server(web_server.configuration(create_app(settings), port=port, log_level="error"))
    thread = threading.Thread(target=server.run)
    thread.start()
    wait_until(lambda: server.started, "the start of the server")
    yield port
    server.should_exit = True
    thread.join()


def test_a_body_that_never_ends_is_given_up(slow_server: int) -> None:
    head = (
        b"POST /v1/studies HTTP/1.1\r\nHost: 127.0.0.1\r\nContent-Type: application/json\r\n"
        b"Content-Length: 1000\r\n\r\n{"
    )
    with socket.create_connection(("127.0.0.1", slow_server), timeout=20) as connection:
        connection.sendall(head)
        answer = b""
        while part := connection.recv(65536):  # ends with the connection, which the server closes
            answer += part
    assert answer.startswith(b"HTTP/1.1 408 ")
    assert b"was not received within 0.3 s" in answer


def test_raw_requests_that_no_client_sends_end_in_a_refusal(slow_server: int) -> None:
    hostile = [
        b"GET /v1/studies HTTP/1.1\r\nHost: 127.0.0.1\r\nHost: evil.example\r\nConnection: close\r\n\r\n",
        b"GET /v1/studies/%ff%00 HTTP/1.1\r\nHost: 127.0.0.1\r\nConnection: close\r\n\r\n",
        b"GET /v1/../../etc/passwd HTTP/1.1\r\nHost: 127.0.0.1\r\nConnection: close\r\n\r\n",
        b"GET /static/..%2f..%2f..%2fetc%2fpasswd HTTP/1.1\r\nHost: 127.0.0.1\r\nConnection: close\r\n\r\n",
        b"POST /v1/studies HTTP/1.1\r\nHost: 127.0.0.1\r\nContent-Length: -1\r\nConnection: close\r\n\r\n",
        b"POST /v1/studies HTTP/1.1\r\nHost: 127.0.0.1\r\nContent-Length: 99999999999999999999\r\n"
        b"Content-Type: application/json\r\nConnection: close\r\n\r\n",
        b"GET /v1/studies HTTP/1.1\r\nHost: 127.0.0.1\r\nX: " + b"a" * 200_000 + b"\r\n\r\n",
    ]
    for request in hostile:
        with socket.create_connection(("127.0.0.1", slow_server), timeout=20) as connection:
            connection.sendall(request)
            status = int(connection.makefile("rb").readline().split()[1])
        assert 400 <= status < 500, (request[:60], status)


@pytest.mark.parametrize("which", ["folder", "file"])
def test_a_link_out_of_the_artifacts_is_not_followed(settings: Settings, tmp_path: Path, which: str) -> None:
    from service.errors import NotFound
    from service.trials.adapters import stream_zip

    secret = tmp_path / "secret"
    secret.mkdir()
    adapter = settings.artifacts_dir / "a"
    for folder in (secret, adapter):
        folder.mkdir(parents=True, exist_ok=True)
        for name in ("adapter_config.json", "adapter_model.safetensors"):
            (folder / name).write_text("{}")
    if which == "folder":
        (settings.artifacts_dir / "link").symlink_to(secret)
        adapter = settings.artifacts_dir / "link"
    else:
        (adapter / "adapter_config.json").unlink()
        (adapter / "adapter_config.json").symlink_to(secret / "adapter_config.json")
    with pytest.raises(NotFound):
        stream_zip(str(adapter), settings)
