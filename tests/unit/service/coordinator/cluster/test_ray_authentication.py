"""A cluster is asked, without a token, whether it wants one, and with ours, whether it takes it."""

from __future__ import annotations

import socket
import threading
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from functools import partial
from http.server import BaseHTTPRequestHandler, HTTPServer
from pathlib import Path
from typing import Any

import grpc
import pytest
from ray._private import services
from typer.testing import CliRunner

from service.cli.root import app
from service.coordinator.cluster import ray_authentication
from service.coordinator.cluster.ray_authentication import (
    NotLetIn,
    OpenCluster,
    Unreachable,
    find_cluster,
    require_cluster,
)

METHOD = "/ray.rpc.NodeInfoGcsService/CheckAlive"


@contextmanager
def cluster(code: grpc.StatusCode | None, *, token: str | None = None) -> Iterator[str]:
    """The address of a server that answers as the head of a cluster does: with nothing, or a refusal.

    Who has the token is let in.
    """

    def answer(request: bytes, context: Any) -> bytes:
        given = dict(context.invocation_metadata()).get("authorization")
        if code is not None and (token is None or given != f"Bearer {token}"):
            context.abort(code, "InvalidAuthToken: Authentication token is missing or incorrect")
        return b""

    class Head(grpc.GenericRpcHandler):
        def service(self, call: Any) -> Any:
            return grpc.unary_unary_rpc_method_handler(answer) if call.method == METHOD else None

    server = grpc.server(ThreadPoolExecutor(1), handlers=[Head()])
    port = server.add_insecure_port("127.0.0.1:0")
    server.start()
    yield f"127.0.0.1:{port}"
    server.stop(None).wait()


@pytest.fixture(autouse=True)
def without_token(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """This process has no token, whatever the machine's own environment."""
    for name in ("RAY_AUTH_MODE", "RAY_AUTH_TOKEN", "RAY_AUTH_TOKEN_PATH", "RAY_USE_TLS", "RAY_ADDRESS"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("HOME", str(tmp_path))


@pytest.fixture
def closed_port() -> Iterator[int]:
    """A port that is taken, and where nobody listens."""
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        yield taken.getsockname()[1]


def test_a_cluster_that_answers_everybody_is_refused_with_what_to_do() -> None:
    with cluster(None) as address, pytest.raises(OpenCluster) as refused:
        require_cluster(address)
    for words in (
        address,
        "RAY_AUTH_MODE=token",
        "RAY_AUTH_TOKEN",
        "ray get-auth-token --generate",
        "NIGHTSWEEP_ALLOW_OPEN_RAY=true",
    ):
        assert words in refused.value.detail


def test_a_cluster_that_answers_everybody_will_do_where_that_is_allowed() -> None:
    with cluster(None) as address:
        require_cluster(address, allow_open=True)


@pytest.mark.parametrize("code", [grpc.StatusCode.UNAUTHENTICATED, grpc.StatusCode.PERMISSION_DENIED])
def test_a_cluster_that_wants_the_token_of_this_process_is_good(
    code: grpc.StatusCode, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("RAY_AUTH_MODE", "Token")
    monkeypatch.setenv("RAY_AUTH_TOKEN", "secret")
    with cluster(code, token="secret") as address:
        require_cluster(address)


@pytest.mark.parametrize("place", ["named", "default"])
def test_the_token_is_read_from_where_ray_reads_it(
    place: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = tmp_path / "elsewhere" if place == "named" else tmp_path / ".ray" / "auth_token"
    path.parent.mkdir(exist_ok=True)
    path.write_text("secret\n")
    monkeypatch.setenv("RAY_AUTH_MODE", "token")
    if place == "named":
        monkeypatch.setenv("RAY_AUTH_TOKEN_PATH", str(path))
    with cluster(grpc.StatusCode.UNAUTHENTICATED, token="secret") as address:
        require_cluster(address)


@pytest.mark.parametrize(
    ("environment", "words"),
    [
        ({}, "this process has none"),
        ({"RAY_AUTH_MODE": "token"}, "this process has none"),
        ({"RAY_AUTH_MODE": "token", "RAY_AUTH_TOKEN": " "}, "this process has none"),
        ({"RAY_AUTH_TOKEN": "secret"}, "the one in RAY_AUTH_TOKEN: RAY_AUTH_MODE=token is not set"),
        ({"RAY_AUTH_MODE": "disabled", "RAY_AUTH_TOKEN": "secret"}, "RAY_AUTH_MODE=token is not set"),
        (
            {"RAY_AUTH_MODE": "token", "RAY_AUTH_TOKEN_PATH": "/nowhere"},
            "RAY_AUTH_TOKEN_PATH=/nowhere cannot",
        ),
        ({"RAY_AUTH_MODE": "token", "RAY_AUTH_TOKEN_PATH": "/dev/null"}, "/dev/null is an empty file"),
        ({"RAY_AUTH_MODE": "token", "RAY_AUTH_TOKEN": "other"}, "does not accept the token of this process"),
    ],
)
def test_a_missing_or_wrong_token_is_one_line_that_says_what_to_set(
    environment: dict[str, str], words: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name, value in environment.items():
        monkeypatch.setenv(name, value)
    with (
        cluster(grpc.StatusCode.UNAUTHENTICATED, token="secret") as address,
        pytest.raises(NotLetIn) as refused,
    ):
        require_cluster(address)
    assert words in refused.value.detail
    assert "RAY_AUTH_MODE=token" in refused.value.detail
    assert "\n" not in refused.value.detail


def test_a_cluster_that_ray_found_by_itself_gets_a_token_without_the_mode(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setenv("RAY_AUTH_TOKEN", "secret")
    with cluster(grpc.StatusCode.UNAUTHENTICATED, token="secret") as address:
        require_cluster(address, named=False)


def expect_unreachable(address: str, words: str, *, timeout_s: float = 0.6) -> None:
    with pytest.raises(Unreachable) as refused:
        require_cluster(address, timeout_s=timeout_s)
    assert refused.value.detail.startswith(f"The Ray cluster at {address} cannot be reached: {words}. Set ")
    assert "NIGHTSWEEP_RAY_ADDRESS" in refused.value.detail


def test_a_port_where_nothing_listens_is_said_to_be_one(closed_port: int) -> None:
    expect_unreachable(f"127.0.0.1:{closed_port}", "nothing listens there")


def test_a_port_that_does_not_answer_is_given_up() -> None:
    with socket.create_server(("127.0.0.1", 0)) as silent:
        expect_unreachable(f"127.0.0.1:{silent.getsockname()[1]}", "it does not answer")


def test_a_port_of_something_else_is_said_to_be_one() -> None:
    no_head = "what listens there is not the head of a Ray cluster"
    server = HTTPServer(("127.0.0.1", 0), BaseHTTPRequestHandler)
    serving = threading.Thread(target=server.serve_forever)
    serving.start()
    expect_unreachable(f"127.0.0.1:{server.server_port}", no_head)
    server.shutdown()
    serving.join()
    server.server_close()
    with cluster(grpc.StatusCode.UNIMPLEMENTED) as address:
        expect_unreachable(address, no_head)


def test_a_name_that_is_not_known_is_said_to_be_one(monkeypatch: pytest.MonkeyPatch) -> None:
    class NotFound(grpc.RpcError):
        def code(self) -> grpc.StatusCode:
            return grpc.StatusCode.UNAVAILABLE

        def details(self) -> str:
            return "errors resolving head:6379: [address lookup failed: Domain name not found]"

    class Channel:
        def __enter__(self) -> Channel:
            return self

        def __exit__(self, *_: object) -> None: ...

        def unary_unary(self, _: str) -> Any:
            def ask(*_: object, **__: object) -> None:
                raise NotFound

            return ask

    monkeypatch.setattr(grpc, "insecure_channel", lambda *_, **__: Channel())
    expect_unreachable("head:6379", "there is no machine of that name", timeout_s=0.0)


def test_a_head_that_is_about_to_start_is_waited_for(
    monkeypatch: pytest.MonkeyPatch, closed_port: int
) -> None:
    with cluster(None) as address:
        addresses = iter([f"127.0.0.1:{closed_port}", address])
        real, channels = grpc.insecure_channel, []

        class Moving:
            """A channel that reaches its head the second time."""

            def __enter__(self) -> Moving:
                return self

            def __exit__(self, *_: object) -> None:
                for channel in channels:
                    channel.close()

            def unary_unary(self, method: str) -> Any:
                def ask(request: bytes, **options: Any) -> Any:
                    channels.append(real(next(addresses)))
                    return channels[-1].unary_unary(method)(request, **options)

                return ask

        monkeypatch.setattr(grpc, "insecure_channel", lambda *_, **__: Moving())
        require_cluster(address, allow_open=True)
    assert len(channels) == 2


def test_an_internal_error_of_a_cluster_is_not_taken_for_a_good_one() -> None:
    with cluster(grpc.StatusCode.INTERNAL) as address:
        expect_unreachable(address, "InvalidAuthToken: Authentication token is missing or incorrect")


def test_with_rays_tls_every_caller_needs_a_certificate(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("RAY_USE_TLS", "1")
    with cluster(None) as address:
        require_cluster(address)


def test_without_an_address_the_cluster_is_the_one_that_ray_finds(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(services, "canonicalize_bootstrap_address", lambda _: "10.0.0.1:6379")
    assert [find_cluster(address) for address in (None, "auto", "head:1")] == [
        "10.0.0.1:6379",
        "10.0.0.1:6379",
        "head:1",
    ]


def test_a_machine_without_a_cluster_is_told_what_to_set(monkeypatch: pytest.MonkeyPatch) -> None:
    def nothing(_: str) -> str:
        raise ConnectionError("Could not find any running Ray instance.")

    monkeypatch.setattr(services, "canonicalize_bootstrap_address", nothing)
    with pytest.raises(Unreachable, match="Set NIGHTSWEEP_RAY_ADDRESS"):
        find_cluster(None)


def test_the_command_ends_with_one_line(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, closed_port: int
) -> None:
    soon = partial(ray_authentication.require_cluster, timeout_s=0.3)
    monkeypatch.setattr(ray_authentication, "require_cluster", soon)
    address = f"127.0.0.1:{closed_port}"
    home = ["--home", str(tmp_path / "home")]
    assert CliRunner().invoke(app, ["db", "upgrade", *home]).exit_code == 0
    result = CliRunner().invoke(app, ["coordinator", *home, "--ray-address", address])
    assert (result.exit_code, result.stdout) == (1, "")
    assert result.stderr.startswith(f"Error: The Ray cluster at {address} cannot be reached: nothing listens")
    assert result.stderr.count("\n") == 1
