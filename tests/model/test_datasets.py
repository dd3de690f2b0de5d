import json

import pytest
from passerby.errors import InvalidArgumentError, NotFoundError
from passerby_model import datasets


def touch(root, *names):
    for name in names:
        path = root / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.touch()


def test_ward_has_its_identities_cameras_and_frames(shared):
    root = shared / "data" / "real_tracklets" / "ward"
    ward = datasets.read(root, part="test")
    counts = json.loads((root.parent / "counts.json").read_text())["ward"]["bbox_test"]
    assert ward.format == "mars"
    assert (len(ward.identities), len(ward), ward.frame_count) == (counts["ids"], counts["tracklets"], counts["images"])
    assert ward.cameras == ("1", "2", "3")
    train = [f"{number:04d}" for number in json.loads((root / "splits.json").read_text())["train_ids"]]
    assert datasets.read(root, identities=train).identities == tuple(sorted(train))


def test_mars_mini_has_both_parts(shared):
    root = shared / "data" / "real_tracklets" / "mars_mini"
    counts = json.loads((root.parent / "counts.json").read_text())["mars_mini"]
    for part in ("train", "test"):
        got = datasets.read(root, part=part)
        expected = counts[f"bbox_{part}"]
        assert (len(got.identities), len(got), got.frame_count) == (
            expected["ids"],
            expected["tracklets"],
            expected["images"],
        )
    assert len(datasets.read(root)) == 96


def test_mars_names_junk_and_distractors(tmp_path):
    touch(
        tmp_path,
        "bbox_test/0002/0002C1T0001F002.jpg",
        "bbox_test/0002/0002C1T0001F001.jpg",
        "bbox_test/0002/0002C6T0011F1000.jpg",
        "bbox_test/0002/0002C6T0011F999.jpg",
        "bbox_test/0000/0000C2T0001F001.jpg",
        "bbox_test/00-1/00-1C3T0001F001.jpg",
        "info/notes.txt",
    )
    found = datasets.read(tmp_path, part="test")
    assert [(t.identity, t.camera, t.tracklet_id) for t in found] == [
        ("00-1", "3", "00-1C3T0001"),
        ("0000", "2", "0000C2T0001"),
        ("0002", "1", "0002C1T0001"),
        ("0002", "6", "0002C6T0011"),
    ]
    assert [frame.name[-8:-4] for frame in found.tracklets[2].frames] == ["F001", "F002"]
    assert [frame.name[11:-4] for frame in found.tracklets[3].frames] == ["F999", "F1000"]
    assert found.people().identities == ("0002",)


def test_plain_layout_sorted_with_sidecars_passed_over(tmp_path):
    touch(
        tmp_path,
        "zoe/c2/t1/2.png",
        "zoe/c2/t1/1.JPG",
        "zoe/c2/t1/1.mask.png",
        "zoe/c2/t1/notes.txt",
        "zoe/c1/t1/1.webp",
        "ann/c1/t1/1.jpg",
        "street.json",
        ".cache/x.jpg",
    )
    found = datasets.read(tmp_path)
    assert found.format == "plain"
    assert [t.key for t in found] == ["ann/c1/t1", "zoe/c1/t1", "zoe/c2/t1"]
    assert [frame.name for frame in found.tracklets[2].frames] == ["1.JPG", "2.png"]
    assert found.people() is found


def test_plain_layout_in_halves(tmp_path):
    touch(tmp_path, "train/ann/c1/t1/1.jpg", "test/zoe/c1/t1/1.jpg")
    assert datasets.read(tmp_path).identities == ("ann", "zoe")
    assert datasets.read(tmp_path, part="train").identities == ("ann",)
    assert datasets.read(tmp_path, part="test").identities == ("zoe",)


@pytest.mark.parametrize(
    ("files", "message"),
    [
        (["ann/c1/1.jpg"], "1.jpg: an image where only folders belong"),
        (["ann/c1/t1/deep/1.jpg"], "deep: a folder where only images belong"),
        (["ann/c1/t1/notes.txt"], "t1: a tracklet without images"),
        (["ann/notes.txt"], "ann: an empty folder"),
        (["notes.txt"], "holds no tracklets"),
        (["bbox_test/0002/ann.jpg"], "not 0002CcTttttFfff"),
        (["bbox_test/0002/0003C1T0001F001.jpg"], "not 0002CcTttttFfff"),
        (["bbox_test/0002/notes.txt"], "holds no tracklets"),
        (["train/ann/c1/t1/1.jpg", "test/ann/c1/t1/1.jpg"], "ann/c1/t1 is there twice"),
    ],
)
def test_broken_sets_are_refused_with_path_and_reason(tmp_path, files, message):
    touch(tmp_path, *files)
    with pytest.raises(InvalidArgumentError) as caught:
        datasets.read(tmp_path)
    assert message in str(caught.value)
    assert str(tmp_path) in str(caught.value)


def test_missing_folder_part_and_identity(tmp_path):
    with pytest.raises(NotFoundError, match="no such folder"):
        datasets.read(tmp_path / "absent")
    touch(tmp_path, "plain/ann/c1/t1/1.jpg", "mars/bbox_test/0002/0002C1T0001F001.jpg", "file")
    with pytest.raises(NotFoundError, match="not a folder"):
        datasets.read(tmp_path / "file")
    with pytest.raises(NotFoundError, match="no part 'train'"):
        datasets.read(tmp_path / "plain", part="train")
    with pytest.raises(NotFoundError, match="bbox_train"):
        datasets.read(tmp_path / "mars", part="train")
    with pytest.raises(NotFoundError, match="bbox_train"):
        datasets.read(tmp_path / "plain", format="mars")
    with pytest.raises(InvalidArgumentError, match="bob"):
        datasets.read(tmp_path / "plain", identities={"ann", "bob"})


def test_allow_list_file(tmp_path):
    listing = tmp_path / "identities.txt"
    listing.write_text("# half of them\nann\n\nzoe  # the second\r\n")
    assert datasets.read_identities(listing) == {"ann", "zoe"}
    listing.write_text("# nobody\n")
    with pytest.raises(InvalidArgumentError, match="names no identity"):
        datasets.read_identities(listing)
    with pytest.raises(NotFoundError):
        datasets.read_identities(tmp_path / "absent.txt")
