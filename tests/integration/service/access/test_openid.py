"""Logging in at an OpenID Connect provider that signs with real keys, and at one that cheats."""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Iterator
from typing import Any
from urllib.parse import parse_qs, urlsplit

import httpx
import pytest
from pydantic import SecretStr, ValidationError
from sqlalchemy import select
from starlette.testclient import TestClient

from service.access.openid.people import identity_of, owner_of, role_of
from service.access.openid.provider import Provider
from service.app import create_app
from service.db.database import Database
from service.db.kinds import Role
from service.db.models import AuditEntry, PendingLogin
from service.embedded.environment import settings_environment
from service.settings import Settings
from tests.support.fakes.openid import CLIENT_ID, CLIENT_SECRET, ISSUER, FakeProvider
from tests.support.service.access import Browser
from tests.support.service.api import LOCAL, expect_problem, on_sqlite

_CHANGES = {
    "openid_issuer": ISSUER,
    "openid_client_id": CLIENT_ID,
    "openid_client_secret": SecretStr(CLIENT_SECRET),
    "openid_admins": ("group:operators",),
    "openid_submitters": ("@example.org",),
}


@pytest.fixture
def with_openid(settings: Settings) -> Settings:
    return settings.model_copy(update=_CHANGES)


@pytest.fixture
def provider() -> FakeProvider:
    return FakeProvider()


@pytest.fixture
def app(with_openid: Settings, provider: FakeProvider) -> Iterator[Any]:
    with TestClient(create_app(with_openid), base_url=LOCAL) as client:
        client.app.state.openid = Provider(with_openid, transport=provider.transport)  # type: ignore[attr-defined]
        yield client.app


@pytest.fixture
def visitor(app: Any) -> Browser:
    return Browser(app, "192.0.2.1", LOCAL)


def _begin(visitor: Browser, provider: FakeProvider, wanted: str = "/v1/me") -> dict[str, str]:
    """To the provider, which agrees: what the browser brings back."""
    page = visitor.open(f"/login?next={wanted}")
    assert "/login/openid?next=" in page.text
    away = visitor.http.get("/login/openid", params={"next": wanted})
    assert (away.status_code, away.headers["location"].split("?")[0]) == (303, f"{ISSUER}/authorize")
    return provider.agree(away.headers["location"])


def _finish(visitor: Browser, brought: dict[str, str]) -> httpx.Response:
    return visitor.http.get("/login/openid/callback", params=brought)


def test_a_person_logs_in_with_pkce_state_and_nonce(visitor: Browser, provider: FakeProvider) -> None:
    expect_problem(visitor.http.get("/v1/me"), 401)  # a server with a provider is never open
    back = _finish(visitor, _begin(visitor, provider))
    assert back.status_code == 200
    assert '<meta http-equiv="refresh" content="0;url=/v1/me">' in back.text
    me = visitor.http.get("/v1/me").json()
    assert (me["owner"], me["role"], me["via"]) == ("alice@example.org", "submitter", "openid")
    assert me["subject"] == "s-1"
    assert len(provider.token_requests) == 1


def test_a_state_is_for_one_login_of_the_browser_that_began_it(
    app: Any, visitor: Browser, provider: FakeProvider, service_database: Database
) -> None:
    brought = _begin(visitor, provider)
    mallory = Browser(app, "192.0.2.66", LOCAL)
    mallory.http.get("/login/openid")  # with a login of her own under way
    assert _finish(mallory, brought).status_code == 403
    assert _finish(Browser(app, "192.0.2.67", LOCAL), brought).status_code == 403
    assert _finish(visitor, {**brought, "state": "another"}).status_code == 403
    assert _finish(visitor, brought).status_code == 200
    assert _finish(visitor, brought).status_code == 403  # a second time
    assert len(provider.token_requests) == 1
    with service_database.read() as session:
        assert len(session.scalars(select(PendingLogin)).all()) == 1  # mallory's


CHEATS = (
    "signature",
    "none",
    "shared secret",
    "issuer",
    "audience",
    "expired",
    "nonce",
    "no nonce",
)


@on_sqlite
@pytest.mark.parametrize("cheat", CHEATS)
def test_a_forged_id_token_lets_nobody_in(
    visitor: Browser, provider: FakeProvider, service_database: Database, cheat: str
) -> None:
    brought = _begin(visitor, provider)
    provider.cheat = cheat
    refused = _finish(visitor, brought)
    assert (refused.status_code, "ID token" in refused.text) == (403, True)
    assert visitor.http.get("/v1/me").status_code == 401
    with service_database.read() as session:
        entry = session.scalars(select(AuditEntry)).one()
        assert (entry.outcome, entry.owner) == ("refused", None)


@on_sqlite
@pytest.mark.parametrize(
    ("cheat", "begun"), [("away", False), ("issuer of discovery", False), ("no ID token", True)]
)
def test_a_provider_that_does_not_answer_is_said(
    visitor: Browser, provider: FakeProvider, cheat: str, begun: bool
) -> None:
    if begun:
        brought = _begin(visitor, provider)
        provider.cheat = cheat
        answer = _finish(visitor, brought)
    else:
        provider.cheat = cheat
        answer = visitor.http.get("/login/openid")
    assert (answer.status_code, answer.headers["content-type"]) == (502, "text/html; charset=utf-8")
    assert ISSUER in answer.text


@on_sqlite
def test_a_code_that_the_provider_does_not_know_is_refused(visitor: Browser, provider: FakeProvider) -> None:
    brought = _begin(visitor, provider)
    assert _finish(visitor, {**brought, "code": "stolen"}).status_code == 403
    brought = _begin(visitor, provider)
    refused = _finish(visitor, {"state": brought["state"], "error": "<b>access_denied</b>"})
    assert (refused.status_code, "<b>" in refused.text) == (403, False)


def test_who_is_taken_off_the_lists_has_no_session(
    app: Any, visitor: Browser, provider: FakeProvider, with_openid: Settings
) -> None:
    _finish(visitor, _begin(visitor, provider))
    token = visitor.http.cookies["nightsweep"]
    less = with_openid.model_copy(update={"openid_submitters": ()})
    with TestClient(create_app(less), base_url=LOCAL) as client:
        expect_problem(client.get("/v1/me", headers={"cookie": f"nightsweep={token}"}), 401)


@on_sqlite
@pytest.mark.parametrize(
    ("claims", "role", "owner"),
    [
        ({"email": "Alice@Example.org", "email_verified": True}, Role.SUBMITTER, "alice@example.org"),
        ({"email": "alice@example.org", "email_verified": False}, None, "openid-"),
        ({"email": "alice@example.org", "email_verified": "true"}, None, "openid-"),
        ({"email": "alice@example.org"}, None, "openid-"),
        ({"email": "alice@evil.org", "email_verified": True}, None, "alice@evil.org"),
        ({"email": "a@example.org@evil.org", "email_verified": True}, None, "a@example.org@evil.org"),
        ({"groups": ["operators"]}, Role.ADMIN, "openid-"),
        ({"groups": "operators"}, None, "openid-"),
        ({"groups": ["operators "], "preferred_username": "default"}, None, "openid-"),
        ({"email": "default", "email_verified": True}, None, "openid-"),
    ],
)
def test_who_somebody_is(
    with_openid: Settings, claims: dict[str, Any], role: Role | None, owner: str
) -> None:
    identity = identity_of(claims, with_openid)
    assert role_of(identity, with_openid) == role
    assert owner_of(identity, ISSUER, "s-1").startswith(owner)


@on_sqlite
def test_where_a_login_leads_is_a_path_of_this_server(visitor: Browser, provider: FakeProvider) -> None:
    away = visitor.http.get("/login/openid", params={"next": "//evil.example"})
    back = _finish(visitor, provider.agree(away.headers["location"]))
    assert 'url=/dashboard"' in back.text
    redirect = parse_qs(urlsplit(away.headers["location"]).query)["redirect_uri"]
    assert redirect == [f"{LOCAL}/login/openid/callback"]


@on_sqlite
def test_a_server_without_a_provider_has_no_such_login(settings: Settings) -> None:
    with TestClient(create_app(settings), base_url=LOCAL) as client:
        assert expect_problem(client.get("/login/openid"), 404)["detail"].endswith("at /login.")


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"openid_issuer": "http://login.example.org"}, "https"),
        ({"openid_issuer": ISSUER}, "NIGHTSWEEP_OPENID_CLIENT_ID"),
        ({"openid_admins": "alice"}, "e-mail"),
        ({"trusted_proxies": "proxy"}, "10.0.0.0/8"),
    ],
)
def test_settings_that_do_not_fit_are_said_at_the_start(
    tmp_path: Any, changes: dict[str, Any], words: str
) -> None:
    with pytest.raises(ValidationError, match=words):
        Settings(home=tmp_path, **changes)


def test_the_processes_of_serve_are_given_the_same_settings(
    with_openid: Settings, monkeypatch: pytest.MonkeyPatch
) -> None:
    whole = with_openid.model_copy(update={"trusted_proxies": ("10.0.0.0/8", "::1")})
    for name, value in settings_environment(whole).items():
        monkeypatch.setenv(name, value)
    assert Settings() == whole


def test_authlib_is_imported_by_the_first_who_logs_in_so() -> None:
    code = "import sys, service.app; print([m for m in ('authlib', 'joserfc') if m in sys.modules])"
    result = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert result.stdout.strip() == "[]"
