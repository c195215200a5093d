"""A small OpenID Connect provider: real keys and signatures, answers in place of the network."""

from __future__ import annotations

import base64
import hashlib
import hmac
import json
import time
from typing import Any
from urllib.parse import parse_qs, urlsplit

import httpx2
from joserfc import jwt
from joserfc.jwk import RSAKey

ISSUER = "https://login.example.org"
CLIENT_ID = "nightsweep"
CLIENT_SECRET = "the client's secret"


class FakeProvider:
    """Knows one person at a time, who agrees to everything.

    Attributes:
        claims: of the ID token, beside those that make it one.
        cheat: what is wrong with the ID token or the answer, by name; empty: nothing.
    """

    def __init__(self) -> None:
        self.key = RSAKey.generate_key(2048, {"kid": "k1"})
        self.stranger = RSAKey.generate_key(2048, {"kid": "k1"})
        self.claims: dict[str, Any] = {"sub": "s-1", "email": "alice@example.org", "email_verified": True}
        self.cheat = ""
        self._codes: dict[str, dict[str, str]] = {}
        self.token_requests: list[dict[str, str]] = []

    @property
    def transport(self) -> httpx2.MockTransport:
        return httpx2.MockTransport(self._answer)

    def agree(self, url: str) -> dict[str, str]:
        """What the browser brings back after the person has agreed to what this address asks for."""
        asked = {name: values[0] for name, values in parse_qs(urlsplit(url).query).items()}
        assert (asked["response_type"], asked["client_id"]) == ("code", CLIENT_ID)
        assert (asked["code_challenge_method"], "openid" in asked["scope"]) == ("S256", True)
        code = f"code-{len(self._codes)}"
        self._codes[code] = asked
        return {"code": code, "state": asked["state"]}

    def _answer(self, request: httpx2.Request) -> httpx2.Response:
        if self.cheat == "away":
            raise httpx2.ConnectError("refused", request=request)
        path = request.url.path
        if path == "/.well-known/openid-configuration":
            return httpx2.Response(
                200,
                json={
                    "issuer": "https://other.example.org" if self.cheat == "issuer of discovery" else ISSUER,
                    "authorization_endpoint": f"{ISSUER}/authorize",
                    "token_endpoint": f"{ISSUER}/token",
                    "jwks_uri": f"{ISSUER}/keys",
                },
            )
        if path == "/keys":
            return httpx2.Response(200, json={"keys": [self.key.as_dict(private=False)]})
        return self._token({name: v[0] for name, v in parse_qs(request.content.decode()).items()}, request)

    def _token(self, sent: dict[str, str], request: httpx2.Request) -> httpx2.Response:
        self.token_requests.append(sent)
        basic = base64.b64encode(f"{CLIENT_ID}:{CLIENT_SECRET}".encode()).decode()
        asked = self._codes.pop(sent.get("code", ""), None)
        challenge = base64.urlsafe_b64encode(hashlib.sha256(sent.get("code_verifier", "").encode()).digest())
        if (
            asked is None
            or request.headers["authorization"] != f"Basic {basic}"
            or asked["redirect_uri"] != sent["redirect_uri"]
            or asked["code_challenge"] != challenge.rstrip(b"=").decode()
        ):
            return httpx2.Response(400, json={"error": "invalid_grant"})
        token = {"access_token": "at", "token_type": "Bearer", "expires_in": 60}
        if self.cheat != "no ID token":
            token["id_token"] = self._id_token(asked["nonce"])
        return httpx2.Response(200, json=token)

    def _id_token(self, nonce: str) -> str:
        now = int(time.time())
        claims = {
            "iss": "https://evil.example" if self.cheat == "issuer" else ISSUER,
            "aud": "another-client" if self.cheat == "audience" else CLIENT_ID,
            "iat": now - 7200 if self.cheat == "expired" else now,
            "exp": now - 3600 if self.cheat == "expired" else now + 60,
            "nonce": "replayed" if self.cheat == "nonce" else nonce,
            **self.claims,
        }
        if self.cheat == "no nonce":
            del claims["nonce"]
        if self.cheat == "none":
            head, body = ({"alg": "none"}, claims)
            return ".".join(_part(part) for part in (head, body)) + "."
        if self.cheat == "shared secret":
            signed = ".".join(_part(part) for part in ({"alg": "HS256", "kid": "k1"}, claims))
            digest = hmac.digest(self.key.as_pem(private=False), signed.encode(), "sha256")
            return f"{signed}.{_encoded(digest)}"
        signer = self.stranger if self.cheat == "signature" else self.key
        return jwt.encode({"alg": "RS256", "kid": "k1"}, claims, signer)


def _part(document: dict[str, Any]) -> str:
    return _encoded(json.dumps(document).encode())


def _encoded(content: bytes) -> str:
    return base64.urlsafe_b64encode(content).rstrip(b"=").decode()
