"""Configuration: flags > environment > file > default; wrong keys and values explain themselves."""

from __future__ import annotations

import re
from pathlib import Path

import pytest
from passerby.errors import InvalidArgumentError, NotFoundError
from passerby.v1 import search_service_pb2 as search_v1
from passerby_server.config import CLIENT_VARIABLES, ServerConfig, keys, load_config
from passerby_server.convert import rerank
from passerby_server.sections import Batching, Cache, Limits
from pydantic import BaseModel

ROOT = Path(__file__).resolve().parents[2]


def test_precedence(tmp_path: Path) -> None:
    file = tmp_path / "server.yaml"
    file.write_text(
        "bundle: from-file\naddress: 127.0.0.1:1\nlimits:\n  max_frames: 1\n  max_top_k: 1\n  max_pixels: 2000\n"
    )
    environment = {
        "PASSERBY_ADDRESS": "127.0.0.1:2",
        "PASSERBY_LIMITS__MAX_FRAMES": "2",
        "PASSERBY_LIMITS__MAX_TOP_K": "2",
        "HOME": "/home/someone",
    }
    flags = {"address": "127.0.0.1:3", "limits.max_frames": "3", "backend": None}
    config = load_config(flags, environment=environment, file=file)
    assert config.bundle == Path("from-file")
    assert config.address == "127.0.0.1:3"
    assert (config.limits.max_frames, config.limits.max_top_k, config.limits.max_pixels) == (3, 2, 2000)
    assert config.limits.max_page_size == Limits().max_page_size
    assert config.backend == "auto"


@pytest.mark.parametrize(
    ("flags", "environment", "text", "message"),
    [
        ({}, {}, "limits: {max_frame: 3}", "unknown key limits.max_frame; did you mean limits.max_frames?"),
        ({}, {"PASSERBY_ADRESS": "x"}, "", "unknown key PASSERBY_ADRESS; did you mean PASSERBY_ADDRESS?"),
        ({"batching.max_wait": "1"}, {}, "", "unknown key batching.max_wait; did you mean batching.max_wait_ms?"),
        ({}, {}, "limits: 3", "limits"),
        ({}, {}, "[1, 2]", "holds no mapping"),
        ({}, {}, "a: [", "is no YAML"),
        ({"limits.max_frames": "0"}, {}, "", "limits.max_frames: Input should be greater than or equal to 1"),
        ({"limits.max_frames": "many"}, {}, "", "limits.max_frames: Input should be a valid integer"),
        ({"backend": "cuda"}, {}, "", "backend: Input should be 'auto', 'openvino', 'onnxruntime', 'onnxruntime-cuda'"),
        ({"address": "localhost"}, {}, "", "address 'localhost' is not HOST:PORT"),
        ({"address": "127.0.0.1:70000"}, {}, "", "is not HOST:PORT"),
        ({"limits.max_message_bytes": "1000000"}, {}, "", "limits.max_frame_bytes is larger"),
        ({"tls.certificate": "c.pem"}, {}, "", "tls.certificate and tls.key belong together"),
        ({"tls.client_ca": "ca.pem"}, {}, "", "tls.client_ca needs tls.certificate and tls.key"),
        ({"audit.keep_days": "30"}, {}, "", "audit.* needs access.file"),
    ],
    ids=lambda value: str(value)[:40],
)
def test_wrong_settings_explain_themselves(tmp_path: Path, flags, environment, text: str, message: str) -> None:
    file = tmp_path / "server.yaml"
    file.write_text(text)
    with pytest.raises(InvalidArgumentError, match=re.escape(message)):
        load_config({"bundle": "b"} | flags, environment=environment, file=file)


def test_the_bundle_is_required() -> None:
    with pytest.raises(InvalidArgumentError, match="give --bundle, PASSERBY_BUNDLE or `bundle:` in the file"):
        load_config({})


def test_a_missing_file_is_named(tmp_path: Path) -> None:
    with pytest.raises(NotFoundError, match=r"absent\.yaml"):
        load_config({"bundle": "b"}, file=tmp_path / "absent.yaml")


@pytest.mark.parametrize("address", ["0.0.0.0:50051", "[::]:50051", "10.1.2.3:1", "server.example:50051"])
def test_listening_beyond_this_machine_has_to_be_asked_for(address: str) -> None:
    with pytest.raises(InvalidArgumentError, match=r"there is no TLS .* and no authentication") as raised:
        load_config({"bundle": "b", "address": address})
    assert "--insecure-listen" in raised.value.message
    tls = {"tls.certificate": "c.pem", "tls.key": "k.pem"}
    with pytest.raises(InvalidArgumentError, match=r"there is no authentication \(access\.file\)"):
        load_config({"bundle": "b", "address": address} | tls)
    with pytest.raises(InvalidArgumentError, match=r"there is no TLS \(tls\.certificate, tls\.key\)"):
        load_config({"bundle": "b", "address": address, "access.file": "callers.json"})
    assert load_config({"bundle": "b", "address": address, "access.file": "callers.json"} | tls).address == address
    assert load_config({"bundle": "b", "address": address, "insecure_listen": True}).address == address


@pytest.mark.parametrize("address", ["127.0.0.1:0", "localhost:1", "[::1]:50051", "127.8.8.8:1"])
def test_this_machine_alone_is_fine(address: str) -> None:
    assert load_config({"bundle": "b", "address": address}).address == address


def test_every_setting_is_described() -> None:
    kinds = [field.annotation for field in ServerConfig.model_fields.values()]
    sections = [kind for kind in kinds if isinstance(kind, type) and issubclass(kind, BaseModel)]
    assert {Limits, Batching, Cache} <= set(sections)
    every: list[type[BaseModel]] = [ServerConfig, *sections]
    for section in every:
        for name, field in section.model_fields.items():
            if field.annotation not in sections:
                assert field.description, name
    assert "limits.max_frames" in list(keys())


def test_the_clients_variables_are_no_unknown_keys() -> None:
    used = {
        name
        for path in (ROOT / "clients").rglob("*.py")
        for name in re.findall(r'envvar="(PASSERBY_[A-Z_]+)"', path.read_text())
    }
    assert used <= CLIENT_VARIABLES
    load_config({"bundle": "b"}, environment=dict.fromkeys(CLIENT_VARIABLES, "x"))


def test_what_kubernetes_sets_beside_a_service_of_our_name_is_no_setting() -> None:
    names = ["SERVICE_HOST", "SERVICE_PORT", "SERVICE_PORT_GRPC", "PORT", "PORT_50051_TCP", "PORT_50051_TCP_ADDR"]
    load_config({"bundle": "b"}, environment={f"PASSERBY_{name}": "tcp://10.0.0.1:50051" for name in names})
    with pytest.raises(InvalidArgumentError, match="unknown key PASSERBY_SERVICES"):
        load_config({"bundle": "b"}, environment={"PASSERBY_SERVICES": "x"})


@pytest.mark.parametrize("setting", ["limits.max_shortlist", "limits.max_page_size"])
def test_a_limit_cannot_promise_more_than_the_gallery_gives(setting: str) -> None:
    with pytest.raises(InvalidArgumentError, match=f"{setting}: Input should be less than or equal to"):
        load_config({"bundle": "b", setting: "5000"})


@pytest.mark.parametrize(("most", "shortlist", "k1"), [(100, 100, 20), (15, 15, 15), (2000, 200, 20)], ids=str)
def test_rerank_defaults_stay_within_a_lowered_limit(most: int, shortlist: int, k1: int) -> None:
    request = search_v1.SearchTrackletsRequest(rerank=search_v1.RerankOptions())
    made = rerank(request, 10, Limits(max_shortlist=most))
    assert made is not None
    assert (made.shortlist_size, made.k1) == (shortlist, k1)
