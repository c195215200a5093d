"""The service's settings: `NIGHTSWEEP_*` environment variables, read once per entry point.

Build `Settings()` in an entry point and pass it on; nothing in the service reads the environment.
"""

from __future__ import annotations

import ipaddress
import os
import re
from collections.abc import Mapping
from pathlib import Path
from typing import Annotated, Any, Literal
from urllib.parse import urlsplit

from pydantic import Field, SecretStr, field_validator, model_validator
from pydantic_settings import BaseSettings, NoDecode, SettingsConfigDict
from sqlalchemy.engine import URL, make_url
from sqlalchemy.exc import ArgumentError

from search_spaces.data_report import LoadingLimits
from search_spaces.faults import nearest_name
from search_spaces.values.artifact_urls import is_url, without_password

OPTUNA_SCHEMA = "optuna"
"""On PostgreSQL, Optuna's tables live in this schema of the service's database."""

SQLITE_BUSY_SECONDS = 60.0
"""How long a writer waits for another. Sixteen writers were served within it (18 s measured)."""


def _default_optuna_url(values: dict[str, Any]) -> str:
    url = make_url(values["database_url"])
    if url.get_backend_name() == "sqlite":
        return f"sqlite:///{values['home'] / 'optuna.db'}"
    given = url.query.get("options", "")
    options = " ".join([*([given] if isinstance(given, str) else given), f"-csearch_path={OPTUNA_SCHEMA}"])
    return url.update_query_dict({"options": options.strip()}).render_as_string(hide_password=False)


class Settings(BaseSettings):
    """Addresses, folders, access, limits and timeouts.

    Raises `pydantic.ValidationError` naming the variable when a value is wrong.
    """

    model_config = SettingsConfigDict(
        env_prefix="NIGHTSWEEP_", frozen=True, validate_default=True, env_ignore_empty=True
    )

    home: Path = Path("~/.nightsweep")
    """Folder of the embedded SQLite files, artifacts, logs and Ray's token; made when needed, mode 700."""
    database_url: str = Field(default_factory=lambda values: f"sqlite:///{values['home'] / 'nightsweep.db'}")
    """The service's tables: `sqlite:///<path>` or `postgresql://user:password@host/database`."""
    optuna_url: str = Field(default_factory=_default_optuna_url)
    """Optuna's storage, apart from the service's: a second SQLite file, or on PostgreSQL the schema
    `optuna` of the same database."""
    data_roots: Annotated[tuple[Path, ...], NoDecode] = Field(default_factory=lambda: (Path.cwd(),))
    """Folders that may contain local data and models, separated by `:` (`;` on Windows)."""
    plugins: Annotated[tuple[str, ...], NoDecode] = ()
    """Modules that a study's own metrics and losses may be from, separated by commas. Workers import them."""
    artifacts_dir: Path = Field(default_factory=lambda values: values["home"] / "artifacts")
    """Adapters: `<study id>/<trial number>/<attempt ordinal>/best|last/`, and checkpoints while a trial may
    need them."""
    artifacts_url: str | None = None
    """Any fsspec URL, such as `s3://bucket/nightsweep`, to use instead of `artifacts_dir`, so that machines
    need not share a folder. It must not contain credentials: configure those for fsspec."""
    cache_dir: Path = Field(default_factory=lambda values: values["home"] / "cache")
    """Folder, on each machine that trains, for what was computed of a base and its data and can be computed
    again."""
    keep_best_adapters: Annotated[int, Field(ge=0)] | None = None
    """How many trials keep their adapters, for each study that ends from now on; None: all. See `nightsweep
    artifacts sweep`."""

    deletion_grace_days: Annotated[float, Field(ge=0, le=3650)] = 7.0
    """How long a deleted study can be restored. Then it is removed for good, with its artifacts."""

    host: str = "127.0.0.1"
    port: Annotated[int, Field(ge=1, le=65535)] = 8787
    allow_open_api: bool = False
    """Whether the API may listen on an address that other machines reach while it requires no key."""
    api_key: SecretStr | None = None
    """When set, every path except /healthz and /readyz requires it: `Authorization: Bearer <key>`, or HTTP
    Basic with any user name and the key as the password, for browsers."""
    trusted_proxies: Annotated[tuple[str, ...], NoDecode] = ()
    """Addresses or networks of proxies, separated by commas, whose `X-Forwarded-For` and `X-Forwarded-Proto`
    are believed."""
    session_hours: Annotated[float, Field(gt=0, le=720)] = 12.0
    """How long a browser that logged in stays so at most."""
    session_idle_minutes: Annotated[float, Field(ge=5)] = 120.0
    """How long it stays so without a request."""
    audit_days: Annotated[float, Field(gt=0)] = 365.0
    """How long entries of the audit log are kept."""
    openid_issuer: str | None = None
    """The address of an OpenID Connect provider; None: people log in with keys only."""
    openid_client_id: str | None = None
    openid_client_secret: SecretStr | None = None
    openid_scopes: str = "openid email profile"
    """What is asked for; some providers give groups for a scope of their own."""
    openid_groups_claim: str = "groups"
    """The claim of the ID token that lists the groups."""
    openid_admins: Annotated[tuple[str, ...], NoDecode] = ()
    """Who may do everything, separated by commas: e-mail addresses, `@example.org` for all of a domain, and
    `group:NAME`."""
    openid_submitters: Annotated[tuple[str, ...], NoDecode] = ()
    """Likewise who may submit."""
    openid_viewers: Annotated[tuple[str, ...], NoDecode] = ()
    """Likewise who may only read. Nobody else comes in."""
    max_active_studies_per_owner: Annotated[int, Field(ge=1)] | None = None
    """How many studies of one API key may be queued, running or paused; a further one is refused with 429."""
    max_running_studies_per_owner: Annotated[int, Field(ge=1)] | None = None
    """How many studies of one API key run at a time; the others wait as `queued`."""
    max_queued_trials_per_owner: Annotated[int, Field(ge=1)] | None = None
    """How many unfinished trials all studies of one API key may have together; a study that exceeds it is
    refused with 429."""
    idempotency_hours: Annotated[float, Field(gt=0)] = 24.0
    """How long the answer to a request with an `Idempotency-Key` is stored."""
    loading_memory_gib: Annotated[float, Field(gt=0)] | None = None
    """GiB of memory that reading and tokenising a study's data may take, in a worker, for a plan, or for the
    check of a submission; None: half of the machine's memory."""
    max_body_bytes: Annotated[int, Field(ge=1)] = 1_000_000
    """The largest request body; a larger one is refused with 413."""
    plan_timeout_seconds: Annotated[float, Field(gt=0)] = 60.0
    """A plan stops reading data and model after this time, and is returned without that part."""
    submission_check_seconds: Annotated[float, Field(ge=0)] = 60.0
    """How long a submission waits for the check of its model and its first rows. A study whose check takes
    longer is accepted unchecked, and an event says so. 0: only workers check."""

    ray_address: str | None = None
    """`host:port` of the head of the Ray cluster to which the coordinator connects; None: the one that
    Ray finds by itself (`auto`)."""
    allow_open_ray: bool = False
    """Allow a Ray cluster without token authentication."""
    lease_seconds: Annotated[float, Field(gt=0, le=600)] = 30.0
    """How long a coordinator's lease on a study lasts if it is not renewed, by the database's clock. A lease
    that lasts longer than 600 s is taken for the work of a wrong clock."""
    stop_grace_seconds: Annotated[float, Field(gt=0)] = 10.0
    """A worker that has not stopped a trial this long after it was asked to is killed."""
    pause_grace_seconds: Annotated[float, Field(gt=0)] = 60.0
    """A worker that has not paused a trial this long after it was asked to is killed; the trial resumes from
    its last checkpoint."""
    drain_seconds: Annotated[float, Field(ge=0)] = 30.0
    """How long a coordinator that is shut down waits for the checkpoints of its trials, if its workers end
    with it; otherwise they keep training."""
    workers_end_with_coordinator: bool = False
    """Set by `nightsweep serve`, which stops its Ray when it ends."""
    poll_seconds: Annotated[float, Field(gt=0)] = 0.5
    """Pause between two rounds of the coordinator when nothing happens."""
    max_running_studies: Annotated[int, Field(ge=1)] = 4
    """How many studies one coordinator runs at the same time; the others wait as `queued`. Studies of a
    coordinator that died are taken over beyond this limit."""
    resource_timeout_seconds: Annotated[float, Field(gt=0)] = 60.0
    """How long a study waits for a node that can hold one of its workers before it fails."""
    worker_silence_seconds: Annotated[float, Field(gt=0)] = 60.0
    """A worker that has not answered for this long, beyond the time of a poll, is killed; its trials resume
    from their last checkpoints. While it loads or tokenises, `loading_silence_seconds` holds."""
    training_silence_seconds: Annotated[float, Field(gt=0)] = 300.0
    """A training or evaluation pass that takes longer than this, and than twenty times the longest so far,
    hangs: its worker is killed. The first pass of a worker may take `loading_silence_seconds`."""
    loading_silence_seconds: Annotated[float, Field(gt=0)] = 3600.0
    """How long a worker may take to start, and, without using a disk, for each stage of loading a base, for
    each row that it tokenises, and for measuring or saving; then it is killed."""
    warm_workers: Annotated[int, Field(ge=0)] = 4
    """How many workers may wait for a study on each machine, with everything imported; never more than it has
    free cores, or GPUs where it has any. 0: none, so each study's workers start and end with it."""
    keep_base_seconds: Annotated[float, Field(ge=0)] = 300.0
    """How long a worker that waits keeps the base of the study that it trained for last."""
    orphan_timeout_seconds: Annotated[float, Field(gt=0)] = 600.0
    """A worker ends itself when no coordinator has contacted it for this long."""
    log_level: Literal["DEBUG", "INFO", "WARNING", "ERROR"] = "INFO"
    log_format: Literal["text", "json"] = "text"
    """`json`: each record of the API's and the coordinator's logs is one JSON object."""
    traces_url: str | None = None
    """Where OpenTelemetry traces are sent, such as `http://collector:4318/v1/traces`; None: nowhere."""

    @field_validator("home", "artifacts_dir", "cache_dir")
    @classmethod
    def _absolute(cls, value: Path) -> Path:
        return Path(os.path.abspath(value.expanduser()))

    @field_validator("artifacts_url")
    @classmethod
    def _plain_url(cls, value: str | None) -> str | None:
        if value is None:
            return None
        if not is_url(value):
            raise ValueError(
                "is not a URL such as s3://bucket/nightsweep; for a folder, set NIGHTSWEEP_ARTIFACTS_DIR"
            )
        if without_password(value) != value:
            raise ValueError(
                "contains a password, which the API would show; give fsspec its credentials in its own"
                " configuration or in the environment"
            )
        if not value.isprintable() or any(part in (".", "..") for part in value.split("/")):
            raise ValueError("must be a plain URL without '.' or '..' parts and control characters")
        if not value.partition("://")[2].strip("/"):
            raise ValueError("must name a bucket or folder, for example s3://bucket/nightsweep")
        if value.startswith("file://") and not value.startswith("file:///"):
            # To each process it would be a folder in its own working directory.
            raise ValueError("must be an absolute path, for example file:///srv/nightsweep")
        return value.rstrip("/")

    @property
    def loading_limits(self) -> LoadingLimits:
        """What a process may read, import and keep for a study, and how much memory it may take."""
        return LoadingLimits(
            data_roots=tuple(map(str, self.data_roots)),
            memory_gib=self.loading_memory_gib,
            plugins=self.plugins,
            cache_dir=str(self.cache_dir),
        )

    @property
    def artifacts_root(self) -> str:
        """The path or URL that new attempts have their folders in."""
        return self.artifacts_url or str(self.artifacts_dir)

    @field_validator("database_url", "optuna_url")
    @classmethod
    def _with_driver(cls, value: str) -> str:
        try:
            url = make_url(value)
        except ArgumentError:
            raise ValueError(
                "is not a database URL; expected sqlite:///<path> or postgresql://user:password@host/database"
            ) from None
        if url.drivername in ("postgresql", "postgres"):
            url = url.set(drivername="postgresql+psycopg")
        if url.drivername not in ("sqlite", "sqlite+pysqlite", "postgresql+psycopg"):
            raise ValueError(f"{url.drivername!r} is not supported; expected sqlite or postgresql")
        if url.get_backend_name() == "sqlite":
            url = _absolute_sqlite(url)
        return url.render_as_string(hide_password=False)

    @field_validator("data_roots", mode="before")
    @classmethod
    def _split(cls, value: Any) -> Any:
        if isinstance(value, str):
            return tuple(part for part in value.split(os.pathsep) if part)
        return value

    @field_validator(
        "plugins",
        "trusted_proxies",
        "openid_admins",
        "openid_submitters",
        "openid_viewers",
        mode="before",
    )
    @classmethod
    def _split_modules(cls, value: Any) -> Any:
        if isinstance(value, str):
            return tuple(part.strip() for part in value.split(",") if part.strip())
        return value

    @field_validator("plugins")
    @classmethod
    def _modules(cls, value: tuple[str, ...]) -> tuple[str, ...]:
        for module in value:
            if not all(part.isidentifier() for part in module.split(".")):
                raise ValueError(f"{module[:200]!r} is not the name of a module, such as my_metrics")
        return value

    @field_validator("trusted_proxies")
    @classmethod
    def _networks(cls, value: tuple[str, ...]) -> tuple[str, ...]:
        for network in value:
            try:
                ipaddress.ip_network(network, strict=False)
            except ValueError:
                raise ValueError(
                    f"{network[:200]!r} is not an address or a network, such as 10.0.0.0/8"
                ) from None
        return value

    @field_validator("openid_issuer")
    @classmethod
    def _issuer(cls, value: str | None) -> str | None:
        if value is None:
            return None
        parts = urlsplit(value)
        local = parts.hostname in ("localhost", "127.0.0.1", "::1")
        if parts.scheme != "https" and not (parts.scheme == "http" and local):
            raise ValueError("must be an https address, such as https://login.example.org")
        if not parts.hostname or parts.username or parts.query or parts.fragment:
            raise ValueError("must be an address without a password, a query or a fragment")
        return value.rstrip("/")

    @field_validator("openid_admins", "openid_submitters", "openid_viewers")
    @classmethod
    def _people(cls, value: tuple[str, ...]) -> tuple[str, ...]:
        for entry in value:
            group = entry.startswith("group:") and len(entry) > len("group:")
            if not group and not re.fullmatch(r"[^@\s:]*@[^@\s:]+", entry):
                raise ValueError(f"{entry[:200]!r} is not an e-mail address, @DOMAIN or group:NAME")
        return value

    @model_validator(mode="after")
    def _openid_whole(self) -> Settings:
        """A provider without its client would only be found out by the first who logs in."""
        if self.openid_issuer is not None:
            people = self.openid_admins or self.openid_submitters or self.openid_viewers
            missing = [
                f"NIGHTSWEEP_OPENID_{name}"
                for name, value in (
                    ("CLIENT_ID", self.openid_client_id),
                    ("CLIENT_SECRET", self.openid_client_secret),
                    ("ADMINS, _SUBMITTERS or _VIEWERS", people),
                )
                if not value
            ]
            if missing:
                raise ValueError(f"NIGHTSWEEP_OPENID_ISSUER also needs {', '.join(missing)}")
            if "openid" not in self.openid_scopes.split():
                raise ValueError("NIGHTSWEEP_OPENID_SCOPES must contain openid")
        return self

    @property
    def guarded(self) -> bool:
        """Whether these settings alone say that nobody comes in unknown."""
        return self.api_key is not None or self.openid_issuer is not None

    @field_validator("data_roots")
    @classmethod
    def _real(cls, value: tuple[Path, ...]) -> tuple[Path, ...]:
        if not value:
            raise ValueError("must name at least one folder")
        return tuple(Path(os.path.realpath(root.expanduser())) for root in value)

    @field_validator("ray_address")
    @classmethod
    def _head(cls, value: str | None) -> str | None:
        if value is None or value == "auto":
            return value
        host, _, port = value.rpartition(":")
        address = re.fullmatch(r"[A-Za-z0-9._-]+|\[[0-9A-Fa-f:.]+\]", host)
        if address is None or not re.fullmatch(r"[0-9]{1,5}", port) or not 0 < int(port) < 2**16:
            raise ValueError(
                f"{value[:200]!r} is not the address of a Ray cluster's head; expected host:port, such as "
                "head-node:6379, or auto"
            )
        return value

    @field_validator("traces_url")
    @classmethod
    def _http(cls, value: str | None) -> str | None:
        if value is not None and not re.fullmatch(r"https?://[^\s/?#]+(/[!-~]*)?", value):
            raise ValueError("is not an http or https URL such as http://collector:4318/v1/traces")
        return value

    @field_validator("log_level", mode="before")
    @classmethod
    def _upper(cls, value: Any) -> Any:
        return value.upper() if isinstance(value, str) else value


def _absolute_sqlite(url: URL) -> URL:
    if not url.database or url.database == ":memory:" or url.database.startswith("file:"):
        raise ValueError("must be a SQLite file, because several processes share it: sqlite:///<path>")
    return url.set(database=os.path.abspath(os.path.expanduser(url.database)))


def unknown_variables(environment: Mapping[str, str]) -> dict[str, str | None]:
    """Environment variables with our prefix that name no setting, such as one without its unit.

    Args:
        environment: Names and values. Empty values are ignored.

    Returns:
        The setting that each most resembles, or None.
    """
    prefix = "NIGHTSWEEP_"
    known = [*(field.upper() for field in Settings.model_fields), "SERVER"]  # the last is the command line's
    unknown = [
        name.upper().removeprefix(prefix)
        for name, value in environment.items()
        if value and name.upper().startswith(prefix)
    ]
    found = {}
    for name in sorted(set(unknown) - set(known)):
        longer = [other for other in known if other.startswith(f"{name}_")]
        nearest = longer[0] if len(longer) == 1 else nearest_name(name, known)
        found[prefix + name] = None if nearest is None else prefix + nearest
    return found
