"""`passerby bundle tune`: what is measured, when the default gives way, and what is written."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from passerby_export import tune as tuning_tool
from passerby_export.tune import LEAST_GAIN, settings_for, tune, verdict_of
from passerby_model.backends.cores import usable_cores
from passerby_model.backends.tuning import Setting, find_tuning
from passerby_model.bundle import open_bundle

from tests.commands import Run
from tests.encoders import make_bundle


@pytest.mark.parametrize("cores", [1, 2, 3, 4, 16, 200])
@pytest.mark.parametrize("max_batch", [1, 2, 8, 32])
@pytest.mark.parametrize("streams", [1, 2])
def test_settings_begin_with_the_default_and_stay_within_what_was_proven(
    monkeypatch: pytest.MonkeyPatch, cores: int, max_batch: int, streams: int
) -> None:
    monkeypatch.setattr(tuning_tool, "usable_cores", lambda: cores)
    streams = min(streams, cores)
    settings = settings_for(0, max_batch, streams)
    assert settings[0] == Setting(streams=streams, threads=cores, max_batch=max_batch)
    assert len(settings) == len(set(settings)) <= 24
    assert all(s.streams <= s.threads <= cores and 1 <= s.max_batch <= max_batch for s in settings)
    assert {s.threads for s in settings} == ({cores} if cores < 4 else {cores, cores // 2})


def test_threads_that_were_asked_for_are_kept() -> None:
    assert {setting.threads for setting in settings_for(6, 8, 2)} == {6}
    assert {setting.streams for setting in settings_for(6, 8, 2)} == {1, 2, 4}


@pytest.mark.parametrize(
    ("gains", "better"),
    [
        ([1.2] * 7, True),
        ([1.0] * 7, False),
        ([1 + LEAST_GAIN / 2] * 7, False),
        ([0.8] * 7, False),
        # The median is 10 % up, but the rounds differ by more than that.
        ([0.6, 1.6, 1.1, 0.5, 1.7, 1.1, 0.7], False),
        # One round in which something else ran says nothing.
        ([1.2, 1.21, 1.19, 0.3, 1.2, 1.22, 1.2], True),
        ([1.0, 1.01, 0.99, 9.0, 1.0, 1.0, 1.02], False),
    ],
    ids=["faster", "same", "hardly", "slower", "noisy", "one-bad-round", "one-lucky-round"],
)
def test_the_default_gives_way_to_more_than_noise_alone(gains: list[float], better: bool) -> None:
    assert verdict_of([(10 * gain, 10.0) for gain in gains]).better is better


def test_the_result_is_one_of_the_settings_and_is_found_again(tmp_path: Path, run: Run) -> None:
    bundle = make_bundle(tmp_path / "bundle", slow=20)
    cache = tmp_path / "cache"
    done = run("bundle", "tune", bundle, "--threads", 2, "--seconds", 0, "--cache", cache, "--json")
    assert done.code == 0, done.err
    printed = json.loads(done.out)
    measured = [row["setting"] for row in printed["measured"]]
    assert len(measured) == 6
    assert printed["default"] == measured[0] == {"streams": 2, "threads": 2, "max_batch": 8}
    assert printed["chosen"] in measured
    assert all(row["snippets_per_second"] > 0 and row["rounds"] >= 1 for row in printed["measured"])
    assert (printed["chosen"] == printed["default"]) == (printed["gain"] == 1.0)
    opened = open_bundle(bundle)  # also: nothing was left in the bundle, which has a checksum for each file
    found = find_tuning(cache, opened, opened.manifest.artefacts[0], "openvino", 2)
    assert found is not None
    assert found.model_dump(mode="json") == {key: value for key, value in printed.items() if key != "file"}
    assert printed["file"] == str(next(cache.rglob("*.json")))


def test_a_faster_setting_is_taken_and_a_slower_one_never(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    rates = {2: 30.0, 4: 5.0, 8: 10.0}
    real = tuning_tool._Runner.run

    def known(self, snippets, pool):
        real(self, snippets[:8], pool)
        self.rates[-1] = rates[self.setting.max_batch] * (1 if self.setting.streams == 1 else 0.9)
        return self.rates[-1]

    monkeypatch.setattr(tuning_tool._Runner, "run", known)
    bundle = make_bundle(tmp_path)
    found = tune(bundle, backend="onnxruntime", threads=1, seconds=0)
    assert (found.chosen.max_batch, found.gain) == (2, 3.0)
    rates[2] = 9.0
    found = tune(bundle, backend="onnxruntime", threads=1, seconds=0)
    assert (found.chosen, found.gain) == (found.default, 1.0)


def test_the_command_says_what_it_measured_and_refuses_what_it_does_not_know(tmp_path: Path, run: Run) -> None:
    bundle = make_bundle(tmp_path / "bundle")
    done = run("bundle", "tune", bundle, "--backend", "onnxruntime", "--threads", 1, "--seconds", 0)
    assert done.code == 0, done.err
    assert "1 streams, 1 threads, batch 8: " in done.out
    # One of the two, never both.
    stays, taken = "the default stays" in done.out, "the server takes it at its next start" in done.out
    assert stays != taken
    assert ".json" in done.out.splitlines()[-1]
    assert run("bundle", "tune", bundle, "--backend", "abacus").code == 1
    assert "nothing to tune for tensorrt" in run("bundle", "tune", bundle, "--backend", "tensorrt").err
    (tmp_path / "file").write_text("no folder")
    done = run("bundle", "tune", bundle, "--cache", tmp_path / "file")
    assert (done.code, "name another folder with --cache" in done.err) == (1, True)


def test_cores_are_those_that_the_process_may_use() -> None:
    assert settings_for(0, 8, 1)[0].threads == usable_cores()
