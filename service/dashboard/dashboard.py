"""Optuna dashboard on the service's own port, for reading only.

Its client asks for fixed addresses (/dashboard, /static, /api, /csv, /artifacts), so it is served from
the root, after our own routes. It has no login and no read-only mode of its own: an unguarded DELETE
removes a study. Only GET and HEAD get through, which is all that its pages need.

Its pages get a script of ours (`dashboard.js`), which hides the buttons that would be refused. In what it
reads of a study we write the notes, when they are asked for: so they are those of the moment.
"""

from __future__ import annotations

import json
import re
from collections.abc import Callable
from functools import cached_property
from pathlib import Path
from typing import Any
from urllib.parse import quote_from_bytes

from a2wsgi import WSGIMiddleware
from sqlalchemy import select
from sqlalchemy.orm import Session
from starlette.concurrency import run_in_threadpool
from starlette.responses import Response
from starlette.types import Message, Receive, Scope, Send

from service.analysis.importance import read_importance
from service.dashboard import notes
from service.dashboard.study_list import StudyList
from service.db.database import Database
from service.db.kinds import StudyKind
from service.db.models import Study
from service.errors import MethodNotAllowed, NotFound
from service.optuna_store.storage import Storage
from service.range_tests import queries as range_tests
from service.rest import problems
from service.studies import queries as studies
from service.trials import records
from service.trials.views import trial_view

_TREES = ("/dashboard", "/static", "/api", "/csv", "/artifacts")
_PAGES = frozenset({"/favicon.ico", "/incompatible-rdb-schema"})
_READING = ("GET", "HEAD")
_SCRIPT = "/static/nightsweep.js"
_STUDY = re.compile(r"/api/studies/([0-9]{1,9})/?")
_AFTER = re.compile(rb"(?:after=([0-9]{1,9}))?")
"""What the dashboard's client asks for: the trials from that number on."""
_IMPORTANCE = re.compile(r"/api/studies/([0-9]{1,9})/param_importances/?")


class ReadOnly(MethodNotAllowed):
    title = "Dashboard is read-only"
    headers = {"Allow": ", ".join(_READING)}  # noqa: RUF012  (read by the renderer, never changed)


class Dashboard:
    """ASGI application; answers 404 as a problem for whatever is not the dashboard's.

    Args:
        storage: Optuna's.
        database: the service's tables.
    """

    def __init__(self, storage: Storage, database: Database) -> None:
        self._storage = storage
        self._database = database
        self._script = (Path(__file__).parent / "dashboard.js").read_text()

    @cached_property
    def _wsgi(self) -> WSGIMiddleware:
        """Its pages, made for the first that asks: scikit-learn and pandas take a second to import."""
        import optuna_dashboard

        return WSGIMiddleware(optuna_dashboard.wsgi(StudyList.of(self._storage)))

    async def _pages(self, scope: Scope, receive: Receive, send: Send) -> None:
        wsgi = await run_in_threadpool(lambda: self._wsgi)  # so that others are answered during its imports
        await wsgi(scope, receive, send)

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        path = scope["path"]
        if (
            path not in _PAGES
            and not path.startswith(tuple(f"{tree}/" for tree in _TREES))
            and path not in _TREES
        ):
            response = problems.render_error(NotFound(f"There is nothing at {path}."), path)
            await response(scope, receive, send)
        elif scope["method"] not in _READING:
            error = ReadOnly(f"The method {scope['method']} is not allowed here: the dashboard is read-only.")
            await problems.render_error(error, path)(scope, receive, send)
        elif path == _SCRIPT:
            script = Response(
                self._script, media_type="text/javascript", headers={"cache-control": "no-cache"}
            )
            await script(scope, receive, send)
        elif path == "/dashboard" or path.startswith("/dashboard/"):
            await self._rewritten(scope, receive, send, _with_script)
        elif _STUDY.fullmatch(path) and (asked := _AFTER.fullmatch(scope["query_string"])):
            after = int(asked[1] or 0)
            whole = {**scope, "query_string": b""}
            await self._rewritten(whole, receive, send, lambda body: self._with_notes(body, after))
        elif importance := _IMPORTANCE.fullmatch(path):
            number = int(importance[1])
            await self._rewritten(scope, receive, send, lambda body: self._only_if_known(number, body))
        else:
            await self._pages(_mended(scope), receive, send)

    async def _rewritten(
        self, scope: Scope, receive: Receive, send: Send, change: Callable[[bytes], bytes]
    ) -> None:
        """The dashboard's own answer with its body changed, if it is one."""
        start: Message = {}
        body = bytearray()

        async def collect(message: Message) -> None:
            if message["type"] == "http.response.start":
                start.update(message)
            else:
                body.extend(message.get("body", b""))

        await self._pages(_whole(_mended(scope)), receive, collect)
        content = bytes(body)
        if start["status"] == 200 and scope["method"] == "GET":
            content = await run_in_threadpool(change, content)
        dropped = (b"content-length", b"etag", b"last-modified", b"accept-ranges")  # of the body as it was
        headers = [(name, value) for name, value in start["headers"] if name.lower() not in dropped]
        if scope["method"] == "GET":
            headers.append((b"content-length", str(len(content)).encode()))
        await send({**start, "headers": headers})
        await send({"type": "http.response.body", "body": content})

    def _with_notes(self, body: bytes, after: int) -> bytes:
        """What is known of a study and of its trials from a number on, with our notes on them."""
        document = json.loads(body)
        trials = document["trials"]
        document["trials"] = trials[after:]
        with self._database.read() as session:
            study = session.scalars(select(Study).where(Study.name == document["name"])).one_or_none()
            if study is None:
                # Of somebody else who uses the same storage.
                return json.dumps(document).encode()
            self._write_notes(session, study, document, trials)
        return json.dumps(document).encode()

    def _write_notes(
        self, session: Session, study: Study, document: dict[str, Any], all_trials: list[dict[str, Any]]
    ) -> None:
        best: set[int] = set()
        ours: dict[str, Any] = {}
        if study.kind == StudyKind.RANGE_TEST:
            test = range_tests.show(session, study)
            document["note"]["body"] = notes.range_test_note(test)
            ours["titles"] = notes.titles_of_a_range_test()
        else:
            shown = studies.show(session, study)
            document["note"]["body"] = notes.study_note(shown)
            if shown.pareto_front is not None:
                best = {point.trial_number for point in shown.pareto_front}
            elif shown.best is not None:
                best = {shown.best.trial_number}
        # The dashboard's own choice knows neither repeats nor constraints.
        document["best_trials"] = [trial for trial in all_trials if trial["number"] in best]
        if document["trials"] or document["best_trials"]:
            found = records.read(session, study)
            trials = [trial_view(study, found.definition, record) for record in found.records]
            repeats = notes.repeats_in_words(trials)
            ours["repeats"] = {t.number: notes.beside_the_search(t) for t in trials if t.number in repeats}
            written = {
                t.number: notes.trial_note(t, repeats.get(t.number), trained=found.trained) for t in trials
            }
            for trial in (*document["trials"], *document["best_trials"]):
                if trial["number"] in written:
                    trial["note"]["body"] = written[trial["number"]]
        document["nightsweep"] = ours

    def _only_if_known(self, number: int, body: bytes) -> bytes:
        """The importance of hyperparameters, unless too few trials have completed to say anything of it."""
        name = self._storage.get_study_name_from_id(number)
        importance = read_importance(self._storage, name, (), minimize=True)
        with self._database.read() as session:
            kind = session.scalars(select(Study.kind).where(Study.name == name)).one_or_none()
        if kind is None or (kind == StudyKind.SEARCH and importance.best_trials > 0):
            return body
        titles = notes.titles_of_a_range_test()
        if kind == StudyKind.SEARCH:
            titles = {"Hyperparameter Importance": importance.sentence}
        objectives = len(json.loads(body)["param_importances"])
        return json.dumps(
            {"param_importances": [[] for _ in range(objectives)], "nightsweep": {"titles": titles}}
        ).encode()

    def close(self) -> None:
        """End its threads."""
        if "_wsgi" in self.__dict__:
            self._wsgi.executor.shutdown()


def _with_script(page: bytes) -> bytes:
    """A page that runs our script before the dashboard's own."""
    return page.replace(b"<script", f'<script defer src="{_SCRIPT}"></script>\n    <script'.encode(), 1)


def _whole(scope: Scope) -> Scope:
    """The same request for the whole of it, uncompressed, whatever the browser has of it."""
    conditions = (b"if-modified-since", b"if-none-match", b"range", b"accept-encoding")
    headers = [(name, value) for name, value in scope["headers"] if name.lower() not in conditions]
    return {**scope, "headers": [*headers, (b"accept-encoding", b"identity")]}


def _mended(scope: Scope) -> Scope:
    """What the dashboard and its adapter take for granted and HTTP does not promise."""
    headers = list(scope["headers"])
    if not any(name == b"accept-encoding" for name, _ in headers):
        headers.append((b"accept-encoding", b"identity"))  # without it, its /static answers 500
    query = scope["query_string"]
    if not query.isascii():
        query = quote_from_bytes(query, safe="%&=+:/?,;@!$'()*~").encode()  # a2wsgi decodes it as ASCII
    return {**scope, "headers": headers, "query_string": query}
