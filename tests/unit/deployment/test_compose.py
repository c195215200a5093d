"""Every command, port and variable in the deployment files is one the code has."""

from __future__ import annotations

import re
import shlex
from collections.abc import Iterator
from typing import Any

import pytest
import yaml
from typer.main import get_command
from typer.testing import CliRunner

from service.cli.root import app
from service.coordinator.chores.signs_of_life import ALIVE_FILE
from service.settings import Settings
from tests.support.checkout import ROOT

COMPOSE: dict[str, Any] = yaml.safe_load((ROOT / "docker-compose.yml").read_text())
DOCKERFILE = (ROOT / "Dockerfile").read_text()
SERVICES: dict[str, dict[str, Any]] = COMPOSE["services"]
VARIABLES = {f"NIGHTSWEEP_{name.upper()}" for name in Settings.model_fields}


def command_words(name: str) -> list[str]:
    """A service's command, a shell's script included, as words."""
    command = SERVICES[name]["command"]
    return shlex.split(command[2], posix=True) if command[:2] == ["sh", "-c"] else list(command)


def nightsweep_commands() -> Iterator[list[str]]:
    for name in SERVICES.keys() - {"postgres"}:
        words = command_words(name)
        if "nightsweep" in words:
            yield words[words.index("nightsweep") + 1 :]
    for line in re.findall(r"^CMD \[(.*)\]$", DOCKERFILE, flags=re.MULTILINE):
        words = re.findall(r'"([^"]*)"', line)
        yield words[1:]


@pytest.mark.parametrize("words", sorted(nightsweep_commands()), ids=" ".join)
def test_every_command_and_option_exists(words: list[str]) -> None:
    command: Any = get_command(app)
    while words and not words[0].startswith("-"):
        assert words[0] in command.commands, f"there is no command {words[0]!r}"
        command, words = command.commands[words[0]], words[1:]
    options = {option for parameter in command.params for option in parameter.opts}
    assert {word for word in words if word.startswith("--")} <= options
    assert CliRunner().invoke(app, ["--help"]).exit_code == 0


def test_every_variable_is_a_setting() -> None:
    text = (ROOT / "docker-compose.yml").read_text() + DOCKERFILE
    used = set(re.findall(r"NIGHTSWEEP_\w+", text))
    assert used - VARIABLES == set()
    assert {"NIGHTSWEEP_DATABASE_URL", "NIGHTSWEEP_RAY_ADDRESS", "NIGHTSWEEP_API_KEY"} <= used


def test_the_api_and_the_coordinator_have_the_same_limits() -> None:
    limits = {
        name for name in VARIABLES if name.startswith("NIGHTSWEEP_MAX_") and name.endswith("_PER_OWNER")
    }
    for service in ("api", "coordinator"):
        environment = SERVICES[service]["environment"]
        assert {name: environment[name] for name in limits} == dict.fromkeys(limits)  # as `.env` has them


def test_the_api_and_the_coordinators_workers_read_in_the_same_folders() -> None:
    roots = [SERVICES[service]["environment"]["NIGHTSWEEP_DATA_ROOTS"] for service in ("api", "coordinator")]
    assert roots == ["/data", "/data"]


def test_the_published_port_is_the_default_one_and_the_one_asked_for() -> None:
    port = str(Settings.model_fields["port"].default)
    api = SERVICES["api"]
    assert api["ports"] == [f"{port}:{port}"]
    assert api["command"][api["command"].index("--port") + 1] == port
    assert f"127.0.0.1:{port}/readyz" in " ".join(api["healthcheck"]["test"])


def test_the_api_that_others_reach_has_a_key() -> None:
    api = SERVICES["api"]
    assert api["command"][api["command"].index("--host") + 1] == "0.0.0.0"
    assert api["environment"]["NIGHTSWEEP_API_KEY"].startswith("${NIGHTSWEEP_API_KEY:?")


def test_ray_s_address_is_the_head_s_port_everywhere() -> None:
    head = command_words("ray-head")
    address = f"ray-head:{head[head.index('--port') + 1]}"
    assert SERVICES["coordinator"]["environment"]["NIGHTSWEEP_RAY_ADDRESS"] == address
    for name in ("coordinator", "gpu-worker", "cpu-worker"):
        words = command_words(name)
        assert words[words.index("--address") + 1] == address


def test_only_the_worker_nodes_offer_cpus() -> None:
    for name in ("ray-head", "coordinator"):
        words = command_words(name)
        assert words[words.index("--num-cpus") + 1] == "0"


def test_ray_s_object_store_fits_the_shared_memory_of_its_container() -> None:
    for name in ("ray-head", "coordinator", "gpu-worker", "cpu-worker"):
        words = command_words(name)
        megabytes = int(re.fullmatch(r"(\d+)mb", SERVICES[name]["shm_size"])[1])  # type: ignore[index]
        assert int(words[words.index("--object-store-memory") + 1]) <= megabytes * 2**20 * 0.9


def test_every_ray_node_has_the_token_and_ends_when_told_to() -> None:
    nodes = {name for name in SERVICES.keys() - {"postgres"} if "ray" in " ".join(command_words(name))}
    assert nodes == {"ray-head", "coordinator", "gpu-worker", "cpu-worker"}
    for name in nodes:
        environment = SERVICES[name]["environment"]
        assert environment["RAY_AUTH_MODE"] == "token"
        assert environment["RAY_AUTH_TOKEN"].startswith("${RAY_AUTH_TOKEN:?")
        assert environment["RAY_GRACEFUL_SHUTDOWN_DRAIN_TIMEOUT_S"] == "0"


def test_every_image_is_built_once() -> None:
    builders = [service["image"] for service in SERVICES.values() if "build" in service]
    assert len(builders) == len(set(builders))
    for name, service in SERVICES.items():
        assert service["image"] in {"postgres:18", *builders}, name
        if "build" not in service and name != "postgres":
            assert service["pull_policy"] == "never"


def test_the_coordinator_s_health_check_looks_at_the_file_the_coordinator_touches() -> None:
    assert f"/var/lib/nightsweep/{ALIVE_FILE}" in " ".join(SERVICES["coordinator"]["healthcheck"]["test"])
    assert "NIGHTSWEEP_HOME=/var/lib/nightsweep" in DOCKERFILE


def test_no_secret_is_written_down() -> None:
    for name, service in SERVICES.items():
        for variable, value in service.get("environment", {}).items():
            if re.search(r"PASSWORD|TOKEN|KEY|URL", variable):
                assert re.search(r"\$\{\w+:[?-]", str(value)), (
                    f"{name}: {variable} is not from the environment"
                )


def test_every_long_running_service_has_a_health_check_and_the_profiles_are_gpu_and_cpu() -> None:
    assert {name for name, service in SERVICES.items() if "healthcheck" not in service} == {"migrate"}
    profiles = {name: service["profiles"] for name, service in SERVICES.items() if "profiles" in service}
    assert profiles == {"gpu-worker": ["gpu"], "cpu-worker": ["cpu"]}


def test_a_job_that_others_wait_for_is_tried_again_a_few_times_only() -> None:
    jobs = {
        name
        for service in SERVICES.values()
        for name, dependency in service.get("depends_on", {}).items()
        if dependency["condition"] == "service_completed_successfully"
    }
    assert jobs == {"migrate"}
    assert re.fullmatch(r"on-failure:\d", SERVICES["migrate"]["restart"])


def test_adapters_are_written_and_read_at_one_place() -> None:
    for name in ("api", "gpu-worker", "cpu-worker"):
        assert "artifacts:/var/lib/nightsweep/artifacts" in SERVICES[name]["volumes"]
        assert "./data:/data:ro" in SERVICES[name]["volumes"]
    assert "./data:/data:ro" in SERVICES["coordinator"]["volumes"]  # it sees whether they have changed
    assert SERVICES["api"]["environment"]["NIGHTSWEEP_DATA_ROOTS"] == "/data"


def test_every_folder_the_image_copies_is_there() -> None:
    for line in re.findall(r"^COPY (.*)$", DOCKERFILE, flags=re.MULTILINE):
        for source in line.split()[:-1]:
            assert (ROOT / source).exists(), source


def test_what_is_secret_or_large_stays_out_of_the_build() -> None:
    assert {".env", "data", ".git"} <= set((ROOT / ".dockerignore").read_text().split())
    for name in re.findall(r"^ARG (\w+)", DOCKERFILE, flags=re.MULTILINE):
        assert name in COMPOSE["x-build-args"]
