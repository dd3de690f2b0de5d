"""`passerby data check`: counts, what it finds wrong with files and identities, exit status, JSON."""

from __future__ import annotations

import json
import shutil
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple, get_args

import numpy as np
import pytest
from passerby.errors import InvalidArgumentError
from passerby_client.cli import main
from passerby_model.datasets import Format, read, read_identities, read_splits
from passerby_model.datasets.checking import CheckReport, check
from passerby_model.datasets.cli import SHOWN_PROBLEMS, Layout
from passerby_model.street import StreetConfig
from passerby_model.street.writer import write
from scipy.io import savemat

from tests.model import drawn


class Done(NamedTuple):
    code: int
    out: str
    err: str


Run = Callable[..., Done]


@pytest.fixture
def run(capsys: pytest.CaptureFixture[str]) -> Run:
    """Runs `passerby data check ...`, or another command of `data`, in this process."""

    def call(*arguments: object, command: str = "check") -> Done:
        with pytest.raises(SystemExit) as ended:
            main(["data", command, *map(str, arguments)])
        captured = capsys.readouterr()
        return Done(int(ended.value.code or 0), captured.out, captured.err)

    return call


def kinds(report: CheckReport) -> dict[str, str]:
    """The last path of each kind of problem."""
    return {problem.kind: problem.path for problem in report.problems}


def test_counts_by_part(tmp_path: Path) -> None:
    report = check(drawn.mars(tmp_path), decode=True)
    assert [(part.name, part.identities, part.cameras, part.tracklets, part.frames) for part in report.parts] == [
        ("train", 2, ("1", "2"), 4, 8),
        ("query", 2, ("1",), 2, 4),
        ("gallery", 3, ("1", "2", "3"), 5, 10),
    ]
    gallery = report.parts[2]
    assert (gallery.junk, gallery.distractors) == (1, 1)
    assert (gallery.shortest, gallery.median, gallery.longest) == (2, 2.0, 2)
    (split,) = report.splits
    assert (split.queries, split.gallery, split.without_match, split.all_against_all) == (2, 4, 0, False)
    assert report.sizes is not None
    assert report.sizes.median == (16, 8)
    assert kinds(report) == {"one camera": str(tmp_path)}
    assert (report.ok, report.files) == (True, "opened")


def test_lengths_are_those_of_the_tracklets(tmp_path: Path) -> None:
    for name, frames in (("a/1/t", 1), ("a/2/t", 4), ("b/1/t", 6), ("b/2/t", 9)):
        drawn.plain(tmp_path, name, frames=frames)
    (part,) = check(tmp_path).parts
    assert (part.name, part.shortest, part.median, part.longest, part.frames) == ("test", 1, 5.0, 9, 20)


def test_a_sound_set_has_no_problems(tmp_path: Path) -> None:
    report = check(drawn.plain(tmp_path, "a/1/t", "a/2/t", "b/1/t", "b/2/t"), decode=True, threads=1)
    assert report.problems == ()
    assert report.splits[0].all_against_all


def test_broken_frames_are_errors_once_a_tracklet(tmp_path: Path) -> None:
    drawn.plain(tmp_path, "a/1/t", "a/2/t", "a/2/u", frames=3)
    whole = (tmp_path / "a/1/t/0001.jpg").read_bytes()
    (tmp_path / "a/1/t/0002.jpg").write_bytes(whole[: len(whole) // 2])
    (tmp_path / "a/1/t/0003.jpg").write_bytes(b"no image")
    (tmp_path / "a/2/t/0002.jpg").write_bytes(b"")
    (tmp_path / "a/2/u/0002.jpg").unlink()
    (tmp_path / "a/2/u/0002.jpg").symlink_to("gone.jpg")
    looked = check(tmp_path)
    assert {(problem.kind, problem.path) for problem in looked.problems} == {
        ("unreadable", str(tmp_path / "a/2/t/0002.jpg")),
        ("missing", str(tmp_path / "a/2/u/0002.jpg")),
    }
    opened = check(tmp_path, decode=True)
    assert not looked.ok
    assert not opened.ok
    (torn,) = [problem for problem in opened.problems if problem.path.startswith(str(tmp_path / "a/1"))]
    assert (torn.path, torn.severity) == (str(tmp_path / "a/1/t/0002.jpg"), "error")
    assert "broken or incomplete" in torn.reason
    assert "2 of the tracklet's 3 frames" in torn.reason
    assert len(opened.problems) == 3


def test_the_same_frame_twice_by_content_and_by_link(tmp_path: Path) -> None:
    drawn.plain(tmp_path, "a/1/t", "a/2/t", "b/1/t", "b/2/t", frames=3)
    (tmp_path / "a/1/t/0009.jpg").hardlink_to(tmp_path / "a/1/t/0001.jpg")
    shutil.copy(tmp_path / "a/1/t/0002.jpg", tmp_path / "b/1/t/0003.jpg")
    looked = check(tmp_path)
    assert kinds(looked) == {"twice": str(tmp_path / "a/1/t/0009.jpg")}
    opened = check(tmp_path, decode=True)
    assert [(problem.kind, problem.path) for problem in opened.problems] == [
        ("twice", str(tmp_path / "a/1/t/0009.jpg")),
        ("twice", str(tmp_path / "b/1/t/0003.jpg")),
    ]
    assert str(tmp_path / "a/1/t/0002.jpg") in opened.problems[1].reason
    assert opened.ok


@pytest.mark.parametrize(
    ("height", "width", "unusual"), [(20, 10, False), (47, 8, False), (50, 8, True), (16, 25, True), (5, 8, True)]
)
def test_odd_sizes_are_warnings(tmp_path: Path, height: int, width: int, unusual: bool) -> None:
    drawn.plain(tmp_path, "a/1/t", "a/2/t", frames=5)
    drawn.image(tmp_path / "a/1/t/0006.jpg", height, width)
    report = check(tmp_path, decode=True)
    assert ("size" in kinds(report)) == unusual
    if unusual:
        assert f"{height} x {width} pixels (rows x columns), where 16 x 8 is usual" in report.problems[0].reason
        assert report.ok


def test_tables_and_files_that_do_not_agree(tmp_path: Path) -> None:
    drawn.mars(tmp_path, frames=3)
    gone = tmp_path / "bbox_test/0002/0002C1T0001F002.jpg"
    gone.unlink()
    drawn.image(tmp_path / "bbox_test/0002/0002C2T0001F009.jpg")
    drawn.image(tmp_path / "bbox_test/0008/0008C1T0001F001.jpg")
    drawn.touch(tmp_path, "bbox_train/0009/notes.txt")
    report = check(tmp_path)
    found = kinds(report)
    assert found["missing"] == str(gone)
    assert found["empty"] == str(tmp_path / "bbox_train/0009")
    unlisted = {problem.path: problem.reason for problem in report.problems if problem.kind == "unlisted"}
    assert unlisted == {
        str(
            tmp_path / "bbox_test/0002/0002C2T0001F009.jpg"
        ): "1 of 4 frames of 0002/2/0002C2T0001 are in no split, this the first",
        str(
            tmp_path / "bbox_test/0008/0008C1T0001F001.jpg"
        ): "1 of 1 frames of 0008/1/0008C1T0001 are in no split, this the first",
    }
    assert [problem.severity for problem in report.problems][:1] == ["error"]
    assert not report.ok


def test_a_half_that_was_not_downloaded_is_said_and_no_error(tmp_path: Path) -> None:
    shutil.rmtree(drawn.mars(tmp_path) / "bbox_train")
    report = check(tmp_path, decode=True)
    assert kinds(report)["metadata"] == str(tmp_path / "bbox_train")
    assert (report.ok, report.files) == (True, "opened")
    shutil.rmtree(tmp_path / "bbox_test")
    assert check(tmp_path).files == "not there"


def test_a_manifest_whose_frames_are_not_there_is_an_error(tmp_path: Path) -> None:
    path = tmp_path / "set.csv"
    path.write_text("identity,camera,tracklet,frame,attribute.hat\na,1,t,a.jpg,cap\na,2,t,b.jpg,\n")
    report = check(path)
    assert [problem.kind for problem in report.problems] == ["missing", "missing"]
    assert (report.ok, report.attributes) == (False, ("hat",))
    (tmp_path / "a.jpg").mkdir()
    assert [(one.kind, one.reason) for one in check(path).problems][:1] == [("unreadable", "not a file")]
    (tmp_path / "a.jpg").rmdir()
    drawn.image(tmp_path / "a.jpg")
    drawn.image(tmp_path / "b.jpg")
    assert check(path, decode=True).ok


def test_identities_that_cannot_be_learnt_from_or_that_leak(tmp_path: Path) -> None:
    drawn.plain(tmp_path, "train/a/1/t", "train/a/1/u", "train/b/1/t", "train/b/2/t", "test/b/1/v", "test/c/1/t")
    found = {problem.kind: problem.reason for problem in check(tmp_path).problems}
    assert found["leak"] == "1 identities are in train and in test: b"
    assert found["no match"] == "no query of test has a match from another camera, so nothing can be scored"
    assert found["one camera"] == "2 of 2 identities of test are seen by one camera only: b, c"


def test_a_set_without_a_split_can_still_be_trained_on(tmp_path: Path) -> None:
    report = check(drawn.plain(tmp_path, "train/a/1/t", "train/a/2/t"))
    assert (report.ok, report.splits, [part.name for part in report.parts]) == (True, (), ["all"])
    assert "has no part 'test'" in report.problems[0].reason


def test_ten_splits(tmp_path: Path) -> None:
    report = check(drawn.ilids(tmp_path), decode=True)
    assert [(part.name, part.identities, part.tracklets) for part in report.parts] == [("all", 6, 12)]
    assert [(split.queries, split.gallery, split.without_match) for split in report.splits] == [(3, 3, 0)] * 10
    assert report.problems == ()


def test_progress_ends_with_every_frame(tmp_path: Path) -> None:
    calls: list[tuple[int, int]] = []
    check(drawn.plain(tmp_path, "a/1/t", "a/2/t"), progress=lambda done, total: calls.append((done, total)))
    assert calls[-1] == (4, 4)


def test_official_mars_metadata_without_images(shared: Path, run: Run) -> None:
    done = run(shared / "data/meta/mars", "--json")
    report = json.loads(done.out)
    assert (done.code, report["ok"], report["files"]) == (0, True, "not there")
    assert [(part["name"], part["identities"], part["tracklets"]) for part in report["parts"]] == [
        ("train", 625, 8298),
        ("query", 626, 1980),
        ("gallery", 620, 10200),
    ]
    (split,) = report["splits"]
    assert (split["queries"], split["identities"], split["gallery"], split["without_match"]) == (1980, 626, 9330, 140)
    assert len(report["attributes"]) == 12
    assert report["parts"][0]["frames"] == 509914


@pytest.mark.parametrize("name", ["mars_mini", "ward"])
def test_real_sets_are_sound(shared: Path, run: Run, name: str) -> None:
    root = shared / "data/real_tracklets" / name
    counts = json.loads((root.parent / "counts.json").read_text())[name]
    done = run(root, "--json")
    report = json.loads(done.out)
    assert (done.code, report["ok"], report["files"]) == (0, True, "looked at")
    test = [part for part in report["parts"] if part["name"] != "train"]
    assert sum(part["tracklets"] for part in test) == counts["bbox_test"]["tracklets"]
    assert sum(part["frames"] for part in test) == counts["bbox_test"]["images"]
    (split,) = report["splits"]
    assert split["queries"] - split["without_match"] == counts["queries_with_cross_camera_match"]


def test_the_table_for_people(tmp_path: Path, run: Run) -> None:
    write(StreetConfig(identities=2, cameras=2, frames=3, height=64, width=32), tmp_path / "s")
    done = run(tmp_path / "s", "--decode")
    assert (done.code, done.err) == (0, "")
    lines = [line.split() for line in done.out.splitlines()]
    assert lines[0] == [f"{tmp_path / 's'}:", "street"]
    assert ["part", "identities", "cameras", "tracklets", "frames", "shortest", "median", "longest"] in lines
    assert ["test", "2", "2", "4", "12", "3", "3", "3"] in lines
    assert "4 queries of 2 identities against themselves, 0 without a match from another camera" in done.out
    assert "frames are all 64 x 32 pixels (rows x columns)" in done.out
    assert "attributes: back_logo, backpack, " in done.out
    assert "0 errors, 0 warnings" in done.out


def test_metadata_alone_is_said_and_counts_of_nobody_are_shown(tmp_path: Path, run: Run) -> None:
    drawn.mars(tmp_path)
    for half in ("bbox_train", "bbox_test"):
        shutil.rmtree(tmp_path / half)
    done = run(tmp_path)
    assert done.code == 0
    assert "no images here: the metadata alone was checked" in done.out
    assert "junk   distractors" in done.out


def test_many_problems_are_cut_short_and_json_has_them_all(tmp_path: Path, run: Run) -> None:
    names = [f"p{person:02d}/{camera}/t" for person in range(SHOWN_PROBLEMS + 3) for camera in (1, 2)]
    drawn.plain(tmp_path, *names, frames=1)
    for name in names[::2]:
        (tmp_path / name / "0001.jpg").write_bytes(b"")
    done = run(tmp_path)
    assert done.code == 1
    assert done.out.count("empty (0 bytes)") == SHOWN_PROBLEMS
    assert "... and 3 more of the kind 'unreadable'; --json has them all" in done.out
    assert f"{SHOWN_PROBLEMS + 3} errors, 0 warnings" in done.out
    assert len(json.loads(run(tmp_path, "--json").out)["problems"]) == SHOWN_PROBLEMS + 3


def test_refused_sets_are_one_line_and_exit_1(tmp_path: Path, run: Run) -> None:
    drawn.mars(tmp_path)
    savemat(tmp_path / "info/query_IDX.mat", {"query_IDX": np.array([[99]])})
    done = run(tmp_path)
    assert (done.code, done.out) == (1, "")
    assert done.err == f"passerby: {tmp_path}/info/query_IDX.mat: row 99 of 7 rows of tracks_test_info.mat\n"
    refused: dict[str, Any] = json.loads(run(tmp_path, "--json").out)
    assert refused["ok"] is False
    assert "row 99 of 7" in refused["refused"]
    assert run(tmp_path / "gone").code == 1
    assert run(tmp_path, "--format", "market").code == 2
    assert run(tmp_path, "--format", "plain").code == 1
    assert run(tmp_path, "--threads", "0").code == 2


def test_bad_arguments_in_python(tmp_path: Path) -> None:
    with pytest.raises(InvalidArgumentError, match="threads"):
        check(drawn.plain(tmp_path, "a/1/t"), threads=0)


def test_the_command_knows_every_format() -> None:
    assert {layout.value for layout in Layout} == set(get_args(Format))


def test_the_command_needs_the_base_install_alone(tmp_path: Path) -> None:
    drawn.mars(tmp_path)
    blocked = ("torch", "scipy", "pyarrow", "cv2", "yaml", "timm")
    program = (
        f"import sys\nfor name in {blocked!r}: sys.modules[name] = None\n"
        "from passerby_client.cli import main\nmain(['data', 'check', '--decode', sys.argv[1]])"
    )
    done = subprocess.run([sys.executable, "-c", program, tmp_path], capture_output=True, text=True, timeout=60)
    assert done.returncode == 0, done.stderr
    assert "0 errors" in done.stdout


def test_identities_of_a_half_are_a_list_that_training_takes(tmp_path: Path, run: Run) -> None:
    root = drawn.ilids(tmp_path / "ilids")
    listing = tmp_path / "split2.txt"
    listing.write_text(run(root, "--split", 2, command="identities").out)
    assert listing.read_text().split() == ["person007", "person010", "person013"]
    splits = read_splits(root)
    assert set(read(root, identities=read_identities(listing)).tracklets) == set(splits[1].train)
    asked = run(root, "--split", 2, "--part", "test", command="identities").out.split()
    assert asked == ["person001", "person004", "person016"]
    gone = run(root, "--split", 11, command="identities")
    assert (gone.code, gone.out) == (1, "")
    assert "has 10 splits, no split 11" in gone.err
    nobody = run(drawn.plain(tmp_path / "plain", "a/1/t"), command="identities")
    assert (nobody.code, nobody.out) == (1, "")
    assert "nobody is in the half 'train'" in nobody.err
