"""A cluster is asked, without a token, whether it wants one."""

from __future__ import annotations

from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from typing import Any

import grpc
import pytest

from service.coordinator.ray_authentication import OpenCluster, require_authentication
from service.errors import Unavailable

METHOD = "/ray.rpc.NodeInfoGcsService/CheckAlive"


@contextmanager
def cluster(code: grpc.StatusCode | None) -> Iterator[str]:
    """The address of a server that answers as the head of a cluster does: with nothing, or a refusal."""

    def answer(request: bytes, context: Any) -> bytes:
        if code is not None:
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


def test_a_cluster_that_answers_everybody_is_refused_with_what_to_do() -> None:
    with cluster(None) as address, pytest.raises(OpenCluster) as refused:
        require_authentication(address)
    for words in (address, "RAY_AUTH_MODE=token", "RAY_AUTH_TOKEN", "NIGHTSWEEP_ALLOW_OPEN_RAY=true"):
        assert words in refused.value.detail


@pytest.mark.parametrize("code", [grpc.StatusCode.UNAUTHENTICATED, grpc.StatusCode.PERMISSION_DENIED])
def test_a_cluster_that_wants_a_token_is_good(code: grpc.StatusCode) -> None:
    with cluster(code) as address:
        require_authentication(address)


def test_a_cluster_that_cannot_be_asked_is_not_taken_for_a_good_one() -> None:
    with cluster(grpc.StatusCode.INTERNAL) as address, pytest.raises(Unavailable, match="Could not find out"):
        require_authentication(address)
    with pytest.raises(Unavailable, match="Could not find out"):
        require_authentication("127.0.0.1:1", timeout_s=0.1)


def test_with_rays_tls_every_caller_needs_a_certificate(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("RAY_USE_TLS", "1")
    with cluster(None) as address:
        require_authentication(address)
