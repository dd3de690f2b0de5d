"""What is in deploy/ is valid by the formats' own checkers, and says what the server understands."""

from __future__ import annotations

import configparser
import json
import re
import shlex
import shutil
import subprocess
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import kubernetes_validate
import pytest
import yaml
from passerby_client.cli import COMMANDS
from passerby_server.config import ServerConfig, load_config

ROOT = Path(__file__).resolve().parents[2]
DEPLOY = ROOT / "deploy"
BINARIES = Path(sys.executable).parent
UNIT = (DEPLOY / "systemd/passerby.service").read_text()
COMPOSE = yaml.safe_load((DEPLOY / "compose.yaml").read_text())
COMPOSE_TLS = yaml.safe_load((DEPLOY / "compose.tls.yaml").read_text())
OBJECTS = {one["kind"]: one for one in yaml.safe_load_all((DEPLOY / "kubernetes/passerby.yaml").read_text())}
POD = OBJECTS["StatefulSet"]["spec"]["template"]["spec"]


def unit() -> Mapping[str, list[str]]:
    """Every setting of the unit's [Service] with all of its values."""
    values: dict[str, list[str]] = {}
    parser = configparser.RawConfigParser(strict=False, delimiters=("=",), comment_prefixes=("#",))
    parser.optionxform = str  # type: ignore[assignment,method-assign]
    parser.read_string(UNIT)
    assert parser.sections() == ["Unit", "Service", "Install"]
    for line in UNIT.partition("[Service]")[2].partition("[Install]")[0].splitlines():
        if "=" in line and not line.startswith("#"):
            key, _, value = line.partition("=")
            values.setdefault(key, []).append(value)
    return values


def seconds(text: str) -> float:
    return float(text.removesuffix("s"))


def in_time(grace: float, config: ServerConfig) -> bool:
    """Whether running calls get the time that they are promised, and closing some more."""
    return grace >= config.drain_seconds + 10


def settings_of(environment: Mapping[str, str]) -> ServerConfig:
    return load_config({}, environment=environment)


def test_settings_to_begin_with_are_valid(tmp_path: Path) -> None:
    text = (DEPLOY / "server.yaml").read_text()
    assert load_config({}, file=DEPLOY / "server.yaml").metrics.address == "127.0.0.1:9464"
    opened = tmp_path / "server.yaml"
    opened.write_text(
        re.sub(r"^# (?=(address|tls|access|  \w+):)", "", text, flags=re.MULTILINE).replace(
            "address: 127.0.0.1:50051\n", "", 1
        )
    )
    config = load_config({}, file=opened)
    assert config.address == "0.0.0.0:50051"
    assert config.tls.certificate is not None
    assert config.access.file is not None


@pytest.mark.skipif(shutil.which("systemd-analyze") is None, reason="no systemd-analyze on this machine")
def test_the_unit_passes_systemds_own_checks(tmp_path: Path) -> None:
    # The program has to exist where the unit says; everything else is as it is.
    file = tmp_path / "passerby.service"
    file.write_text(UNIT.replace("/opt/passerby/bin/passerby", str(BINARIES / "passerby")))
    done = subprocess.run(["systemd-analyze", "verify", file], capture_output=True, text=True, timeout=60)
    assert (done.returncode, done.stderr) == (0, "")
    # 0 is closed to everything, 10 open to all; 2.0 is the limit that this unit keeps.
    command = ["systemd-analyze", "security", "--offline=true", "--threshold=20", str(file)]
    done = subprocess.run(command, capture_output=True, text=True, timeout=60)
    assert done.returncode == 0, done.stdout[-400:]


def test_the_unit_says_what_the_server_understands() -> None:
    service = unit()
    (start,) = service["ExecStart"]
    words = shlex.split(start)
    assert words[0].endswith("/passerby")
    assert words[1] in COMMANDS
    environment = dict(value.split("=", 1) for value in service["Environment"])
    config = load_config({"bundle": "b"}, environment=environment)
    assert str(config.data).startswith("/var/lib/" + service["StateDirectory"][0])
    assert str(config.cache.folder) == "/var/cache/" + service["CacheDirectory"][0]
    assert in_time(seconds(service["TimeoutStopSec"][0]), config)
    assert service["ExecReload"] == ["/bin/kill -HUP $MAINPID"]
    assert {key: service[key] for key in ("NoNewPrivileges", "ProtectSystem", "PrivateTmp")} == {
        "NoNewPrivileges": ["yes"],
        "ProtectSystem": ["strict"],
        "PrivateTmp": ["yes"],
    }
    made = (DEPLOY / "systemd/passerby.sysusers.conf").read_text()
    assert re.search(rf"^u {service['User'][0]} ", made, re.MULTILINE)


@pytest.mark.parametrize("name", ["compose.yaml", "compose.tls.yaml"])
def test_compose_files_pass_the_schema(name: str) -> None:
    command = [str(BINARIES / "check-jsonschema"), "--builtin-schema", "vendor.compose-spec", str(DEPLOY / name)]
    done = subprocess.run(command, capture_output=True, text=True, timeout=60)
    assert done.returncode == 0, done.stdout


def test_compose_says_what_the_server_understands() -> None:
    service = COMPOSE["services"]["passerby"]
    config = settings_of(service["environment"])
    assert in_time(seconds(service["stop_grace_period"]), config)
    assert service["build"]["target"] in (ROOT / "Dockerfile").read_text()
    ports = [port for one in COMPOSE["services"].values() for port in one["ports"]]
    assert all(port.startswith(("127.0.0.1:", "${PASSERBY_LISTEN:-127.0.0.1}:")) for port in ports)
    assert f":{config.address.rpartition(':')[2]}" in service["ports"][0]
    folders = {volume.partition(":")[0] for one in COMPOSE["services"].values() for volume in one["volumes"]}
    named = {folder for folder in folders if not folder.startswith(("./", "$"))}
    assert named == set(COMPOSE["volumes"])
    assert all((DEPLOY / folder).exists() for folder in folders if folder.startswith("./"))
    images = [one["image"] for name, one in COMPOSE["services"].items() if name != "passerby"]
    assert all(re.fullmatch(r"[\w/]+:v?\d+\.\d+\.\d+", image) for image in images), (
        "a version that may change by itself"
    )


def test_compose_with_tls_does_without_insecure_listening() -> None:
    service = COMPOSE["services"]["passerby"]
    overlay = COMPOSE_TLS["services"]["passerby"]
    config = settings_of(service["environment"] | overlay["environment"])
    assert not config.insecure_listen
    assert config.tls.certificate is not None
    folder = overlay["volumes"][0].split(":")[-2]
    assert {str(path.parent) for path in (config.tls.certificate, config.tls.key, config.access.file) if path} == {
        folder
    }
    assert overlay["healthcheck"]["test"][1:3] == ["passerby", "health"]


@pytest.mark.parametrize("version", ["1.30", kubernetes_validate.latest_version()])
def test_kubernetes_manifests_pass_the_schemas(version: str) -> None:
    for one in OBJECTS.values():
        kubernetes_validate.validate(one, version, strict=True)


def test_kubernetes_manifests_fit_together(tmp_path: Path) -> None:
    (container,) = POD["containers"]
    file = tmp_path / "server.yaml"
    file.write_text(OBJECTS["ConfigMap"]["data"]["server.yaml"])
    config = load_config({}, file=file)
    assert not config.insecure_listen
    assert in_time(POD["terminationGracePeriodSeconds"], config)
    ports = {port["name"]: port["containerPort"] for port in container["ports"]}
    assert {"grpc": config.address, "metrics": config.metrics.address} == {
        name: f"0.0.0.0:{port}" for name, port in ports.items()
    }
    for probe in ("startupProbe", "readinessProbe", "livenessProbe"):
        assert container[probe]["httpGet"]["port"] == "metrics"
    volumes = {volume["name"] for volume in POD["volumes"]}
    volumes |= {claim["metadata"]["name"] for claim in OBJECTS["StatefulSet"]["spec"]["volumeClaimTemplates"]}
    mounts = {mount["name"]: mount["mountPath"] for mount in container["volumeMounts"]}
    assert set(mounts) == volumes
    for path in (
        config.bundle,
        config.data,
        config.cache.folder,
        config.tls.certificate,
        config.tls.key,
        config.access.file,
    ):
        assert any(str(path).startswith(f"{mount}/") for mount in mounts.values()), path
    labels = OBJECTS["StatefulSet"]["spec"]["template"]["metadata"]["labels"]
    for selector in (
        OBJECTS["Service"]["spec"]["selector"],
        OBJECTS["StatefulSet"]["spec"]["selector"]["matchLabels"],
        OBJECTS["NetworkPolicy"]["spec"]["podSelector"]["matchLabels"],
    ):
        assert selector.items() <= labels.items()
    assert {port["port"] for rule in OBJECTS["NetworkPolicy"]["spec"]["ingress"] for port in rule["ports"]} == set(
        ports.values()
    )


def test_there_is_one_server_for_a_gallery_and_it_may_do_little() -> None:
    assert OBJECTS["StatefulSet"]["spec"]["replicas"] == 1
    assert POD["securityContext"]["runAsNonRoot"] is True
    assert f"USER {POD['securityContext']['runAsUser']}:" in (ROOT / "Dockerfile").read_text()
    (container,) = POD["containers"]
    assert container["securityContext"]["readOnlyRootFilesystem"] is True
    assert container["securityContext"]["capabilities"] == {"drop": ["ALL"]}
    assert {"requests", "limits"} <= set(container["resources"])
    assert OBJECTS["NetworkPolicy"]["spec"]["egress"] == []


def test_grafana_finds_the_dashboard_and_its_data() -> None:
    provisioning = DEPLOY / "grafana/provisioning"
    sources = yaml.safe_load((provisioning / "datasources/prometheus.yaml").read_text())["datasources"]
    host, _, port = sources[0]["url"].removeprefix("http://").partition(":")
    assert f"127.0.0.1:{port}:{port}" in COMPOSE["services"][host]["ports"]
    folder = yaml.safe_load((provisioning / "dashboards/passerby.yaml").read_text())["providers"][0]["options"]["path"]
    mounted: Any = COMPOSE["services"]["grafana"]["volumes"]
    assert f"./grafana/passerby.json:{folder}/passerby.json:ro" in mounted
    assert json.loads((DEPLOY / "grafana/passerby.json").read_text())["title"] == "passerby"
