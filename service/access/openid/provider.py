"""Talking to an OpenID Connect provider: discovery, the code flow with PKCE, and the ID token.

Authlib and joserfc do the protocol and the signatures; they are imported by the first who logs in this way.
"""

from __future__ import annotations

import threading
import time
from collections.abc import Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from service.errors import ServiceError
from service.settings import Settings

if TYPE_CHECKING:
    import httpx2

ALGORITHMS = ("RS256", "RS384", "RS512", "PS256", "PS384", "PS512", "ES256", "ES384", "ES512", "EdDSA")
"""Signatures by a key pair. None with a shared secret, and never `none`."""
SECONDS = 10.0
"""For each answer of the provider."""
_FRESH_SECONDS = 3600.0
_LEEWAY = 60
"""Seconds that the provider's clock may be off."""


class ProviderTrouble(ServiceError):  # noqa: N818  (as in `service.errors`)
    """The provider does not answer, or not as OpenID Connect says."""

    status = 502
    title = "Identity provider"


class NotThisPerson(ServiceError):  # noqa: N818  (likewise)
    """The provider's answer proves nothing about whoever sent it here."""

    status = 403
    title = "Login refused"


@dataclass(frozen=True, kw_only=True)
class Started:
    """Where to send a browser, and what must come back with it."""

    url: str
    state: str
    nonce: str
    code_verifier: str


class Provider:
    """One provider, as the settings name it.

    Args:
        settings: issuer, client and scopes.
        transport: stands in for the network in tests.
    """

    def __init__(self, settings: Settings, *, transport: httpx2.BaseTransport | None = None) -> None:
        assert settings.openid_issuer is not None
        self.issuer = settings.openid_issuer
        self._settings = settings
        self._transport = transport
        self._lock = threading.Lock()
        self._metadata: tuple[float, Mapping[str, Any]] | None = None

    def start(self, redirect_uri: str) -> Started:
        """Begin a login. Raises `ProviderTrouble`."""
        from authlib.common.security import generate_token

        metadata = self._discover()
        nonce, verifier = generate_token(32), generate_token(64)
        with self._client(redirect_uri) as client:
            url, state = client.create_authorization_url(
                metadata["authorization_endpoint"],
                state=generate_token(32),
                code_verifier=verifier,
                nonce=nonce,
            )
        return Started(url=url, state=state, nonce=nonce, code_verifier=verifier)

    def finish(self, *, code: str, redirect_uri: str, nonce: str, code_verifier: str) -> Mapping[str, Any]:
        """The claims of the person who came back with this code.

        Raises:
            ProviderTrouble: the provider does not answer, or not in the expected form.
            NotThisPerson: it refuses the code, or its ID token is not for us, not for this login, or forged.
        """
        import httpx2
        from authlib.common.errors import AuthlibBaseError

        metadata = self._discover()
        with self._client(redirect_uri) as client:
            try:
                token = client.fetch_token(
                    metadata["token_endpoint"],
                    grant_type="authorization_code",
                    code=code,
                    code_verifier=code_verifier,
                )
            except AuthlibBaseError as error:
                raise NotThisPerson(f"The identity provider refused the login: {str(error)[:200]}") from error
            except (httpx2.HTTPError, ValueError) as error:
                raise self._trouble(error) from error
        id_token = token.get("id_token")
        if not isinstance(id_token, str):
            raise ProviderTrouble(f"{self.issuer} sent no ID token; do the scopes contain openid?")
        return self._verified(id_token, nonce, token.get("access_token"))

    def _verified(self, id_token: str, nonce: str, access_token: str | None) -> Mapping[str, Any]:
        from authlib.oidc.core import CodeIDToken
        from joserfc import jwt
        from joserfc.errors import JoseError
        from joserfc.jwk import KeySet

        keys = self._get(self._discover()["jwks_uri"])
        try:
            decoded = jwt.decode(id_token, KeySet.import_key_set(keys), algorithms=list(ALGORITHMS))
            claims = CodeIDToken(
                decoded.claims,
                decoded.header,
                {
                    "iss": {"essential": True, "value": self.issuer},
                    "aud": {"essential": True, "value": self._settings.openid_client_id},
                    "nonce": {"essential": True, "value": nonce},
                },
                {"nonce": nonce, "client_id": self._settings.openid_client_id, "access_token": access_token},
            )
            claims.validate(leeway=_LEEWAY)
        except (JoseError, ValueError, KeyError, TypeError) as error:
            raise NotThisPerson(f"The ID token of {self.issuer} is not valid: {str(error)[:200]}") from error
        subject = claims.get("sub")
        if not isinstance(subject, str) or not 0 < len(subject) <= 255:
            raise NotThisPerson(f"The ID token of {self.issuer} names nobody.")
        return dict(claims)

    def _discover(self) -> Mapping[str, Any]:
        """What the provider says of itself, at most an hour old."""
        with self._lock:
            if self._metadata is None or time.monotonic() - self._metadata[0] > _FRESH_SECONDS:
                found = self._get(f"{self.issuer}/.well-known/openid-configuration")
                if str(found.get("issuer", "")).rstrip("/") != self.issuer:
                    raise ProviderTrouble(f"What answers at {self.issuer} calls itself by another name.")
                for name in ("authorization_endpoint", "token_endpoint", "jwks_uri"):
                    if not isinstance(found.get(name), str):
                        raise ProviderTrouble(f"{self.issuer} does not say what its {name} is.")
                self._metadata = time.monotonic(), found
            return self._metadata[1]

    def _get(self, url: str) -> Any:
        import httpx2

        try:
            with httpx2.Client(timeout=SECONDS, transport=self._transport) as client:
                answer = client.get(url)
                answer.raise_for_status()
                found = answer.json()
        except (httpx2.HTTPError, ValueError) as error:
            raise self._trouble(error) from error
        if not isinstance(found, dict):
            raise ProviderTrouble(f"{self.issuer} answers with something else than a JSON object.")
        return found

    def _client(self, redirect_uri: str) -> Any:
        from authlib.integrations.httpx_client import OAuth2Client

        secret = self._settings.openid_client_secret
        return OAuth2Client(
            client_id=self._settings.openid_client_id,
            client_secret=None if secret is None else secret.get_secret_value(),
            scope=self._settings.openid_scopes,
            redirect_uri=redirect_uri,
            code_challenge_method="S256",
            timeout=SECONDS,
            transport=self._transport,
        )

    def _trouble(self, error: Exception) -> ProviderTrouble:
        return ProviderTrouble(
            f"The identity provider {self.issuer} does not answer as expected: {type(error).__name__}."
        )
