"""The command line: help of every command, tables, JSON, errors in one line, exit status, pictures."""

from __future__ import annotations

import json
import re
import subprocess
import sys
import threading
import time
import uuid
from pathlib import Path
from typing import cast

import numpy as np
import pytest
from passerby_client import Client
from passerby_client._lazy import Entry
from passerby_client.cli import COMMANDS, main
from passerby_client.picture import VERDICT_COLOURS
from PIL import Image

from tests.clients.conftest import crop
from tests.commands import Done, Run

HEAVY = ("torch", "timm", "numpy", "grpc", "google.protobuf", "PIL", "onnx", "openvino", "faiss", "cv2", "pydantic")


_GALLERY = ("create", "list", "show", "update", "replace", "reindex", "delete", "stats", "retention", "audit")


def separately(program: str, *arguments: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, "-c", program, *arguments], capture_output=True, text=True, timeout=60, check=False
    )


def test_help_lists_every_command_and_imports_nothing_heavy() -> None:
    program = (
        "import sys; from passerby_client.cli import main\n"
        "try: main(['--help'])\n"
        f"finally: print('HEAVY', [name for name in {HEAVY!r} if name in sys.modules])"
    )
    done = separately(program)
    assert done.returncode == 0, done.stderr
    assert "HEAVY []" in done.stdout
    for name, entry in COMMANDS.items():
        assert f"  {name} " in done.stdout
        assert entry.help in done.stdout, "help lines must fit into 80 columns"


@pytest.mark.parametrize("name", COMMANDS)
def test_every_command_has_help(run: Run, name: str) -> None:
    done = run(name, "--help")
    assert done.code == 0
    assert done.out.lstrip().startswith("Usage: passerby " + name)


@pytest.mark.parametrize(
    "command",
    [
        *(f"gallery {name}" for name in _GALLERY),
        *(f"tracklet {name}" for name in ("list", "show", "delete", "assign", "merge", "split", "undo", "erase")),
        "model info",
        "search",
        "index",
    ],
)
def test_every_client_command_takes_server_and_json(run: Run, command: str) -> None:
    done = run(*command.split(), "--help")
    assert done.code == 0
    assert "--server" in done.out
    assert "--json" in done.out


def test_version(run: Run) -> None:
    assert run("--version").out.startswith("passerby 0.")


def test_a_server_that_is_not_installed_names_its_extra(tmp_path: Path) -> None:
    program = "import sys; sys.modules['faiss'] = None\nfrom passerby_client.cli import main\nmain(sys.argv[1:])"
    done = separately(program, "serve", "--bundle", str(tmp_path))
    assert done.returncode == 1
    assert done.stdout == ""
    assert done.stderr.startswith("passerby: `passerby serve` needs the server extra: pip install 'passerby[server]'")
    assert len(done.stderr.splitlines()) == 1


@pytest.mark.parametrize("when", ["imported", "run"])
def test_a_missing_package_names_the_extra(
    run: Run, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, when: str
) -> None:
    missing = "import no_such_package"
    body = f"{missing}\ndef train(): pass" if when == "imported" else f"def train():\n    {missing}"
    (tmp_path / f"room_{when}.py").write_text(body + "\n")
    monkeypatch.syspath_prepend(str(tmp_path))
    monkeypatch.setitem(cast(dict[str, Entry], COMMANDS), "train", Entry(f"room_{when}:train", "Train.", "train"))
    done = run("train")
    line = "`passerby train` needs the train extra: pip install 'passerby[train]' (no package 'no_such_package')"
    assert done == Done(1, "", f"passerby: {line}\n")


def test_a_missing_module_of_our_own_is_a_fault_and_shown_as_one(monkeypatch: pytest.MonkeyPatch) -> None:
    entry = Entry("passerby_client.no_such_module:train", "Train.", "train")
    monkeypatch.setitem(cast(dict[str, Entry], COMMANDS), "train", entry)
    with pytest.raises(ModuleNotFoundError, match="no_such_module"):
        main(["train"])


@pytest.mark.parametrize(
    ("arguments", "problem"),
    [
        (["gallry"], "Did you mean 'gallery'?"),
        (["search", "--gallery", "g"], "either frames, a tracklet or a descriptor"),
        (["search", "-g", "g", "--tracklet", "t", "--after", "noon"], "is not a time"),
        (["search", "-g", "g", "--tracklet", "t", "--label", "x"], "not KEY=VALUE"),
        (["tracklet", "list"], "--gallery"),
    ],
    ids=["typo", "no-query", "time", "label", "missing-option"],
)
def test_wrong_usage_is_status_2(run: Run, arguments: list[str], problem: str) -> None:
    done = run(*arguments)
    assert done.code == 2
    assert problem in done.err
    assert done.out == ""


@pytest.mark.parametrize(
    ("arguments", "problem"),
    [
        (["gallery", "show", "nowhere"], "nowhere"),
        (["gallery", "show", "NOWHERE"], "a-z, 0-9"),
        (["tracklet", "show", "t1"], "galleries/GALLERY/tracklets/TRACKLET"),
        (["search", "-g", "g", "--frames", "gone.jpg"], "gone.jpg: cannot be read"),
        (["model", "info", "--ca-file", "gone.pem"], "gone.pem: cannot be read"),
        (["model", "info", "--server", "127.0.0.1:1", "--timeout", "1"], "passerby serve"),
    ],
    ids=["absent", "malformed", "name", "frames", "certificate", "no-server"],
)
def test_a_known_error_is_one_line_and_status_1(run: Run, arguments: list[str], problem: str) -> None:
    done = run(*arguments)
    assert done.code == 1
    assert done.out == ""
    assert len(done.err.splitlines()) == 1
    assert done.err.startswith("passerby: ")
    assert problem in done.err


def test_a_gallery_of_fp16(run: Run, client: Client) -> None:
    name = f"half-{uuid.uuid4().hex[:12]}"
    created = json.loads(run("gallery", "create", name, "--descriptor-precision", "fp16", "--json").out)
    assert created["descriptor_precision"] == "DESCRIPTOR_PRECISION_FP16"
    assert "values, fp16" in run("gallery", "show", name).out
    (line,) = [line for line in run("gallery", "list").out.splitlines() if line.split()[:1] == [name]]
    assert "fp16" in line
    client.ingest_tracklet(name, [crop((9, 9, 9))] * 4, camera="1", tracklet_id="t")
    found = client.get_tracklet(f"galleries/{name}/tracklets/t", descriptor=True).tracklet_descriptor
    values = np.array(found.values, np.float32)
    np.testing.assert_array_equal(values, values.astype(np.float16))
    given = np.array(client.embed([crop((9, 9, 9))] * 4).tracklet_descriptor.values, np.float32)
    np.testing.assert_allclose(values, given, rtol=1e-3, atol=1e-7)
    assert (values != given).any()
    done = run("gallery", "create", "other", "--descriptor-precision", "fp8")
    assert done.code == 1
    assert "must be fp32 or fp16" in done.err
    run("gallery", "delete", name, "--force")


def test_a_gallery_from_creation_to_deletion(run: Run, gallery: str) -> None:
    name = gallery + "-cli"
    assert name in run("gallery", "create", name, "--display-name", "North hall").out
    assert "North hall" in run("gallery", "show", name).out
    assert name in run("gallery", "list").out
    assert "values, fp32" in run("gallery", "show", name).out
    assert run("gallery", "stats", name).out.startswith("tracklets   0")
    changed = run("gallery", "update", name, "--index", "int8", "--false-match-rate", 0.002).out
    assert "index             int8" in changed
    assert "false-match rate  0.002" in changed
    deleted = json.loads(run("gallery", "delete", name, "--json").out)
    assert deleted["deleted_tracklet_count"] == 0
    assert "gallery.db" in deleted["receipt"]["rewritten_files"]
    assert run("gallery", "show", name).code == 1


def test_tracklets_are_listed_shown_assigned_and_deleted(run: Run, people: str, tmp_path: Path) -> None:
    name = f"galleries/{people}/tracklets/bob-1"
    listed = run("tracklet", "list", "-g", people, "--camera", "1", "--limit", "2")
    assert "ann-1" in listed.out
    assert "ann-2" not in listed.out
    assert "more than 2" in listed.err
    found = json.loads(run("tracklet", "list", "-g", people, "--identity", "bob", "--json").out)
    assert [tracklet["name"].rpartition("/")[2] for tracklet in found] == ["bob-1", "bob-2"]
    shown = run("tracklet", "show", name, "--thumbnail", tmp_path / "t.jpg")
    assert "bob" in shown.out
    with Image.open(tmp_path / "t.jpg") as thumbnail:
        assert thumbnail.format == "JPEG"
    assert json.loads(run("tracklet", "assign", name, "robert", "--json").out)["identity_id"] == "robert"
    deleted = run("tracklet", "delete", name).out
    assert re.search(r"^audited as +hmac:[0-9a-f]{32}$", deleted, re.MULTILINE)
    assert re.search(r"^rewritten +gallery.db, gallery.db-wal$", deleted, re.MULTILINE)
    assert run("tracklet", "show", name).code == 1


def test_a_thumbnail_that_cannot_be_written_is_explained_in_one_line(run: Run, people: str, tmp_path: Path) -> None:
    done = run("tracklet", "show", f"galleries/{people}/tracklets/ann-1", "--thumbnail", tmp_path / "no" / "t.jpg")
    assert done.code == 1
    assert "t.jpg: the thumbnail cannot be written: No such file" in done.err
    assert done.err.count("\n") == 1


@pytest.mark.parametrize("flags", [("--overlay",), ("--identity-of-query", "ann")], ids=lambda flags: flags[0])
def test_what_only_shows_in_a_picture_needs_one(run: Run, people: str, flags: tuple[str, ...]) -> None:
    done = run("search", "-g", people, "--tracklet", "ann-1", *flags)
    assert done.code == 2
    assert "--picture" in done.err


def test_model_info(run: Run, client: Client) -> None:
    assert "after CNN block 4, 5" in run("model", "info").out
    info = json.loads(run("model", "info", "--json").out)
    assert info["model_fingerprint"] == client.model_info().model_fingerprint
    assert info["mask_blocks"] == [4, 5]


def test_health_of_a_serving_server(run: Run) -> None:
    assert run("health").out.strip() == "SERVING"


def test_health_without_a_server_fails(run: Run) -> None:
    done = run("health", "--server", "127.0.0.1:1", "--timeout", "1")
    assert done.code == 1
    assert "127.0.0.1:1" in done.err


def test_json_counts_are_numbers(run: Run, people: str) -> None:
    stats = json.loads(run("gallery", "stats", people, "--json").out)
    assert stats["tracklet_count"] == 6
    assert stats["frame_count"] == 30


def test_search_prints_a_table_in_order_of_rank(run: Run, people: str, query: Path) -> None:
    done = run("search", "--gallery", people, "--frames", query, "--top-k", 3)
    assert done.code == 0
    rows = [line.split() for line in done.out.splitlines() if line.strip()[:1].isdigit()]
    assert [row[0] for row in rows] == ["1", "2", "3"]
    assert {row[1] for row in rows[:2]} == {"ann"}
    distances = [float(row[-2]) for row in rows]
    assert distances == sorted(distances)


def test_search_as_json_is_json_alone(run: Run, people: str, query: Path) -> None:
    files = sorted(query.glob("?.png"))
    done = run("search", "-g", people, "--frames", files[0], *files[1:], "--rerank", "--group", "--json")
    answer = json.loads(done.out)
    assert [hit["rank"] for hit in answer["hits"]] == [1, 2, 3]
    assert answer["reranked"] is True
    assert "thumbnail" not in answer["hits"][0]
    assert len(answer["hits"][0]["siblings"]) == 1


def test_search_filters(run: Run, people: str) -> None:
    options = ["--after", "2026-11-21T10:00Z", "--before", "2026-11-21T11:00+00:00", "--exclude-camera", "2", "--json"]
    answer = json.loads(run("search", "-g", people, "--tracklet", "ann-1", *options).out)
    assert [hit["tracklet"]["identity_id"] for hit in answer["hits"]] == ["bob"]
    answer = json.loads(run("search", "-g", people, "--tracklet", "ann-1", "--exclude-query-camera", "--json").out)
    assert {hit["tracklet"]["camera_id"] for hit in answer["hits"]} == {"2"}


def test_a_rate_needs_a_calibrated_model(run: Run, people: str) -> None:
    done = run("search", "-g", people, "--tracklet", "ann-1", "--false-match-rate", 0.01)
    assert (done.code, "carries no calibration" in done.err) == (1, True)
    assert run("search", "-g", people, "--tracklet", "ann-1", "--false-match-rate", 2).code == 1


def test_a_picture_shows_right_and_wrong_hits(run: Run, people: str, query: Path, tmp_path: Path) -> None:
    out = tmp_path / "out.png"
    options = ["--identity-of-query", "ann", "--query-camera", "9", "--picture", out, "--overlay", "--json"]
    done = run("search", "-g", people, "--frames", query, *options)
    assert done.code == 0, done.err
    json.loads(done.out)
    assert done.err == f"picture: {out}\n"
    pixels = np.asarray(Image.open(out))
    same, other, unknown = (int((pixels == VERDICT_COLOURS[v]).all(2).sum()) for v in ("same", "other", "unknown"))
    assert same > 5000  # two frames
    assert other > 15000  # four
    assert unknown == 0


def test_a_picture_of_a_stored_tracklet_knows_its_identity(run: Run, people: str, tmp_path: Path) -> None:
    out = tmp_path / "out.jpg"
    done = run("search", "-g", people, "--tracklet", "bob-1", "--top-k", 2, "--picture", out)
    assert done.code == 0, done.err
    with Image.open(out) as picture:
        assert picture.format == "JPEG"
        # JPEG keeps the frame's green only about.
        near = np.abs(np.asarray(picture).astype(int) - VERDICT_COLOURS["same"]).max(axis=2) < 40
    assert near.sum() > 1000


def test_without_a_known_identity_frames_are_grey(run: Run, people: str, query: Path, tmp_path: Path) -> None:
    out = tmp_path / "out.png"
    assert run("search", "-g", people, "--frames", query, "--picture", out).code == 0
    pixels = np.asarray(Image.open(out))
    assert (pixels == VERDICT_COLOURS["unknown"]).all(2).sum() > 15000
    assert (pixels == VERDICT_COLOURS["same"]).all(2).sum() == 0


def test_a_picture_that_cannot_be_written_is_one_line(run: Run, people: str, query: Path, tmp_path: Path) -> None:
    done = run("search", "-g", people, "--frames", query, "--picture", tmp_path / "no" / "out.png")
    assert done.code == 1
    assert "the picture cannot be written" in done.err


def test_an_empty_folder_is_no_query(run: Run, people: str, tmp_path: Path) -> None:
    done = run("search", "-g", people, "--frames", tmp_path)
    assert done.code == 1
    assert "holds no images" in done.err


def test_frames_can_be_thinned_out(run: Run, people: str, query: Path) -> None:
    done = run("search", "-g", people, "--frames", query, "--max-frames", 1, "--json")
    assert json.loads(done.out)["hits"][0]["tracklet"]["identity_id"] == "ann"


def test_a_folder_is_followed_while_its_frames_are_written(run: Run, people: str, query: Path, tmp_path: Path) -> None:
    growing = tmp_path / "growing"
    growing.mkdir()

    def write() -> None:
        for number in range(10):
            (growing / f"{number:02d}.png").write_bytes(crop((205, 30, 30)))
            time.sleep(0.05)

    writer = threading.Thread(target=write)
    writer.start()
    command = ("search", "--gallery", people, "--frames", growing, "--follow", "--until-quiet", "1.5", "--json")
    done = run(*command, "--picture", tmp_path / "p.png")
    writer.join()
    assert done.code == 0, done.err
    lines = done.err.splitlines()
    assert re.match(r"\d+ frames: ann \d\.\d{4}, ann", lines[0])
    whole = run("search", "--gallery", people, "--frames", growing, "--json", "--picture", tmp_path / "q.png")
    assert done.out == whole.out
    assert (tmp_path / "p.png").read_bytes() == (tmp_path / "q.png").read_bytes()
    assert "one folder" in run("search", "-g", people, "--frames", query / "0.png", "--follow").err
    (tmp_path / "none").mkdir()
    empty = run("search", "-g", people, "--frames", tmp_path / "none", "--follow", "--until-quiet", "0.5")
    assert empty == Done(1, "", "passerby: no frame came for 0.5 s\n")
