"""The command `passerby evaluate` on real bundles and data; edge cases each with their message."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from passerby.errors import InvalidArgumentError
from passerby_export import evaluate_cache
from passerby_export.evaluate import Options, evaluate
from passerby_export.evaluate_cache import cache_key
from passerby_export.evaluate_data import read_attribute_labels, read_subject, subject_names
from passerby_export.evaluate_models import open_model
from passerby_model.datasets import read
from passerby_model.descriptors import ClipScheme
from passerby_model.street import StreetConfig, write
from PIL import Image

from tests.commands import Run
from tests.encoders import make_bundle


@pytest.fixture(scope="module")
def street(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("data") / "street"
    write(StreetConfig(identities=10, cameras=3, frames=5, height=64, width=32, seed=5), folder, masks=True)
    return folder


@pytest.fixture(scope="module")
def bundle(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_bundle(tmp_path_factory.mktemp("model") / "tiny", masks=(4, 5))


def people(root: Path, seen: dict[str, tuple[str, ...]]) -> Path:
    """A plain data set: identity -> cameras, one frame each."""
    random = np.random.default_rng(0)
    for identity, cameras in seen.items():
        for camera in cameras:
            folder = root / identity / camera / "t1"
            folder.mkdir(parents=True)
            Image.fromarray(random.integers(0, 256, (32, 16, 3), np.uint8)).save(folder / "1.png")
    return root


def test_table_report_and_pictures(run: Run, bundle: Path, street: Path, tmp_path: Path) -> None:
    out = tmp_path / "report"
    flags = ["--rerank", "--open-set", "--attributes", "hat,backpack", "--silhouettes", f"{street}-masks"]
    done = run("evaluate", bundle, "--data", street, *flags, "--out", out, "--threads", 1)
    assert done.code == 0, done.err
    lines = done.out.splitlines()
    assert lines[0].startswith("bundle tiny: mean-colour, fingerprint ")
    plain, again = (line.split() for line in lines if line.strip().startswith("street   test    all-vs-all"))
    assert plain[3:5] == ["30", "30"]  # queries, gallery
    assert "re-ranked" in again
    assert "protocol all-vs-all, plain AP, squared Euclidean distance, dense, snippets of 4" in lines
    assert sum("backpack" in line for line in lines) == 4 + 1  # two values, two rankings, and in the masks' table
    assert "centre prior" in done.out

    report = json.loads((out / "report.json").read_text())
    assert [result["rerank"] for result in report["results"]] == [None, {"k1": 20, "k2": 6, "original_weight": 0.3}]
    assert report["model"]["fingerprint"] == report["results"][0]["model"]
    assert f"{100 * report['results'][0]['mean_average_precision']:.1f}" == plain[5]
    assert report["open_set"][0]["genuine_pairs"] == 30
    assert {"passerby", "numpy", "python"} <= set(report["versions"])
    assert set(report["attention"]["street"]) >= {"cosam4", "cosam5", "centre_prior"}
    pictures = {path.name for path in out.glob("*.png")}
    assert pictures >= {"cmc.png", "distances-street-1.png", "ranked-street-1-worst.png", "ranked-street-2-best.png"}
    page = (out / "report.html").read_text()
    assert page.count("<img") == len(pictures)
    assert "FPIR" in page


def test_json_alone_on_standard_output(run: Run, bundle: Path, street: Path) -> None:
    done = run(
        "evaluate",
        bundle,
        "--data",
        street,
        "--protocol",
        "by-camera",
        "--query-camera",
        "c2",
        "--json",
        "--ap",
        "trapezoid",
    )
    assert done.code == 0, done.err
    (result,) = json.loads(done.out)["results"]
    assert result["name"].startswith("by-camera c2, trapezoid AP, squared Euclidean distance")
    assert (result["queries"], result["gallery"], result["skipped_queries"]) == (10, 20, 0)
    assert len(result["cmc"]) == 50  # longer than the gallery: the last value goes on
    assert result["cmc"][-1] == result["cmc"][19] == 1.0


def test_several_data_sets_one_model(run: Run, bundle: Path, street: Path, tmp_path: Path) -> None:
    other = people(tmp_path / "station", {"ann": ("a", "b"), "ben": ("a", "b"), "eve": ("a",)})
    done = run("evaluate", bundle, "--data", street, "--data", other, "--max-frames", 2, "--json")
    assert done.code == 0, done.err
    first, second = json.loads(done.out)["results"]
    assert (first["data"], second["data"]) == ("street", "station")
    assert subject_names([street, other, tmp_path / "x/street"]) == [str(street), "station", str(tmp_path / "x/street")]
    assert (second["queries"], second["valid_queries"], second["skipped_queries"]) == (5, 4, 1)
    assert "at most 2 frames" in first["name"]


def test_ten_splits_and_their_mean(run: Run, bundle: Path, tmp_path: Path) -> None:
    names = [f"person_{number:04d}" for number in range(1, 9)]
    root = tmp_path / "prid"
    people(root / "flat", dict.fromkeys(names, ("cam_a", "cam_b")))
    for name in names:
        for camera in ("cam_a", "cam_b"):
            target = root / "prid_2011/multi_shot" / camera / name
            target.parent.mkdir(parents=True, exist_ok=True)
            shutil.move(root / "flat" / name / camera / "t1", target)
    shutil.rmtree(root / "flat")
    random = np.random.default_rng(3)
    halves = [random.permutation(names).tolist() for _ in range(10)]
    (root / "splits_prid2011.json").write_text(json.dumps([{"train": h[:4], "test": h[4:]} for h in halves]))
    done = run("evaluate", bundle, "--data", root, "--json")
    assert done.code == 0, done.err
    report = json.loads(done.out)
    assert len(report["results"]) == 10
    assert {result["protocol"] for result in report["results"]} == {"A"}
    precisions = [result["mean_average_precision"] for result in report["results"]]
    (mean,) = report["averages"]
    assert mean["splits"] == 10
    assert mean["mean_average_precision"] == pytest.approx(np.mean(precisions))
    assert mean["mean_average_precision_deviation"] == pytest.approx(np.std(precisions, ddof=1))
    shown = run("evaluate", bundle, "--data", root, "--splits", "2-3,7")
    assert "mean of 3" in shown.out
    assert " ± " in shown.out
    assert "the data has the splits 1 to 10" in run("evaluate", bundle, "--data", root, "--splits", "0-2").err
    assert "write numbers such as 1,3" in run("evaluate", bundle, "--data", root, "--splits", "first").err


def test_protocols_a_and_b_on_real_tracklets(run: Run, bundle: Path, shared: Path) -> None:
    data = shared / "data/real_tracklets/mars_mini"
    found = {}
    for protocol in ("A", "B", "all-vs-all"):
        done = run("evaluate", bundle, "--data", data, "--protocol", protocol, "--max-frames", 1, "--json")
        assert done.code == 0, done.err
        (found[protocol],) = json.loads(done.out)["results"]
    counts = {p: (r["queries"], r["valid_queries"], r["gallery"], r["identities"]) for p, r in found.items()}
    assert counts == {"A": (32, 23, 32, 16), "B": (32, 32, 64, 16), "all-vs-all": (64, 64, 64, 16)}


def test_allow_list(run: Run, bundle: Path, street: Path, tmp_path: Path) -> None:
    allowed = tmp_path / "identities.txt"
    allowed.write_text("0001\n0003 # tall\n0004\n")
    done = run("evaluate", bundle, "--data", street, "--identities", allowed, "--json")
    (result,) = json.loads(done.out)["results"]
    assert (result["identities"], result["queries"]) == (3, 9)


def test_attributes_from_a_table(run: Run, bundle: Path, street: Path, tmp_path: Path) -> None:
    table = tmp_path / "labels.csv"
    table.write_text("identity,gait,shoes\n0000,fast,\n0001,slow,red\n0002,slow,\n")
    flags = ["--attributes", "gait", "--attribute-labels", table]
    done = run("evaluate", bundle, "--data", street, *flags, "--json")
    (result,) = json.loads(done.out)["results"]
    assert [(row["value"], row["queries"]) for row in result["attributes"]] == [("fast", 3), ("slow", 6)]


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("name,hat\nann,yes\n", "no column `identity` among name, hat"),
        ("", "no column `identity` among nothing"),
        ("identity,hat\n", "no rows"),
        ("identity,hat\nann\n", "line 2 has more or fewer cells"),
        ("identity,hat\nann,yes,no\n", "line 2 has more or fewer cells"),
        ("identity,hat\nann,yes\nann,no\n", "line 3 says otherwise of 'ann'"),
    ],
)
def test_tables_that_are_none(tmp_path: Path, text: str, message: str) -> None:
    (tmp_path / "t.csv").write_text(text)
    with pytest.raises(InvalidArgumentError, match=message):
        read_attribute_labels(tmp_path / "t.csv")


def single_camera(root: Path) -> Path:
    return people(root, {"ann": ("a",), "ben": ("a",)})


def strangers(root: Path) -> Path:
    return people(root, {"ann": ("a",), "ben": ("b",)})


def alone(root: Path) -> Path:
    return people(root, {"ann": ("a", "b")})


@pytest.mark.parametrize(
    ("make", "flags", "message"),
    [
        (single_camera, [], "none of the 2 queries has a match from another camera"),
        (single_camera, [], "all were seen by camera a"),
        (single_camera, ["--protocol", "by-camera"], "the data has a single camera"),
        (strangers, [], "none of the 2 queries has a match"),
        (alone, [], "there is a single identity"),
        (None, ["--protocol", "A"], "does not name queries, so protocol A has none"),
        (None, ["--protocol", "C"], "unknown protocol 'C'; there are A, B, all-vs-all, by-camera"),
        (None, ["--protocol", "by-camera", "--query-camera", "c9"], "no person was seen by a camera 'c9'"),
        (None, ["--attributes", "wings"], "no query has a label for the attribute 'wings'; there are back_logo"),
        (None, ["--attribute-labels", "x.csv"], "--attribute-labels goes with --attributes"),
        (None, ["--ap", "round"], "average precision is plain or trapezoid, not 'round'"),
        (None, ["--rerank-options", "5"], "write k1,k2,weight, for example 20,6,0.3"),
        (None, ["--rerank-options", "5,9,0.3"], "must be from 1 to k1 (5), not 9"),
        (None, ["--format", "mpeg"], "format is one of auto, mars"),
        (None, ["--backend", "gpu"], "--backend: 'gpu' is none of auto, openvino"),
        (None, ["--precision", "fp64"], "--precision: 'fp64' is none of auto"),
        (None, ["--silhouettes", "absent"], "absent: no such folder"),
        (people, ["--attributes", "all"], "no query has an attribute"),
    ],
)
def test_what_cannot_be_measured_is_said_before_anything_is_embedded(
    run: Run,
    bundle: Path,
    street: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    make: Callable[..., Path] | None,
    flags: list[str],
    message: str,
) -> None:
    data = street
    if make is people:
        data = people(tmp_path / "data", {"ann": ("a", "b"), "ben": ("a", "b")})
    elif make is not None:
        data = make(tmp_path / "data")
    monkeypatch.setattr("passerby_model.descriptors.embed", lambda *_, **__: pytest.fail("embedded"))
    done = run("evaluate", bundle, "--data", data, *flags)
    assert done.code == 1
    assert message in done.err
    assert len(done.err.strip().splitlines()) == 1


def test_masks_need_a_model_with_cosam(run: Run, street: Path, tmp_path: Path) -> None:
    plain = make_bundle(tmp_path / "plain")
    done = run("evaluate", plain, "--data", street, "--silhouettes", f"{street}-masks")
    assert (done.code, "has no COSAM" in done.err) == (1, True)


class TestCache:
    """Descriptors on disk."""

    def options(self) -> Options:
        return Options(max_frames=4)

    def test_a_second_run_embeds_nothing(self, bundle: Path, street: Path, tmp_path: Path) -> None:
        with open_model(str(bundle), threads=1) as model:
            first = evaluate(model, [street], self.options(), cache=tmp_path)
            model.embed = lambda *_: pytest.fail("embedded again")  # type: ignore[method-assign]
            again = evaluate(model, [street], self.options(), cache=tmp_path)
        assert again.results == first.results

    def test_an_interrupted_run_goes_on(
        self, bundle: Path, street: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        monkeypatch.setattr(evaluate_cache, "PART_TRACKLETS", 8)
        seen: list[int] = []
        end = 2
        with open_model(str(bundle), threads=1) as model:
            embed = model.embed

            def interrupted(tracklets, scheme, progress=None):
                if len(seen) == end:
                    raise KeyboardInterrupt
                seen.append(len(tracklets))
                return embed(tracklets, scheme, progress)

            model.embed = interrupted  # type: ignore[method-assign]
            with pytest.raises(KeyboardInterrupt):
                evaluate(model, [street], self.options(), cache=tmp_path)
            seen.clear()
            done: list[int] = []
            report = evaluate(model, [street], self.options(), cache=tmp_path, progress=lambda n, _: done.append(n))
            model.embed = embed  # type: ignore[method-assign]
            assert report.results == evaluate(model, [street], self.options()).results
        assert seen == [8, 6]  # of 30, 16 were there
        assert done[:2] == [8, 16]
        assert done[-1] == 30

    def test_whatever_changes_a_descriptor_changes_the_key(self, bundle: Path, street: Path, tmp_path: Path) -> None:
        copy = tmp_path / "street"
        shutil.copytree(street, copy)
        tracklets = read(copy).tracklets
        other = make_bundle(tmp_path / "other", seed=1)
        with open_model(str(bundle), threads=1) as model, open_model(str(other), threads=1) as second:
            before = cache_key(model, tracklets, ClipScheme(4))
            keys = {before, cache_key(second, tracklets, ClipScheme(4)), cache_key(model, tracklets, ClipScheme(4, 2))}
            keys.add(cache_key(model, tracklets[:-1], ClipScheme(4)))
            Image.new("RGB", (32, 64)).save(tracklets[0].frames[0])
            keys.add(cache_key(model, tracklets, ClipScheme(4)))
        assert len(keys) == 5

    def test_a_damaged_file_is_made_anew(self, bundle: Path, street: Path, tmp_path: Path) -> None:
        with open_model(str(bundle), threads=1) as model:
            first = evaluate(model, [street], self.options(), cache=tmp_path)
            (part,) = tmp_path.rglob("*.npy")
            for damage in (b"", part.read_bytes()[:-100], b"not an array"):
                part.write_bytes(damage)
                assert evaluate(model, [street], self.options(), cache=tmp_path).results == first.results


def test_a_subject_has_each_tracklet_once(street: Path) -> None:
    subject = read_subject(street, "here", protocol="by-camera")
    assert len(subject.tracklets) == 30
    assert (subject.name, subject.format) == ("here", "street")
