"""Every format's own layout, drawn: what is found in it, in what order, and how it is split."""

from __future__ import annotations

import json
from datetime import UTC, datetime
from pathlib import Path

import numpy as np
import pytest
from passerby.errors import InvalidArgumentError, NotFoundError
from passerby_model import datasets
from passerby_model.datasets import Format, read, read_splits
from passerby_model.street import StreetConfig
from passerby_model.street.writer import write
from scipy.io import savemat

from tests.model import drawn


def keys(tracklets: tuple[datasets.Tracklet, ...]) -> list[str]:
    return [tracklet.key for tracklet in tracklets]


@pytest.mark.parametrize("separator", ["", "_"], ids=["old names", "new names"])
def test_duke(tmp_path: Path, separator: str) -> None:
    found = read(drawn.duke(tmp_path, separator))
    assert found.format == "duke"
    assert len(found) == 4 + 2 + 5
    assert found.cameras == ("1", "2", "5", "8")
    assert keys(read(tmp_path, part="train").tracklets)[:2] == ["0001/1/train-0001", "0001/2/train-0002"]
    assert len(read(tmp_path, part="test")) == 7
    (split,) = read_splits(tmp_path)
    assert keys(split.query) == ["0002/1/query-0001", "0004/1/query-0001"]
    assert keys(split.gallery)[-1] == "7105/8/gallery-0001"
    assert (len(split.train), len(split.gallery), split.queries_without_match()) == (4, 5, ())


def test_duke_frames_are_sorted_by_number_and_none_is_lost(tmp_path: Path) -> None:
    names = ["0001C6F9999X00002.jpg", "0001C6F10000X00003.jpg", "0001C6F0099X00001.jpg"]
    drawn.touch(tmp_path, *(f"train/0001/0003/{name}" for name in names), "query/.x", "gallery/.x")
    (tracklet,) = read(tmp_path, part="train").tracklets
    assert [frame.name for frame in tracklet.frames] == [names[2], names[0], names[1]]
    assert tracklet.camera == "6"


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("0001C2F0001X1.jpg", "frames of several cameras in one tracklet: 2, 6"),
        ("0002C6F0001X1.jpg", "the name is neither 0001CcFffffXx.jpg nor"),
        ("0001_C6F0001X1.jpg", "the name is neither"),
        ("0001.jpg", "the name is neither"),
    ],
)
def test_duke_refuses_other_names(tmp_path: Path, name: str, message: str) -> None:
    drawn.touch(tmp_path, "train/0001/0003/0001C6F0099X30823.jpg", f"train/0001/0003/{name}")
    with pytest.raises(InvalidArgumentError, match=message) as caught:
        read(tmp_path, "duke", part="train")
    assert str(tmp_path) in str(caught.value)


def test_ilids_has_ten_splits_by_number_of_the_sorted_folder(tmp_path: Path) -> None:
    found = read(drawn.ilids(tmp_path))
    assert (found.format, len(found), found.cameras) == ("ilids", 12, ("cam1", "cam2"))
    assert found.identities == ("person001", "person004", "person007", "person010", "person013", "person016")
    splits = read_splits(tmp_path)
    assert [split.name for split in splits] == [f"split {number}" for number in range(1, 11)]
    # The second row of the table is 6 1 2 | 3 4 5: the first half is tested on.
    assert keys(splits[1].query) == [f"{name}/cam1/{name}_cam1" for name in ("person001", "person004", "person016")]
    assert {tracklet.camera for tracklet in splits[1].gallery} == {"cam2"}
    assert [query.identity for query in splits[1].query] == [shown.identity for shown in splits[1].gallery]
    assert {tracklet.identity for tracklet in splits[1].train} == {"person007", "person010", "person013"}
    assert len(splits[1].train) == 6
    assert read(tmp_path / "i-LIDS-VID").format == "ilids"


@pytest.mark.parametrize(
    "table", [[[1, 2, 3, 4, 5, 7]], [[1, 2, 3, 4, 5, 5]], [[1, 2, 3, 4]], [[0, 1, 2, 3, 4, 5]], []]
)
def test_ilids_refuses_a_table_of_other_people(tmp_path: Path, table: object) -> None:
    drawn.ilids(tmp_path, table=table)
    with pytest.raises(InvalidArgumentError, match=r"train_test_splits_ilidsvid\.mat: ls_set"):
        read_splits(tmp_path)


def test_ilids_refuses_what_cannot_be_paired_and_halves_it_does_not_have(tmp_path: Path) -> None:
    drawn.ilids(tmp_path)
    with pytest.raises(NotFoundError, match="ten random halvings"):
        read(tmp_path, part="train")
    drawn.touch(tmp_path, "i-LIDS-VID/sequences/cam2/person002/cam2_person002_00001.png")
    with pytest.raises(InvalidArgumentError, match="1 people are in one of the two cameras only, the first person002"):
        read(tmp_path)


def test_prid_selects_the_178_of_the_official_splits(shared: Path, tmp_path: Path) -> None:
    official = json.loads((shared / "data/meta/prid2011/splits_prid2011.json").read_text())
    drawn.prid(tmp_path, official, others=["cam_b/person_0300", "cam_a/person_0300", "cam_a/person_0005"])
    found = read(tmp_path)
    assert (found.format, len(found.identities), len(found), found.cameras) == ("prid", 178, 356, ("cam_a", "cam_b"))
    assert [frame.name for frame in found.tracklets[0].frames] == ["0001.png", "0002.png"]
    splits = read_splits(tmp_path)
    assert [(len(one.train), len(one.query), len(one.gallery)) for one in splits] == [(178, 89, 89)] * 10
    for split, halves in zip(splits, official, strict=True):
        assert [query.identity for query in split.query] == sorted(halves["test"])
        assert {query.camera for query in split.query} == {"cam_a"}
        assert {tracklet.identity for tracklet in split.train} == set(halves["train"])
        assert split.queries_without_match() == ()


@pytest.mark.parametrize(
    ("splits", "message"),
    [
        ({}, "not a list of"),
        ([], "not a list of"),
        ([{"train": ["person_0001"]}], "split 1 has no list of people 'test'"),
        ([{"train": ["person_0001"], "test": [7]}], "split 1 has no list of people 'test'"),
        ([{"train": ["../../etc"], "test": ["person_0001"]}], "is no name for a person"),
        ([{"train": ["person_0001", "person_0001"], "test": ["person_0002"]}], "names somebody twice in 'train'"),
        ([{"train": ["person_0001"], "test": ["person_0001"]}], "trains and tests on person_0001"),
    ],
)
def test_prid_refuses_broken_splits(tmp_path: Path, splits: object, message: str) -> None:
    drawn.touch(tmp_path, "prid_2011/multi_shot/cam_a/person_0001/0001.png")
    (tmp_path / "splits_prid2011.json").write_text(json.dumps(splits))
    with pytest.raises(InvalidArgumentError, match=r"splits_prid2011\.json: .*") as caught:
        read_splits(tmp_path)
    assert message in str(caught.value)


def test_prid_says_what_is_missing(tmp_path: Path) -> None:
    drawn.touch(tmp_path, "prid_2011/multi_shot/cam_a/person_0001/0001.png")
    with pytest.raises(NotFoundError, match=r"splits_prid2011\.json: cannot be read"):
        read(tmp_path)
    (tmp_path / "splits_prid2011.json").write_text('[{"train": ["person_0001"], "test": ["person_0002"]}]')
    with pytest.raises(NotFoundError, match="cam_b/person_0001"):
        read(tmp_path)


@pytest.mark.parametrize("arrays", [False, True], ids=["lists", "arrays"])
@pytest.mark.parametrize("protocol", [0, 1, 2, 3, 4, 5])
def test_rtf(tmp_path: Path, protocol: int, arrays: bool) -> None:
    found = read(drawn.rtf(tmp_path, protocol, arrays=arrays))
    assert (found.format, len(found), found.identities) == ("rtf", 8, ("0001", "0002", "0003", "0004"))
    (split,) = read_splits(tmp_path)
    assert keys(split.train) == [
        f"{name[:4]}/{name[5]}/{name}" for name in ("0001_10001", "0001_20001", "0003_10001", "0003_20001")
    ]
    assert keys(split.query) == ["0002/1/0002_10001"]
    assert keys(split.gallery) == ["0002/2/0002_20007", "0004/3/0004_30001"]
    assert split.query[0].frames == (tmp_path / "images/0002_10001_9.png", tmp_path / "images/0002_10001_10.png")
    assert "0002_30002" in {tracklet.tracklet_id for tracklet in read(tmp_path, part="test")}


def test_rtf_knows_both_spellings_of_the_training_list(tmp_path: Path) -> None:
    assert len(read(drawn.rtf(tmp_path / "a", train_key="train_im_names"), part="train")) == 4
    drawn.rtf(tmp_path / "b", train_key="val_im_names")
    with pytest.raises(NotFoundError, match="neither trainval_im_names nor train_im_names"):
        read(tmp_path / "b", part="train")
    assert read_splits(tmp_path / "b")[0].train == ()


CSV = """\ufeffidentity,camera,tracklet,frame,part,start_time,end_time,attribute.hat\r
ann,gate,t1,walks/b.jpg,query,2026-11-21T09:00:00Z,,cap\r
ann,gate,t1,walks/a.jpg,query,2026-11-21T09:00:01Z,,\r
ann,yard,t1,yard/*.jpg,gallery,2026-11-21T10:00:00+01:00,2026-11-21T10:00:05+01:00,cap\r
7,yard,t2,/elsewhere/x.jpg,gallery,,,\r
bob,gate,t1,bob.jpg,train,,,\r
"""


def rows_of(csv: str) -> list[dict[str, str]]:
    header, *lines = csv.lstrip("\ufeff").split("\r\n")[:-1]
    return [dict(zip(header.split(","), line.split(","), strict=True)) for line in lines]


def write_manifest(folder: Path, kind: str) -> Path:
    drawn.touch(folder, "yard/2.jpg", "yard/1.jpg", "yard/notes.txt", "yard/deep/3.jpg")
    path = folder / f"cameras.{kind}"
    if kind == "csv":
        path.write_text(CSV, encoding="utf-8", newline="")
    else:
        import pyarrow as pa
        from pyarrow import parquet

        rows = rows_of(CSV)
        columns = {name: [row[name] or None for row in rows] for name in rows[0]}
        parquet.write_table(pa.table(columns), path)
    return path


@pytest.mark.parametrize("kind", ["csv", "parquet"])
def test_manifest(tmp_path: Path, kind: str) -> None:
    path = write_manifest(tmp_path, kind)
    found = read(path)
    assert (found.format, len(found), found.identities, found.cameras) == (
        "manifest",
        4,
        ("7", "ann", "bob"),
        ("gate", "yard"),
    )
    ann = next(one for one in found if one.key == "ann/gate/t1")
    assert ann.frames == (tmp_path / "walks/b.jpg", tmp_path / "walks/a.jpg")  # in the order of the rows
    assert (ann.start_time, ann.end_time) == (
        datetime(2026, 11, 21, 9, tzinfo=UTC),
        datetime(2026, 11, 21, 9, 0, 1, tzinfo=UTC),
    )
    assert ann.attributes == {"hat": "cap"}
    (split,) = read_splits(path)
    assert (keys(split.train), keys(split.query)) == (["bob/gate/t1"], ["ann/gate/t1"])
    yard, seven = split.gallery
    assert [frame.name for frame in yard.frames] == ["1.jpg", "2.jpg"]
    assert seven.frames == (Path("/elsewhere/x.jpg"),)
    assert (seven.start_time, seven.attributes) == (None, {})
    assert len(read(path, part="test")) == 3


def test_parquet_manifest_with_lists_numbers_and_times(tmp_path: Path) -> None:
    import pyarrow as pa
    from pyarrow import parquet

    columns = {
        "identity": [3, 4],
        "camera": [1, 2],
        "tracklet": ["a", "b"],
        "frame": [["2.jpg", "1.jpg"], ["3.jpg"]],
        "start_time": [datetime(2026, 1, 2, tzinfo=UTC), None],
    }
    parquet.write_table(pa.table(columns), tmp_path / "set.parquet")
    first, second = read(tmp_path / "set.parquet").tracklets
    assert (first.key, [frame.name for frame in first.frames]) == ("3/1/a", ["2.jpg", "1.jpg"])
    assert (first.start_time, second.start_time) == (datetime(2026, 1, 2, tzinfo=UTC), None)
    (split,) = read_splits(tmp_path / "set.parquet")
    assert split.all_against_all
    assert split.query == split.gallery == (first, second)


HEAD = "identity,camera,tracklet,frame"


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("", "no column camera, frame, identity, tracklet; there are none"),
        ("identity,camera,frame\n", "no column tracklet; there are identity, camera, frame"),
        (f"{HEAD},frame\na,b,c,d,e\n", "column frame is there twice"),
        (f"{HEAD},start\na,b,c,d,e\n", "unknown column 'start'; did you mean start_time?"),
        (f"{HEAD},hat\na,b,c,d,e\n", "unknown column 'hat'; what is known of a person goes into attribute.NAME"),
        (f"{HEAD}\na,b,c\n", "line 2: 3 values, and the header has 4"),
        (f"{HEAD}\n,b,c,d\n", "'' is no name for the identity"),
        (f"{HEAD}\na/b,b,c,d\n", "'a/b' is no name"),
        (f"{HEAD}\na,..,c,d\n", "'..' is no name"),
        (f"{HEAD}\na,b,c,\n", "row 1: frame is '', which is no path"),
        (f"{HEAD}\na,b,c,d\n\na,b,c,d\n", "row 2: .*/d is in the tracklet twice"),
        (f"{HEAD}\na,b,c,*.png\n", r"row 1: no image is '\*.png'"),
        (f"{HEAD},part\na,b,c,d,Test\n", "part is 'Test'; it takes train, test, query or gallery"),
        (f"{HEAD},part\na,b,c,d,train\na,b,c,e,test\n", "row 2: the tracklet is in part 'train' and in part 'test'"),
        (f"{HEAD},start_time\na,b,c,d,noon\n", "'noon' is no time"),
        (f"{HEAD},start_time\na,b,c,d,2026-01-01T00:00\n", "has no time zone"),
        (f"{HEAD},attribute.hat\na,b,c,d,cap\na,b,c,e,none\n", "row 2: attribute.hat is 'none', and was 'cap'"),
        (f'{HEAD}\n"a,b,c,d\n', "no CSV table"),
        (f"{HEAD}\n", "holds no tracklets"),
    ],
)
def test_manifest_refuses(tmp_path: Path, text: str, message: str) -> None:
    path = tmp_path / "set.csv"
    path.write_text(text)
    with pytest.raises(InvalidArgumentError, match=message) as caught:
        read(path)
    assert str(path) in str(caught.value)


def test_manifest_with_parts_that_do_not_make_a_split(tmp_path: Path) -> None:
    path = tmp_path / "set.csv"
    path.write_text(f"{HEAD},part\na,b,c,d,test\na,b,e,f,query\n")
    with pytest.raises(InvalidArgumentError, match="the column part names 'test', 'query'"):
        read_splits(path)
    path.write_text(f"{HEAD},part\na,b,c,d,train\n")
    with pytest.raises(InvalidArgumentError, match="the column part names 'train'"):
        read_splits(path)
    with pytest.raises(NotFoundError, match="has no part 'test'; its column part names train"):
        read(path, part="test")
    path.write_text(f"{HEAD},part\na,b,c,d,test\na,c,e,f,train\n")
    (split,) = read_splits(path)
    assert (keys(split.train), keys(split.query), split.all_against_all) == (["a/c/e"], ["a/b/c"], True)


def test_parquet_refuses(tmp_path: Path) -> None:
    import pyarrow as pa
    from pyarrow import parquet

    path = tmp_path / "set.parquet"
    path.write_bytes(b"PAR1" + b"\xff" * 64 + b"PAR1")
    with pytest.raises(InvalidArgumentError, match=r"set\.parquet: no Parquet table"):
        read(path)
    columns = {"identity": ["a"], "camera": [1.5], "tracklet": ["t"], "frame": ["x.jpg"]}
    parquet.write_table(pa.table(columns), path)
    with pytest.raises(InvalidArgumentError, match=r"column camera holds '1\.5'"):
        read(path)


def test_street_brings_times_and_attributes(tmp_path: Path) -> None:
    record = write(StreetConfig(identities=2, cameras=2, frames=2, height=64, width=32, seed=3), tmp_path / "s")
    found = read(tmp_path / "s")
    assert (found.format, len(found)) == ("street", 4)
    assert keys(found.tracklets) == keys(read(tmp_path / "s", "plain").tracklets)
    entry = record["tracklets"][0]
    first = next(one for one in found if one.key == f"{entry['identity']}/{entry['camera']}/{entry['tracklet']}")
    assert first.start_time == datetime.fromisoformat(entry["start_time"])
    assert first.attributes["upper_colour"] == entry["attributes"]["upper_colour"]
    assert first.attributes["hat"] == ("yes" if entry["attributes"]["hat"] else "no")
    (split,) = read_splits(tmp_path / "s")
    assert split.all_against_all
    assert (len(split.query), split.queries_without_match()) == (4, ())
    assert all(query.attributes for query in split.query)


def test_street_in_halves(tmp_path: Path) -> None:
    for half, first in (("train", 0), ("test", 2)):
        write(
            StreetConfig(identities=2, cameras=2, frames=1, height=64, width=32, first_identity=first), tmp_path / half
        )
    assert read(tmp_path).format == "street"
    (split,) = read_splits(tmp_path)
    assert ({one.identity for one in split.train}, {one.identity for one in split.query}) == (
        {"0000", "0001"},
        {"0002", "0003"},
    )
    assert all(one.attributes for one in (*split.train, *split.gallery))


def test_a_record_of_the_street_that_is_none(tmp_path: Path) -> None:
    drawn.plain(tmp_path, "a/1/t1")
    (tmp_path / "street.json").write_text('{"tracklets": [{"identity": "a", "camera": "1", "tracklet": "t1"}]}')
    with pytest.raises(InvalidArgumentError, match=r"street\.json: not as .*KeyError: 'start_time'"):
        read(tmp_path)
    assert len(read(tmp_path, "plain")) == 1


def test_every_format_is_told_by_its_signs(tmp_path: Path) -> None:
    made: dict[Format, Path] = {
        "mars": drawn.mars(tmp_path / "mars"),
        "duke": drawn.duke(tmp_path / "duke"),
        "ilids": drawn.ilids(tmp_path / "ilids"),
        "prid": drawn.prid(tmp_path / "prid", [{"train": ["person_0001"], "test": ["person_0002"]}]),
        "rtf": drawn.rtf(tmp_path / "rtf"),
        "plain": drawn.plain(tmp_path / "plain", "a/1/t1"),
        "manifest": write_manifest(tmp_path / "manifest", "csv"),
    }
    for format, root in made.items():
        assert read(root).format == format
        assert read(root, format).tracklets == read(root).tracklets


def test_signs_of_two_formats_are_ambiguous(tmp_path: Path) -> None:
    drawn.mars(tmp_path)
    drawn.rtf(tmp_path)
    with pytest.raises(
        InvalidArgumentError, match=r"signs of 2 formats: bbox_train \(mars\) and partitions\.pkl \(rtf\)"
    ):
        read(tmp_path)
    assert (len(read(tmp_path, "mars")), len(read(tmp_path, "rtf"))) == (11, 8)


def test_no_such_format_part_or_file(tmp_path: Path) -> None:
    drawn.touch(tmp_path, "set.txt")
    with pytest.raises(InvalidArgumentError, match=r"format is one of auto, mars, .*got 'market'"):
        read(tmp_path, "market")  # type: ignore[arg-type]
    with pytest.raises(InvalidArgumentError, match="part is one of all, train, test; got 'query'"):
        read(tmp_path, part="query")  # type: ignore[arg-type]
    with pytest.raises(NotFoundError, match=r"set\.txt: not a folder"):
        read(tmp_path / "set.txt")
    with pytest.raises(NotFoundError, match=r"not a manifest \(\.csv or \.parquet\)"):
        read(tmp_path, "manifest")
    with pytest.raises(NotFoundError, match="no folder i-LIDS-VID"):
        read(tmp_path, "ilids")
    with pytest.raises(NotFoundError, match=r"no such manifest"):
        read(tmp_path / "set.csv", "manifest")


def test_listings_do_not_depend_on_the_order_of_creation(tmp_path: Path) -> None:
    names = [f"{identity}/{camera}/{tracklet}" for identity in "cab" for camera in "21" for tracklet in "yx"]
    drawn.plain(tmp_path / "a", *names, frames=12)
    drawn.plain(tmp_path / "b", *reversed(names), frames=12)
    found, other = read(tmp_path / "a").tracklets, read(tmp_path / "b").tracklets
    assert keys(found) == keys(other) == sorted(names)
    assert [frame.name for frame in found[0].frames] == [f"{number:04d}.jpg" for number in range(1, 13)]


def test_matlab_numbers_that_are_floats_count_when_whole(tmp_path: Path) -> None:
    drawn.mars(tmp_path)
    savemat(tmp_path / "info/query_IDX.mat", {"query_IDX": np.array([[3.0, 5.0]])})
    assert len(read_splits(tmp_path)[0].query) == 2
    savemat(tmp_path / "info/query_IDX.mat", {"query_IDX": np.array([[3.5]])})
    with pytest.raises(InvalidArgumentError, match=r"query_IDX\.mat: query_IDX holds values that are no whole numbers"):
        read_splits(tmp_path)
