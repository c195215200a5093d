"""Whether a Ray cluster lets in whoever reaches it.

Ray runs what it is sent: without token authentication, everybody who can open a connection to the cluster
runs code on it as the user of its workers. Having a token here says nothing about whether one is asked for
there, so the cluster itself is asked, without one.
"""

from __future__ import annotations

import os

import grpc

from service.errors import Unavailable

ASK_SECONDS = 10.0
_METHOD = "/ray.rpc.NodeInfoGcsService/CheckAlive"
_REFUSALS = (grpc.StatusCode.UNAUTHENTICATED, grpc.StatusCode.PERMISSION_DENIED)


class OpenCluster(Unavailable):
    title = "Ray without authentication"


def require_authentication(address: str, *, timeout_s: float = ASK_SECONDS) -> None:
    """Refuse a cluster that answers a caller without a token.

    With Ray's TLS switched on nothing is asked: it wants a certificate of every caller.

    Args:
        address: `host:port` of the cluster's head.
        timeout_s: how long to wait for its answer.

    Raises:
        OpenCluster: it answers everybody; the message says what to do.
        Unavailable: it could not be told.
    """
    if os.environ.get("RAY_USE_TLS", "0").lower() in ("1", "true"):
        return
    with grpc.insecure_channel(address) as channel:
        ask = channel.unary_unary(_METHOD)  # bytes in, bytes out; an empty message has no bytes
        try:
            ask(b"", timeout=timeout_s, wait_for_ready=True)
        except grpc.RpcError as error:
            if error.code() in _REFUSALS:
                return
            raise Unavailable(
                f"Could not find out if the Ray cluster at {address} requires a token: {error.details()}."
            ) from error
    raise OpenCluster(
        f"The Ray cluster at {address} requires no token, so everybody who can reach it can run code on it."
        " Start all of its nodes, and this process, with RAY_AUTH_MODE=token and the same RAY_AUTH_TOKEN"
        " (or RAY_AUTH_TOKEN_PATH). If nobody else can reach it, you can set NIGHTSWEEP_ALLOW_OPEN_RAY=true"
        " instead."
    )
