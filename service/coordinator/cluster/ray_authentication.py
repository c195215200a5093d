"""Whether a Ray cluster can be reached, keeps strangers out, and lets this process in.

Ray runs what it is sent: without token authentication, everybody who can open a connection to the cluster
runs code on it as the user of its workers. Having a token here says nothing about whether one is asked for
there, so the cluster itself is asked, without one. And Ray's own client tries a wrong address for two minutes
and fills the log meanwhile; here it takes seconds, and one line says what to set.
"""

from __future__ import annotations

import os
import time
from pathlib import Path

import grpc

from service.errors import Unavailable
from service.settings import Settings

ASK_SECONDS = 4.0
"""For all questions together: a head that is just starting is asked again for as long as this."""

_PAUSE_SECONDS = 0.25
_METHOD = "/ray.rpc.NodeInfoGcsService/CheckAlive"
_REFUSALS = (grpc.StatusCode.UNAUTHENTICATED, grpc.StatusCode.PERMISSION_DENIED)
_NO_PROXY = [("grpc.enable_http_proxy", 0)]
"""Ray uses none either."""

_SAME_TOKEN = (
    "Set RAY_AUTH_MODE=token and RAY_AUTH_TOKEN (or RAY_AUTH_TOKEN_PATH) to the token of the cluster; "
    "`ray get-auth-token` prints it on a machine that has it."
)


class Unreachable(Unavailable):
    title = "Ray cluster not reachable"


class OpenCluster(Unavailable):
    title = "Ray without authentication"


class NotLetIn(Unavailable):
    title = "Ray refuses this process"


def require(settings: Settings) -> None:
    """Refuse to start against a cluster that does not answer, or where this process does not belong.

    Raises:
        Unavailable: one line says what to set.
    """
    require_cluster(
        find_cluster(settings.ray_address),
        named=settings.ray_address not in (None, "auto"),
        allow_open=settings.allow_open_ray,
    )


def find_cluster(address: str | None) -> str:
    """`host:port` of the head of the cluster that is meant.

    Args:
        address: None or `auto`: what `RAY_ADDRESS` names, or the cluster that this machine is a node of.

    Raises:
        Unreachable: there is none.
    """
    if address not in (None, "auto"):
        return address
    from ray._private.services import canonicalize_bootstrap_address

    try:
        return str(canonicalize_bootstrap_address("auto"))
    except (ConnectionError, ValueError) as error:
        raise Unreachable(
            "No Ray cluster was found on this machine. Set NIGHTSWEEP_RAY_ADDRESS (or --ray-address) to the "
            "address of a cluster's head as host:port, such as head-node:6379. `nightsweep serve` starts a "
            "Ray of its own."
        ) from error


def require_cluster(
    address: str, *, named: bool = True, allow_open: bool = False, timeout_s: float = ASK_SECONDS
) -> None:
    """Refuse a cluster that cannot be reached, that lets in everybody, or that does not let in this process.

    With Ray's TLS switched on nothing is asked: it wants a certificate of every caller.

    Args:
        address: `host:port` of the cluster's head.
        named: whether somebody gave this address. To a cluster that Ray has found by itself it sends a token
            that it finds without `RAY_AUTH_MODE`, too.
        allow_open: whether a cluster that asks nobody for a token will do.
        timeout_s: how long to wait for its answers.

    Raises:
        Unreachable: no head of a cluster answers there.
        OpenCluster: it answers everybody.
        NotLetIn: it wants a token, and this process has none or another one.
    """
    if os.environ.get("RAY_USE_TLS", "0").lower() in ("1", "true"):
        return
    deadline = time.monotonic() + timeout_s
    if _lets_in(address, None, deadline):
        if allow_open:
            return
        raise OpenCluster(
            f"The Ray cluster at {address} requires no token, so everybody who can reach it can run code on"
            " it. Start all of its nodes, and this process, with RAY_AUTH_MODE=token and the same"
            " RAY_AUTH_TOKEN (or RAY_AUTH_TOKEN_PATH); `ray get-auth-token --generate` makes a"
            " token. If nobody else can reach the cluster, you can set NIGHTSWEEP_ALLOW_OPEN_RAY=true."
        )
    if not _lets_in(address, _own_token(address, named=named), deadline):
        raise NotLetIn(
            f"The Ray cluster at {address} does not accept the token of this process. {_SAME_TOKEN}"
        )


def _lets_in(address: str, token: str | None, deadline: float) -> bool:
    """Whether it answers whoever has this token. Raises `Unreachable`."""
    metadata = None if token is None else [("authorization", f"Bearer {token}")]
    with grpc.insecure_channel(address, options=_NO_PROXY) as channel:
        ask = channel.unary_unary(_METHOD)  # bytes in, bytes out; an empty message has no bytes
        while True:
            left = deadline - time.monotonic()
            try:
                ask(b"", timeout=max(0.0, left), metadata=metadata)
            except grpc.RpcError as error:
                if error.code() in _REFUSALS:
                    return False
                if error.code() is not grpc.StatusCode.UNAVAILABLE or left < 2 * _PAUSE_SECONDS:
                    raise Unreachable(
                        f"The Ray cluster at {address} cannot be reached: {_cause(error)}. Set "
                        "NIGHTSWEEP_RAY_ADDRESS (or --ray-address) to the address of its head as host:port, "
                        "such as head-node:6379."
                    ) from error
            else:
                return True
            time.sleep(_PAUSE_SECONDS)


def _cause(error: grpc.RpcError) -> str:
    """In the words of a person; gRPC's own where it is none of these."""
    code, details = error.code(), str(error.details())
    if code is grpc.StatusCode.DEADLINE_EXCEEDED:
        return "it does not answer"
    if code is grpc.StatusCode.UNIMPLEMENTED or "HTTP/2" in details:
        return "what listens there is not the head of a Ray cluster"
    if "Connection refused" in details:
        return "nothing listens there"
    if "resolving" in details or "DNS" in details:
        return "there is no machine of that name"
    return details.splitlines()[0] if details else str(code)


def _own_token(address: str, *, named: bool) -> str:
    """The token that Ray finds for this process. Raises `NotLetIn` where it would send none."""
    wants = f"The Ray cluster at {address} asks for a token"
    token, source = os.environ.get("RAY_AUTH_TOKEN", "").strip(), "RAY_AUTH_TOKEN"
    if not token:
        given = os.environ.get("RAY_AUTH_TOKEN_PATH")
        path = Path(given) if given else Path.home() / ".ray" / "auth_token"
        source = f"RAY_AUTH_TOKEN_PATH={given}" if given else str(path)
        try:
            token = path.read_text().strip()
        except (OSError, ValueError) as error:
            if given:
                raise NotLetIn(f"{wants}, and {source} cannot be read: {error}. {_SAME_TOKEN}") from error
        if given and not token:
            raise NotLetIn(f"{wants}, and {source} is an empty file. {_SAME_TOKEN}")
    if not token:
        raise NotLetIn(f"{wants}, and this process has none. {_SAME_TOKEN}")
    if os.environ.get("RAY_AUTH_MODE", "" if named else "token").lower() != "token":
        raise NotLetIn(
            f"{wants}, and this process does not send the one in {source}: RAY_AUTH_MODE=token is not set."
        )
    return token
