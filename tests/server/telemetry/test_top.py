"""`passerby top`: figures from two readings, and one frame of a real server."""

from __future__ import annotations

import io
import threading
from pathlib import Path

import pytest
from passerby.v1 import gallery_service_pb2 as gallery_v1
from passerby_client.cli import main
from passerby_server.telemetry.reading import Between, Reading, parse
from passerby_server.telemetry.top import frame
from rich.console import Console

from tests.server.live import refused, running
from tests.server.pictures import crops, sequence

PAGE = """
process_start_time_seconds 7
calls_total{method="A",code="OK"} %d
calls_total{method="A",code="NOT_FOUND"} %d
calls_total{method="B",code="OK"} 5
seconds_bucket{le="0.1"} %d
seconds_bucket{le="0.2"} %d
seconds_bucket{le="+Inf"} %d
seconds_count %d
seconds_sum %g
"""


def reading(page: str, time: float) -> Reading:
    return Reading(parse(page).values, time)


def test_rates_and_quantiles_are_of_what_happened_between() -> None:
    before = reading(PAGE % (100, 1, 10, 10, 10, 10, 9.0), 50.0)
    now = reading(PAGE % (120, 3, 14, 18, 20, 20, 11.0), 54.0)
    between = Between(before, now)
    assert between.rate("calls_total", method="A") == pytest.approx(5.5)
    assert between.rate("calls_total", method="A", code="OK") == 5
    assert between.rate("calls_total", code="OK") == 5
    assert between.rate("nothing") == 0
    assert between.mean("seconds") == pytest.approx(0.2)
    assert between.mean("nothing") is None
    # Of ten new observations four lie up to 0.1, eight up to 0.2: the fifth is a quarter into the second bucket.
    assert between.quantile(0.5, "seconds") == pytest.approx(0.125)
    assert between.quantile(0.99, "seconds") == pytest.approx(0.2), "above the last bound nothing is known"
    assert between.quantile(0.5, "nothing") is None


def test_after_a_restart_everything_is_new() -> None:
    before = reading(PAGE % (100, 1, 10, 10, 10, 10, 9.0), 50.0)
    now = reading((PAGE % (4, 0, 1, 1, 1, 1, 0.1)).replace("seconds 7", "seconds 51"), 54.0)
    assert Between(before, now).rate("calls_total", method="A") == 1


def shown(capsys: pytest.CaptureFixture[str], *arguments: str, code: int = 0) -> str:
    with pytest.raises(SystemExit) as ended:
        main(["top", "--once", *arguments])
    captured = capsys.readouterr()
    assert (ended.value.code or 0) == code, captured.err
    return captured.err if code else captured.out


def test_one_frame_of_a_real_server(bundle: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    with running(bundle, tmp_path, metrics={"address": "127.0.0.1:0"}) as live:
        gallery, done = live.new_gallery(), threading.Event()

        def load() -> None:
            while not done.is_set():
                live.ingest(gallery, sequence(crops(5)))
                refused(lambda: live.galleries.GetGallery(gallery_v1.GetGalleryRequest(name="galleries/none")))

        thread = threading.Thread(target=load)
        thread.start()
        try:
            url = f"http://127.0.0.1:{live.server.metrics_port}/metrics"
            picture = shown(capsys, "--metrics", url, "--interval", "0.5")
            wrong_path = shown(capsys, "--metrics", url.replace("metrics", "metric"), code=1)
            wrong_port = shown(capsys, "--metrics", f"127.0.0.1:{live.port}", code=1)
        finally:
            done.set()
            thread.join()
    assert "404" in wrong_path or "Not Found" in wrong_path
    assert "is no metrics port" in wrong_port
    assert "metrics.address" in wrong_port
    lines = {line.split()[0]: line.split() for line in picture.splitlines() if line.strip()}
    assert "SERVING" in lines["passerby"]
    assert lines["model"][1] == "tiny"
    assert float(lines["IngestTracklet"][1]) > 0
    assert float(lines["IngestTracklet"][2]) == 0
    assert float(lines["GetGallery"][1]) == float(lines["GetGallery"][2]) > 0
    assert lines["GetGallery"][4] in ("ms", "s")
    assert float(lines["encode"][1]) > 0
    assert lines["NOT_FOUND"][1] == "GALLERY_NOT_FOUND"
    assert lines["all"][1] == "1"
    assert gallery.removeprefix("galleries/") not in picture


def test_of_many_galleries_the_largest_are_shown() -> None:
    page = "".join(f'passerby_gallery_tracklets{{gallery="g{number}"}} {number}\n' for number in range(15))
    console = Console(width=100, record=True, file=io.StringIO())
    console.print(frame(Between(reading(page, 1.0), reading(page, 2.0)), "here"))
    words = console.export_text().split()
    assert [word for word in words if word in {f"g{number}" for number in range(15)}] == [
        f"g{number}" for number in range(14, 4, -1)
    ]
    assert "and 5 smaller ones" in " ".join(words)


def test_without_metrics_it_says_what_is_missing(capsys: pytest.CaptureFixture[str]) -> None:
    said = shown(capsys, "--metrics", "127.0.0.1:9", code=1)
    assert "no metrics at http://127.0.0.1:9/metrics" in said
    assert "metrics.address" in said
