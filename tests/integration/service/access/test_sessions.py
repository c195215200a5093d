"""Browsers: their login, what their cookie is, how their session ends, and what other sites cannot do."""

from __future__ import annotations

import hashlib
from collections.abc import Callable
from datetime import UTC, datetime, timedelta

import pytest
from pydantic import SecretStr
from sqlalchemy import select, update
from starlette.testclient import TestClient

from service.access.keys import commands as keys
from service.access.sessions import commands as sessions
from service.access.sessions import cookies
from service.app import create_app
from service.db.database import Database
from service.db.kinds import Role
from service.db.models import ApiKey, AuditEntry, LoginSession
from service.settings import Settings
from tests.integration.service.access.conftest import SERVER_KEY
from tests.support.service.access import Browser
from tests.support.service.api import LOCAL, Make, expect_problem, on_sqlite

Open = Callable[..., Browser]


def _key(database: Database, owner: str = "alice", role: Role = Role.SUBMITTER) -> tuple[str, str]:
    """The id and the key."""
    made = database.transact(lambda session: keys.add(session, owner, role=role))
    return made.row.id, made.key


def _cookie(token: str) -> dict[str, str]:
    return {"cookie": f"nightsweep={token}"}


def _me(browser: Browser) -> int:
    return browser.http.get("/v1/me").status_code


def test_a_browser_is_led_to_the_login_and_back_to_its_page(
    browser: Open, service_database: Database
) -> None:
    visitor, (_, key) = browser(), _key(service_database)
    led = visitor.open("/dashboard?a=1&b=%2F")
    assert (led.status_code, led.headers["location"]) == (303, "/login?next=%2Fdashboard%3Fa%3D1%26b%3D%252F")
    page = visitor.open(led.headers["location"])
    assert page.status_code == 200
    assert 'name="next" value="/dashboard?a=1&amp;b=%2F"' in page.text
    back = visitor.log_in(key, "/dashboard?a=1&b=%2F")
    assert (back.status_code, back.headers["location"]) == (303, "/dashboard?a=1&b=%2F")
    me = visitor.http.get("/v1/me").json()
    assert (me["owner"], me["role"], me["via"]) == ("alice", "submitter", "session")
    assert visitor.open("/dashboard").status_code == 200
    assert visitor.open("/login?next=/docs").headers["location"] == "/docs"  # logged in already


def test_programs_are_answered_401_as_before(browser: Open) -> None:
    visitor = browser()
    problem = expect_problem(visitor.http.get("/v1/studies"), 401)
    assert problem["title"] == "Unauthorized"
    wrong = {"accept": "text/html", "authorization": "Bearer nsk_wrong"}
    assert "Basic" in visitor.http.get("/dashboard", headers=wrong).headers["www-authenticate"]
    assert visitor.http.post("/v1/studies", headers={"accept": "text/html"}).status_code == 401


@on_sqlite
@pytest.mark.parametrize("base_url", [LOCAL, "https://sweeps.example.org"])
def test_the_cookie_is_kept_from_scripts_and_from_other_sites(browser: Open, base_url: str) -> None:
    visitor = browser(base_url=base_url)
    given = visitor.log_in(SERVER_KEY)
    cookie = next(c for c in given.headers.get_list("set-cookie") if "Max-Age=0" not in c)
    https = base_url.startswith("https")
    flags = {part.strip().lower() for part in cookie.split(";")[1:]}
    assert {"httponly", "samesite=strict", "path=/"} <= flags
    assert ("secure" in flags, cookie.startswith("__Host-nightsweep=")) == (https, https)
    assert not any(flag.startswith("domain") for flag in flags)
    assert given.headers["cache-control"] == "no-store"


@on_sqlite
def test_only_a_digest_of_the_cookie_is_stored(browser: Open, service_database: Database) -> None:
    visitor = browser()
    visitor.log_in(SERVER_KEY)
    token = visitor.http.cookies["nightsweep"]
    with service_database.read() as session:
        row = session.scalars(select(LoginSession)).one()
    assert row.token_sha256 == hashlib.sha256(token.encode()).hexdigest()
    expect_problem(browser().http.get("/v1/me", headers=_cookie(row.token_sha256)), 401)


def test_a_session_cannot_be_prepared_for_somebody_else(browser: Open, service_database: Database) -> None:
    """Session fixation: an attacker plants a cookie of theirs, and the victim logs in."""
    _, mallory_key = _key(service_database, "mallory")
    _, alice_key = _key(service_database)
    mallory, alice = browser(), browser("192.0.2.2")
    mallory.log_in(mallory_key)
    planted = mallory.http.cookies["nightsweep"]
    alice.http.cookies.set("nightsweep", planted)
    alice.http.cookies.set("nightsweep_login", "chosen-by-mallory")
    with_login_page = alice.http.post(
        "/login",
        data={"key": alice_key, "csrf_token": sessions.csrf_token("chosen-by-mallory")},
    )
    assert with_login_page.status_code == 303
    token = next(
        c.split("=", 1)[1].split(";")[0]
        for c in with_login_page.headers.get_list("set-cookie")
        if c.startswith("nightsweep=")
    )
    assert token != planted
    assert _me(mallory) == 401  # what was planted has ended
    me = browser().http.get("/v1/me", headers=_cookie(token)).json()
    assert me["owner"] == "alice"


@pytest.mark.parametrize("end", ["revoked", "expired", "idle", "old", "logged out"])
def test_a_session_ends(browser: Open, service_database: Database, end: str) -> None:
    visitor, (key_id, key) = browser(), _key(service_database)
    visitor.log_in(key)
    assert _me(visitor) == 200
    past = datetime.now(UTC) - timedelta(seconds=1)
    if end == "revoked":
        service_database.transact(lambda session: keys.revoke(session, key_id))
    elif end == "expired":
        expire = update(ApiKey).where(ApiKey.id == key_id).values(expires_at=past)
        service_database.transact(lambda session: session.execute(expire))
    elif end == "idle":
        idle = update(LoginSession).values(last_seen_at=past - timedelta(hours=2))
        service_database.transact(lambda session: session.execute(idle))
    elif end == "old":
        service_database.transact(
            lambda session: session.execute(update(LoginSession).values(expires_at=past))
        )
    else:
        kept = dict(visitor.http.cookies)
        out = visitor.http.post("/logout", data={"csrf_token": visitor.form_token("/logout")})
        assert (out.status_code, out.headers["location"]) == (303, "/login")
        assert "nightsweep" not in visitor.http.cookies
        visitor.http.cookies.update(kept)  # whoever copied the cookie
    assert _me(visitor) == 401
    assert visitor.open("/dashboard").status_code == 303


def test_a_session_has_the_role_that_its_key_has_now(browser: Open, service_database: Database) -> None:
    visitor, (key_id, key) = browser(), _key(service_database, role=Role.ADMIN)
    visitor.log_in(key)
    assert visitor.http.get("/v1/keys").status_code == 200
    service_database.transact(lambda session: keys.change(session, key_id, role=Role.VIEWER, label=None))
    assert expect_problem(visitor.http.get("/v1/keys"), 403)["detail"].startswith("This needs the role admin")


@on_sqlite
def test_sessions_of_the_servers_own_key_end_when_it_is_another(settings: Settings, browser: Open) -> None:
    visitor = browser()
    visitor.log_in(SERVER_KEY)
    other = settings.model_copy(update={"api_key": SecretStr("another")})
    with TestClient(create_app(other), base_url=LOCAL) as client:
        expect_problem(client.get("/v1/me", headers=_cookie(visitor.http.cookies["nightsweep"])), 401)


# -- other sites ---------------------------------------------------------------------------------------


@on_sqlite
@pytest.mark.parametrize("token", [None, "", "0" * 64, "é"])
def test_a_form_without_the_pages_token_does_nothing(
    browser: Open, service_database: Database, token: str | None
) -> None:
    visitor, (_, key) = browser(), _key(service_database)
    visitor.form_token()
    form = {"key": key} if token is None else {"key": key, "csrf_token": token}
    assert visitor.http.post("/login", data=form).status_code == 403
    assert _me(visitor) == 401
    visitor.log_in(key)
    assert visitor.http.post("/logout", data=form).status_code == 403
    assert _me(visitor) == 200


@on_sqlite
def test_a_change_by_a_session_needs_its_token(
    browser: Open, service_database: Database, definition: Make
) -> None:
    visitor, (_, key) = browser(), _key(service_database)
    visitor.log_in(key)
    for headers in ({}, {"x-csrf-token": "0" * 64}):
        refused = visitor.http.post("/v1/studies", json=definition(), headers=headers)
        assert expect_problem(refused, 403)["title"] == "CSRF token missing or wrong"
    token = visitor.http.get("/v1/me").json()["csrf_token"]
    made = visitor.http.post("/v1/studies", json=definition(), headers={"x-csrf-token": token})
    assert (made.status_code, made.json()["owner"]) == (201, "alice")
    # Another session's token is not this one's.
    other = browser("192.0.2.2")
    other.log_in(key)
    refused = other.http.post("/v1/studies", json=definition(), headers={"x-csrf-token": token})
    assert refused.status_code == 403


@on_sqlite
def test_another_site_cannot_log_a_browser_in(browser: Open) -> None:
    visitor = browser()
    form = {"key": SERVER_KEY, "csrf_token": visitor.form_token()}
    for site in ({"sec-fetch-site": "cross-site"}, {"origin": "https://evil.example"}):
        assert visitor.http.post("/login", data=form, headers=site).status_code == 403


ELSEWHERE = [
    "https://evil.example/",
    "//evil.example/",
    "/\\evil.example/",
    "\\\\evil.example",
    "/\t/evil.example",
    "/\n/evil.example",
    "javascript:alert(1)",
    " //evil.example",
    "evil.example",
    "/login?next=/login",
    "/" + "a" * 3000,
    "",
]


@on_sqlite
@pytest.mark.parametrize("wanted", ELSEWHERE)
def test_a_login_leads_to_a_path_of_this_server_only(browser: Open, wanted: str) -> None:
    assert cookies.destination(wanted) == "/dashboard"
    visitor = browser()
    assert visitor.log_in(SERVER_KEY, wanted).headers["location"] == "/dashboard"


@on_sqlite
def test_what_is_to_be_shown_is_text_on_the_page(browser: Open) -> None:
    visitor = browser()
    page = visitor.http.get("/login", params={"next": '/"><script>alert(1)</script>'})
    assert "<script" not in page.text
    assert page.headers["content-security-policy"].startswith("default-src 'none'")


@on_sqlite
def test_what_another_sites_link_led_to_asks_again_by_itself(browser: Open) -> None:
    """A strict cookie is left out then, and the visitor may be logged in."""
    visitor = browser()
    again = '<meta http-equiv="refresh" content="0">'
    assert again in visitor.http.get("/login", headers={"sec-fetch-site": "cross-site"}).text
    assert again not in visitor.http.get("/login", headers={"sec-fetch-site": "same-origin"}).text


@on_sqlite
@pytest.mark.parametrize(
    ("content", "headers", "status"),
    [
        (b"key=" + b"a" * 9000, {}, 413),
        (b"&".join(b"f%d=1" % i for i in range(50)), {}, 413),
        (b"{}", {"content-type": "application/json"}, 415),
        (b"\xff\xfe=%ff&key=%00", {}, 403),
    ],
)
def test_a_form_that_is_none_of_ours_is_refused(
    browser: Open, content: bytes, headers: dict[str, str], status: int
) -> None:
    sent = {"content-type": "application/x-www-form-urlencoded", **headers}
    assert browser().http.post("/login", content=content, headers=sent).status_code == status


def test_logins_are_in_the_audit_log_without_a_key(browser: Open, service_database: Database) -> None:
    visitor, (key_id, key) = browser("198.51.100.7"), _key(service_database)
    visitor.log_in("nsk_secret-guess")
    visitor.log_in(key)
    visitor.http.post("/logout", data={"csrf_token": visitor.form_token("/logout")})
    with service_database.read() as session:
        entries = session.scalars(select(AuditEntry).order_by(AuditEntry.id)).all()
        rows = [(e.summary, e.outcome, e.owner, e.key_id, e.address) for e in entries]
    assert rows == [
        ("login refused: the key is not valid", "refused", None, None, "198.51.100.7"),
        ("logged in", "done", "alice", key_id, "198.51.100.7"),
        ("logged out", "done", "alice", key_id, "198.51.100.7"),
    ]
    assert not any("secret-guess" in str(vars(entry)) for entry in entries)
