"""docs/operations.md is run: its commands, in order, against a real server that is started by the page's own line."""

from __future__ import annotations

import json
import re
import shutil
import signal
import socket
import subprocess
from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple

import pytest
import yaml
from passerby_client import Client
from passerby_server.config import keys
from passerby_server.telemetry.calls import Stage

from tests.clients.conftest import crop
from tests.e2e.test_readme import BINARIES, blocks, run
from tests.encoders import make_bundle

ROOT = Path(__file__).resolve().parents[2]
PAGE = (ROOT / "docs/operations.md").read_text()
RUN, WATCH, UPGRADE, BACK, BACKUP = blocks("sh", PAGE)


class Workplace(NamedTuple):
    folder: Path
    address: str
    metrics: str


@pytest.fixture(scope="module")
def workplace(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Workplace]:
    """A server of two bundles, with a few tracklets; started by the first block."""
    folder = tmp_path_factory.mktemp("operations")
    for name, seed in (("2026-11", 0), ("2026-12", 1)):
        make_bundle(folder / "bundles" / name, seed=seed)
    (folder / "bundles/current").symlink_to("2026-11")
    with socket.create_server(("127.0.0.1", 0)) as free:
        metrics = f"127.0.0.1:{free.getsockname()[1]}"
    settings = {"bundle": "bundles/current", "address": "127.0.0.1:0", "threads": 1, "metrics": {"address": metrics}}
    (folder / "server.yaml").write_text(yaml.safe_dump(settings))
    check, serve = RUN.splitlines()
    assert "all valid" in run(check, folder)
    command = [str(BINARIES / "passerby"), *serve.split()[1:]]
    with subprocess.Popen(command, cwd=folder, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True) as process:
        try:
            assert process.stdout is not None
            ready = re.match(r"passerby is serving on (\S+) ", process.stdout.readline())
            assert ready
            with Client(ready[1]) as client:
                client.create_gallery("station")
                client.ingest_tracklet("station", [crop((50, 100, 30))] * 2, camera="entrance")
            yield Workplace(folder, ready[1], metrics)
        finally:
            process.send_signal(signal.SIGTERM)
            assert process.wait(60) == 0


@pytest.mark.skipif(shutil.which("curl") is None, reason="no curl on this machine")
def test_watch(workplace: Workplace) -> None:
    printed = run(WATCH.replace("127.0.0.1:9464", workplace.metrics), workplace.folder, workplace.address)
    assert printed.startswith("SERVING\nSERVING\n")
    assert "passerby_queue_snippets 0.0" in printed
    assert "IngestTracklet" in printed


def test_upgrade_and_back(workplace: Workplace) -> None:
    with Client(workplace.address) as client:
        before = client.model_info().model_fingerprint
        run(UPGRADE, workplace.folder, workplace.address)
        after = client.model_info().model_fingerprint
        assert after != before
        run(BACK, workplace.folder, workplace.address)
        assert client.model_info().model_fingerprint == before


def test_backup(workplace: Workplace) -> None:
    printed = run(BACKUP, workplace.folder)
    assert "1 gallery, 1 tracklet, " in printed
    assert printed.endswith("sound\n")


def test_names_on_the_page_exist() -> None:
    named = set(re.findall(r"`((?:metrics|tracing|batching|limits)\.\w+)`", PAGE))
    assert named
    assert named <= set(keys())
    (stages,) = re.findall(r"where they spend it \((.*?)\)", PAGE, re.DOTALL)
    assert set(re.findall(r"`(\w+)`", stages)) == set(Stage.__args__)  # type: ignore[attr-defined]
    for path in re.findall(r"^\| `([\w/.`, ]+)` \|", PAGE.partition("## Run")[0], re.MULTILINE):
        for one in path.split("`, `"):
            assert (ROOT / "deploy" / one).exists(), one
    sources = "\n".join(path.read_text() for path in (ROOT / "server").rglob("*.py"))
    for reason in re.findall(r"\(`([A-Z]+_[A-Z_]+)`\)", PAGE):
        assert f'"{reason}"' in sources, reason


def test_figures_are_those_of_the_results() -> None:
    figures = json.loads((ROOT / "benchmarks/results/telemetry.json").read_text())["figures"]
    counted, traced = figures["search with four stages, metrics"], figures["the same, traced"]
    (said,) = re.findall(r"costs (\d+) microseconds of one thread, tracing it (\d+)", PAGE)
    assert said == (str(round(counted / 1000)), str(round(traced / 1000)))
    reload = json.loads((ROOT / "benchmarks/results/reload.json").read_text())
    memory = reload["memory_mib"]
    text = " ".join(PAGE.split())
    assert f"took {memory['before']} MiB before, {memory['peak']} at the peak, {memory['after_each'][-1]} after" in text
    assert f"and {reload['failed_calls']} calls failed" in text
    assert f"a page of metrics costs {round(figures['page of metrics'] / 1e6)} ms" in PAGE
