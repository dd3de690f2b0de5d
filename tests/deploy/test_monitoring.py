"""The Grafana dashboard and the Prometheus alerts speak of the metrics that a real server has, and the other way round."""

from __future__ import annotations

import itertools
import json
import re
from pathlib import Path
from typing import Any

import grpc
import pytest
import yaml
from passerby.v1 import gallery_service_pb2 as gallery_v1
from passerby.v1 import model_service_pb2 as model_v1
from passerby.v1 import tracklet_service_pb2 as tracklet_v1
from passerby_server.telemetry.reading import Reading, parse

from tests.encoders import make_bundle
from tests.server.live import refused, running
from tests.server.pictures import crops, sequence
from tests.server.telemetry.scrape import text

ROOT = Path(__file__).resolve().parents[2]
DEPLOY = ROOT / "deploy"
DASHBOARD = json.loads((DEPLOY / "grafana/passerby.json").read_text())
ALERTS = yaml.safe_load((DEPLOY / "prometheus/alerts.yaml").read_text())
PROMETHEUS = yaml.safe_load((DEPLOY / "prometheus/prometheus.yaml").read_text())
PROMETHEUS_LABELS = {"instance", "job", "le"}
"""Which Prometheus itself puts on series."""


@pytest.fixture(scope="module")
def page(tmp_path_factory: pytest.TempPathFactory) -> str:
    """The metrics of a server on which something of everything has happened."""
    folder = tmp_path_factory.mktemp("monitoring")
    with running(make_bundle(folder / "bundle"), folder / "data", metrics={"address": "127.0.0.1:0"}) as live:
        gallery = live.new_gallery()
        live.ingest(gallery, sequence(crops(2)))
        live.model.ReloadBundle(model_v1.ReloadBundleRequest(), timeout=60)
        refused(lambda: live.galleries.GetGallery(gallery_v1.GetGalleryRequest(name="galleries/none")))
        bulk = tracklet_v1.BulkIngestTrackletsRequest()
        list(live.tracklets.BulkIngestTracklets(iter([bulk]), timeout=20))
        return text(live.server.metrics_port)


@pytest.fixture(scope="module")
def reading(page: str) -> Reading:
    return parse(page)


def kinds(page: str) -> dict[str, str]:
    """Counter, gauge or histogram by the name of the family."""
    return dict(re.findall(r"^# TYPE (\w+) (\w+)$", page, re.MULTILINE))


def series(page: str) -> set[str]:
    """Names that queries may use."""
    ends = {"histogram": ("_bucket", "_sum", "_count")}
    return {name + end for name, kind in kinds(page).items() for end in ends.get(kind, ("",))}


def panels() -> list[dict[str, Any]]:
    return [panel for panel in DASHBOARD["panels"] if panel["type"] != "row"]


def dashboard_queries() -> list[str]:
    queries = [target["expr"] for panel in panels() for target in panel["targets"]]
    queries += [found["expr"] for found in DASHBOARD["annotations"]["list"]]
    return queries + [variable["query"] for variable in DASHBOARD["templating"]["list"] if variable["type"] == "query"]


def rules() -> list[dict[str, Any]]:
    return [rule for group in ALERTS["groups"] for rule in group["rules"]]


def names(query: str) -> set[str]:
    return set(re.findall(r"\b(?:passerby|process)_\w+", query))


ALL = [*dashboard_queries(), *(rule["expr"] for rule in rules())]


@pytest.mark.parametrize("query", ALL)
def test_queries_name_metrics_and_labels_that_exist(query: str, page: str, reading: Reading) -> None:
    assert names(query) - series(page) == set(), "no such metric"
    assert query.count("(") == query.count(")")
    for name, selected in re.findall(r"\b((?:passerby|process)_\w+)\{([^}]*)\}", query):
        wanted = set(re.findall(r"(\w+)(?:=~|!=|!~|=)", selected)) - PROMETHEUS_LABELS
        there = {key for labels in reading.labels(name) for key in labels}
        assert wanted <= there, f"{name} has the labels {there}"
    grouped = set(itertools.chain(*(re.split(r",\s*", by) for by in re.findall(r"by \(([^)]*)\)", query))))
    every = {key for name in names(query) for labels in reading.labels(name) for key in labels}
    assert grouped <= every | PROMETHEUS_LABELS


def test_counters_are_read_as_rates_and_gauges_are_not(page: str) -> None:
    kind = kinds(page)
    for query in ALL:
        for name in re.findall(r"(?:rate|increase)\(((?:passerby|process)_\w+)", query):
            family = re.sub(r"_(bucket|sum|count)$", "", name)
            assert kind.get(name, kind.get(family)) in ("counter", "histogram"), query
        for name in names(query):
            if kind.get(name) == "counter":
                assert f"rate({name}" in query or f"increase({name}" in query, query


def test_every_metric_is_on_the_dashboard(page: str) -> None:
    shown = {name for query in dashboard_queries() for name in names(query)}
    shown |= {re.sub(r"_(bucket|sum|count)$", "", name) for name in shown}
    ours = {name for name in kinds(page) if name.startswith("passerby_")}
    assert len(ours) > 20
    assert ours <= shown


def test_legends_name_labels_that_their_query_keeps(reading: Reading) -> None:
    for panel in panels():
        for target in panel["targets"]:
            legend = set(re.findall(r"\{\{(\w+)\}\}", target["legendFormat"]))
            grouped = re.search(r"by \(([^)]*)\)", target["expr"])
            if grouped:
                kept = set(re.split(r",\s*", grouped[1]))
            else:
                kept = {key for name in names(target["expr"]) for labels in reading.labels(name) for key in labels}
                kept |= PROMETHEUS_LABELS | {"gallery"}
            assert legend <= kept, target


def test_panels_have_their_places() -> None:
    taken: set[tuple[int, int]] = set()
    for panel in DASHBOARD["panels"]:
        place = panel["gridPos"]
        cells = {
            (x, y)
            for x in range(place["x"], place["x"] + place["w"])
            for y in range(place["y"], place["y"] + place["h"])
        }
        assert not cells & taken, panel["title"]
        assert place["x"] + place["w"] <= 24
        taken |= cells
    assert len({panel["id"] for panel in DASHBOARD["panels"]}) == len(DASHBOARD["panels"])


def test_alerts_are_few_and_explained() -> None:
    page = (ROOT / "docs/operations.md").read_text()
    for rule in rules():
        assert rule["labels"]["severity"] in ("page", "ticket")
        assert "summary" in rule["annotations"]
        assert f"`{rule['alert']}`" in page, "docs/operations.md does not say what to do"
    assert len(rules()) <= 10
    assert set(re.findall(r"`(Passerby\w+)`", page)) == {rule["alert"] for rule in rules()}


def test_statuses_and_reasons_in_queries_are_those_of_the_code() -> None:
    sources = "\n".join(path.read_text() for path in (ROOT / "server").rglob("*.py"))
    for query in ALL:
        for found in re.findall(r'code(?:=~|!=|=)"([^"]+)"', query):
            assert all(hasattr(grpc.StatusCode, code) for code in found.split("|"))
        for found in re.findall(r'reason=~"([^"]+)"', query):
            for pattern in found.split("|"):
                assert re.search(rf'"{pattern.replace(".*", "[A-Z_]+")}"', sources), pattern


def test_prometheus_asks_where_the_server_of_the_compose_file_answers() -> None:
    (job,) = PROMETHEUS["scrape_configs"]
    assert job["job_name"] == "passerby", "the alert PasserbyDown names it"
    assert PROMETHEUS["rule_files"] == ["alerts.yaml"]
    compose = yaml.safe_load((DEPLOY / "compose.yaml").read_text())
    ((target,),) = (config["targets"] for config in job["static_configs"])
    host, _, port = target.partition(":")
    assert compose["services"][host]["environment"]["PASSERBY_METRICS__ADDRESS"].endswith(f":{port}")
