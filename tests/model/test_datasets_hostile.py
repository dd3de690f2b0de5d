"""Data sets that are broken, or packed by somebody who means harm: refused with the path, quickly, in little memory."""

from __future__ import annotations

import io
import lzma
import os
import pickle
import struct
import subprocess
import sys
import zlib
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pyarrow as pa
import pytest
from passerby.errors import InvalidArgumentError, NotFoundError, PasserbyError
from passerby_model.datasets import mars_tables, matlab, read, read_splits, rtf_pickle
from passerby_model.datasets.checking import check
from passerby_model.datasets.matlab import read_matrix
from pyarrow import parquet
from scipy.io import savemat

from tests.model import drawn

MEGABYTE = 2**20


def refused(call: Callable[[], object], path: Path, kind: type[PasserbyError] = InvalidArgumentError) -> str:
    """The message of the error that `call` raises; it names `path`."""
    with pytest.raises(kind) as caught:
        call()
    assert str(path) in str(caught.value)
    return str(caught.value)


# ---- folders ----


def test_links_that_lead_to_themselves(tmp_path: Path) -> None:
    (tmp_path / "ann").symlink_to("ann")
    assert "cannot be followed" in refused(lambda: read(tmp_path), tmp_path / "ann")


def test_links_to_a_folder_above_end(tmp_path: Path) -> None:
    drawn.plain(tmp_path, "ann/c1/t1")
    (tmp_path / "ann/c1/t2").symlink_to(tmp_path)
    assert "a folder where only images belong" in refused(lambda: read(tmp_path), tmp_path / "ann/c1/t2/ann")


def test_a_link_to_a_frame_that_is_gone_is_listed_all_the_same(tmp_path: Path) -> None:
    drawn.plain(tmp_path, "ann/c1/t1")
    (tmp_path / "ann/c1/t1/0009.jpg").symlink_to("gone.jpg")
    assert read(tmp_path).frame_count == 3


@pytest.mark.parametrize("name", [b"a\nb", b"a\x1b[31mb", b"\xff\xfe", "a\u2028b".encode()])
@pytest.mark.parametrize("place", ["{}/c1/t1/1.jpg", "ann/{}/t1/1.jpg", "ann/c1/{}/1.jpg", "ann/c1/t1/{}.jpg"])
def test_names_that_no_log_can_hold(tmp_path: Path, name: bytes, place: str) -> None:
    path = os.path.join(os.fsencode(tmp_path), place.encode().replace(b"{}", name))
    os.makedirs(os.path.dirname(path))
    Path(os.fsdecode(path)).touch()
    message = refused(lambda: read(tmp_path), tmp_path)
    assert "control characters, or one that is no UTF-8" in message
    assert message.isprintable()


def test_names_in_any_script_are_names(tmp_path: Path) -> None:
    drawn.plain(tmp_path, "王小明/Büro 2/t\u3000é")
    (found,) = read(tmp_path).tracklets
    assert found.key == "王小明/Büro 2/t\u3000é"


@pytest.mark.parametrize("name", ["a" * 300, "a\0b", "loop", "file.txt/deeper"])
def test_paths_that_cannot_be(tmp_path: Path, name: str) -> None:
    (tmp_path / "loop").symlink_to("loop")
    (tmp_path / "file.txt").touch()
    for call in (read, read_splits, check):
        refused(lambda call=call: call(tmp_path / name), tmp_path, NotFoundError)  # type: ignore[misc]


# ---- tables of MARS ----

TWO = [("0002C1T0001", 2), ("0002C2T0001", 2)]


def with_tables(root: Path, rows: list[tuple[float, ...]] | None = None, queries: object = None) -> Path:
    drawn.mars_table(root, "test", TWO)
    if rows is not None:
        drawn.write_table(root, "test", rows)
    savemat(root / "info/query_IDX.mat", {"query_IDX": np.array([[1]] if queries is None else queries)})
    return root


@pytest.mark.parametrize(
    ("rows", "message"),
    [
        ([(1, 2, 2, 1), (3, 5, 2, 2)], "row 2 is lines 3 to 5, and the name list has 4 lines"),
        ([(0, 2, 2, 1)], "row 1 is lines 0 to 2"),
        ([(-3, -1, 2, 1)], "row 1 is lines -3 to -1"),
        ([(2, 1, 2, 1)], "row 1 is lines 2 to 1"),
        ([(1, 3, 2, 1)], "row 1 is not the frames of one tracklet: '0002C1T0001F001.jpg' to '0002C2T0001F001.jpg'"),
        ([(1, 2, 7, 1)], "row 1 is person 7, camera 1; its frames are 0002C1T0001"),
        ([(1, 2, 2, 9)], "row 1 is person 2, camera 9"),
        ([(1, 2, 2, 1), (1, 2, 2, 1)], "rows 1 and 2 are both 0002C1T0001"),
        ([(1, 1, 2, 1), (2, 2, 2, 1)], "rows 1 and 2 are both 0002C1T0001"),
        ([(1, 2.5, 2, 1)], "values that are no whole numbers"),
        ([(1, float("nan"), 2, 1)], "values that are no whole numbers"),
        ([(1, float("inf"), 2, 1)], "values that are no whole numbers"),
        ([(1, 1e300, 2, 1)], "values that are no whole numbers"),
    ],
)
def test_tables_that_lie(tmp_path: Path, rows: list[tuple[float, ...]], message: str) -> None:
    with_tables(tmp_path, rows)
    assert message in refused(lambda: read_splits(tmp_path), tmp_path / "info/tracks_test_info.mat")


@pytest.mark.parametrize(
    ("queries", "message"),
    [
        ([[3]], "row 3 of 2 rows"),
        ([[0]], "row 0 of 2 rows"),
        ([[-1]], "row -1 of 2 rows"),
        ([[1, 1]], "a row is a query twice"),
    ],
)
def test_queries_that_lie(tmp_path: Path, queries: object, message: str) -> None:
    with_tables(tmp_path, queries=queries)
    assert message in refused(lambda: read_splits(tmp_path), tmp_path / "info/query_IDX.mat")


def test_nobody_cannot_be_asked_for(tmp_path: Path) -> None:
    drawn.mars_table(tmp_path, "test", [("00-1C1T0001", 1), ("0002C2T0001", 1)])
    savemat(tmp_path / "info/query_IDX.mat", {"query_IDX": [[1]]})
    assert "00-1C1T0001, which is nobody" in refused(lambda: read_splits(tmp_path), tmp_path / "info/query_IDX.mat")


@pytest.mark.parametrize(
    "name",
    [
        "../../../etc/passwd",
        "0002C1T0001F001.jpg/../x",
        "0002C1T0001F001",
        "/0002C1T0001F001.jpg",
        "٠٠٠٢C1T0001F001.jpg",
    ],
)
def test_name_lists_that_lead_elsewhere(tmp_path: Path, name: str) -> None:
    with_tables(tmp_path)
    (tmp_path / "info/test_name.txt").write_text("\n".join(["0002C1T0001F001.jpg", name] * 2))
    refused(lambda: read_splits(tmp_path), tmp_path / "info")


@pytest.mark.parametrize("name", ["query_IDX.mat", "tracks_test_info.mat"])
def test_a_pipe_for_a_table_is_not_waited_for(tmp_path: Path, name: str) -> None:
    drawn.mars(tmp_path)
    (tmp_path / "info" / name).unlink()
    os.mkfifo(tmp_path / "info" / name)
    assert "not a file" in refused(lambda: read_splits(tmp_path), tmp_path / "info" / name)


def test_name_lists_missing_repeated_and_cut(tmp_path: Path) -> None:
    names = with_tables(tmp_path) / "info/test_name.txt"
    names.write_text("0002C1T0001F001.jpg\r\n" * 4)
    assert "row 1, 0002C1T0001, has a frame twice" in refused(lambda: read_splits(tmp_path), tmp_path)
    packed = names.with_name("test_name.txt.xz")
    names.unlink()
    refused(lambda: read_splits(tmp_path), names, NotFoundError)
    packed.write_bytes(lzma.compress(b"0002C1T0001F001.jpg\r\n" * 4)[:-20])
    assert "cut short" in refused(lambda: read_splits(tmp_path), packed)
    packed.write_bytes(b"no xz")
    assert "no xz file" in refused(lambda: read_splits(tmp_path), packed)


def test_packed_bombs(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(mars_tables, "MAX_TABLE_BYTES", 4 * MEGABYTE)
    names = with_tables(tmp_path) / "info/test_name.txt"
    names.unlink()
    packed = names.with_name("test_name.txt.xz")
    packed.write_bytes(lzma.compress(bytes(9 * MEGABYTE), preset=0))
    assert packed.stat().st_size < MEGABYTE / 100
    assert "larger than" in refused(lambda: read_splits(tmp_path), packed)


def test_matlab_bombs(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(matlab, "MAX_TABLE_BYTES", 4 * MEGABYTE)
    element = zlib.compress(bytes(9 * MEGABYTE))
    path = tmp_path / "bomb.mat"
    head = b"MATLAB 5.0 MAT-file".ljust(124) + struct.pack("<HH", 0x0100, 0x4D49)
    path.write_bytes(head + struct.pack("<II", 15, len(element)) + element)
    assert "unpacks to more than" in refused(lambda: read_matrix(path, "query_IDX"), path)


@pytest.mark.parametrize(
    "data",
    [
        b"",
        b"\0" * 200,
        b"MATLAB 7.3 MAT-file".ljust(512),
        os.urandom(4096),
        b"MATLAB 5.0".ljust(124) + b"\0\1IM" + b"\xff" * 64,
    ],
)
def test_what_is_no_matlab_file(tmp_path: Path, data: bytes) -> None:
    path = tmp_path / "table.mat"
    path.write_bytes(data)
    refused(lambda: read_matrix(path, "query_IDX"), path)


@pytest.mark.parametrize("cut", range(100, 260, 20))
def test_matlab_files_cut_short(tmp_path: Path, cut: int) -> None:
    path = tmp_path / "table.mat"
    savemat(path, {"query_IDX": np.arange(100).reshape(1, -1)}, do_compression=True)
    whole = path.read_bytes()
    path.write_bytes(whole[: len(whole) * cut // 300])
    refused(lambda: read_matrix(path, "query_IDX"), path)


@pytest.mark.parametrize("value", [{"a": 1}, "text", np.array([["a"]], dtype=object)])
def test_matlab_values_that_are_no_matrix(tmp_path: Path, value: object) -> None:
    path = tmp_path / "table.mat"
    savemat(path, {"query_IDX": value})
    assert "its values are no real numbers" in refused(lambda: read_matrix(path, "query_IDX"), path)
    assert "a matrix ls_set: there are query_IDX" in refused(lambda: read_matrix(path, "ls_set"), path)


@pytest.mark.parametrize("shape", [(3, 3), (4, 1), (2, 2, 4)])
def test_matlab_tables_of_another_shape(tmp_path: Path, shape: tuple[int, ...]) -> None:
    path = tmp_path / "table.mat"
    savemat(path, {"t": np.zeros(shape)})
    message = refused(lambda: read_matrix(path, "t", columns=4), path)
    assert "it takes rows of 4 columns" in message or "dimensions are [2, 2, 4], which is no table" in message


def test_matlab_values_that_are_complex(tmp_path: Path) -> None:
    path = tmp_path / "table.mat"
    savemat(path, {"t": np.array([[1 + 2j]])})
    assert "its values are no real numbers" in refused(lambda: read_matrix(path, "t"), path)


def test_matlab_files_of_version_7_3(tmp_path: Path) -> None:
    path = tmp_path / "table.mat"
    path.write_bytes(b"MATLAB 7.3 MAT-file".ljust(512) + b"\x89HDF\r\n\x1a\n")
    assert "version 7.3; save it with -v7" in refused(lambda: read_matrix(path, "t"), path)


def test_attribute_tables_that_lie(tmp_path: Path) -> None:
    path = with_tables(tmp_path) / "info/mars_attributes.csv"
    path.write_text("person-id,camera,tracklet,hat\n2,1,1,0\n2,1,1,1\n")
    assert "line 3: 0002C1T0001 is there twice" in refused(lambda: read_splits(tmp_path), path)
    path.write_text("person-id,camera,tracklet,hat\n2,one,1,0\n")
    assert "are numbers" in refused(lambda: read_splits(tmp_path), path)


# ---- JSON ----


@pytest.mark.parametrize("text", ["[" * 100_000, "{", "\ufffe", '[{"train": "abc", "test": "def"}]'])
def test_json_that_is_none(tmp_path: Path, text: str) -> None:
    drawn.touch(tmp_path, "prid_2011/multi_shot/cam_a/person_0001/1.png")
    path = tmp_path / "splits_prid2011.json"
    path.write_text(text)
    refused(lambda: read(tmp_path), path)


# ---- pickles ----


class Evil:
    """What an attacker's object would be: a call at the time of loading."""

    def __init__(self, path: Path) -> None:
        self.path = path

    def __reduce__(self) -> tuple[object, ...]:
        return os.mkdir, (str(self.path),)


def partitions(root: Path, data: bytes) -> Path:
    path = root / "partitions.pkl"
    path.write_bytes(data)
    return path


@pytest.mark.parametrize("protocol", range(pickle.HIGHEST_PROTOCOL + 1))
def test_a_malicious_pickle_is_refused_and_does_nothing(tmp_path: Path, protocol: int) -> None:
    trace = tmp_path / "was-here"
    data = pickle.dumps({"test_im_names": [], "evil": Evil(trace)}, protocol=protocol)
    path = partitions(tmp_path, data)
    assert "it asks for" in refused(lambda: read(tmp_path), path)
    assert not trace.exists()
    pickle.loads(data)  # noqa: S301  it would have worked
    assert trace.exists()


EXPLOITS = {
    "os.system": b"cos\nsystem\n(S'true'\ntR.",
    "builtins.eval": b"\x80\x04\x8c\x08builtins\x8c\x04eval\x93\x8c\x011\x85R.",
    "getattr through a stand-in": b"\x80\x04\x8c\x05numpy\x8c\x0edtype.__init__\x93.",
    "inst": b"(S'true'\nios\nsystem\n.",
    "obj": b"\x80\x02(cos\nsystem\nS'true'\no.",
    "newobj": b"\x80\x02cnumpy\nndarray\n)\x81.",
    "numpy.load": b"\x80\x02cnumpy\nload\nS'x'\n\x85R.",
    "persistent id": b"Pwhatever\n.",
    "extension": b"\x80\x02\x82\x01.",
    "set": b"\x80\x04\x8f.",
    "next buffer": b"\x80\x05\x97.",
    "attributes of a stand-in": b"\x80\x02cnumpy\ndtype\n}S'_call'\nI1\nsb.",
    "array of objects": b"\x80\x02cnumpy\ndtype\nS'O8'\n\x85R.",
    "array of a million axes": b"\x80\x02cnumpy\nndarray\n)R(I1\n("
    + b"I1\n" * 1000
    + b"tcnumpy\ndtype\nS'i8'\n\x85RI00\nS''\ntb.",
    "array larger than its bytes": b"\x80\x02cnumpy\nndarray\n)R(I1\n(L99999999999L\ntcnumpy\ndtype\nS'i8'\n\x85RI00\nS'12345678'\ntb.",
    "bytes in another encoding": b"\x80\x02c_codecs\nencode\nX\x01\x00\x00\x00aX\x03\x00\x00\x00zip\x86R.",
    "tuple as a key": b"\x80\x02}I1\n\x85I1\ns.",
    "empty": b"",
    "cut": pickle.dumps({"test_im_names": ["a"] * 9})[:-7],
    "text": b"test_im_names: []",
}


@pytest.mark.parametrize("name", EXPLOITS)
def test_pickles_that_want_more_than_plain_values(tmp_path: Path, name: str) -> None:
    path = partitions(tmp_path, EXPLOITS[name])
    assert "refused as a pickle of plain values" in refused(lambda: rtf_pickle.load(path), path)


def doubling_tuples() -> bytes:
    """A key whose hash takes 2**60 steps: each tuple holds the one before twice."""
    return b"\x80\x02}" + b")" + b"2\x86" * 60 + b"I1\ns."


PICKLE_BOMBS = {
    "memo": b"\x80\x04Nr\xff\xff\xff\x7f.",  # LONG_BINPUT 2**31 - 1: a table of 16 GB in the C reader
    "bytearray": b"\x80\x05\x96" + struct.pack("<Q", 2**36) + b".",
    "bytes": b"\x80\x04\x8e" + struct.pack("<Q", 2**36) + b".",
    "text": b"\x80\x04\x8d" + struct.pack("<Q", 2**36) + b".",
    "frame": b"\x80\x04\x95" + struct.pack("<Q", 2**36) + b".",
    "hash": doubling_tuples(),
    "deep lists": b"\x80\x02" + b"]" * 200_000 + b"a" * 199_999 + b".",
}


def test_pickle_bombs_end_soon_and_small(tmp_path: Path) -> None:
    """Each in one process with 1 GB of address space above what the imports take, and a time limit."""
    for name, data in PICKLE_BOMBS.items():
        (tmp_path / f"{name}.pkl").write_bytes(data)
    done = subprocess.run(
        [sys.executable, "-c", _LIMITED, tmp_path], capture_output=True, text=True, timeout=120, check=False
    )
    assert done.returncode == 0, done.stderr
    assert set(done.stdout.split("\n")[:-1]) == {f"{name}.pkl" for name in PICKLE_BOMBS}


_LIMITED = """
import resource, sys
from pathlib import Path
from passerby.errors import InvalidArgumentError
from passerby_model.datasets import rtf_pickle
used = int(Path("/proc/self/statm").read_text().split()[0]) * resource.getpagesize()
resource.setrlimit(resource.RLIMIT_AS, (used + 2**30, used + 2**30))
for path in Path(sys.argv[1]).glob("*.pkl"):
    try:
        value = rtf_pickle.load(path)
        assert value is None or isinstance(value, list), value
    except InvalidArgumentError as error:
        assert str(path) in str(error)
    print(path.name)
"""


def test_plain_pickles_are_read(tmp_path: Path) -> None:
    value = {"a": [1, 2.5, "ü", b"\xff", None, True, -(2**70)], "b": {"c": []}, "d": ("x", 1)}
    for protocol in range(pickle.HIGHEST_PROTOCOL + 1):
        loaded = rtf_pickle.load(partitions(tmp_path, pickle.dumps(value, protocol=protocol)))
        assert loaded == {**value, "d": loaded["d"]}
        assert list(loaded["d"]) == ["x", 1]


@pytest.mark.parametrize("dtype", ["U5", ">U5", "S5", "i8", ">i4", "u1", "f4", "bool"])
def test_arrays_in_pickles_are_lists(tmp_path: Path, dtype: str) -> None:
    array = np.array([0, 1, 1, 0]).astype(dtype)
    for protocol in range(pickle.HIGHEST_PROTOCOL + 1):
        path = partitions(tmp_path, pickle.dumps({"a": array, "b": array[1]}, protocol=protocol))
        assert rtf_pickle.load(path) == {"a": array.tolist(), "b": array[1].item()}


def test_pickles_of_python_2_are_read(tmp_path: Path) -> None:
    """`cPickle.dumps({"a": ["x.png"], "b": numpy.array([1, 2])}, 2)` of Python 2.7, with the names that it used."""
    raw = struct.pack("<2q", 1, 2)
    array = (
        b"cnumpy.core.multiarray\n_reconstruct\ncnumpy\nndarray\nK\x00\x85U\x01b\x87R"
        b"(K\x01K\x02\x85cnumpy\ndtype\nU\x02i8K\x00K\x01\x87R(K\x03U\x01<NNNJ\xff\xff\xff\xffJ\xff\xff\xff\xffK\x00tb"
        b"\x89U" + bytes([len(raw)]) + raw + b"tb"
    )
    data = b"\x80\x02}(U\x01a]U\x05x.pngaU\x01b" + array + b"u."
    assert rtf_pickle.load(partitions(tmp_path, data)) == {"a": ["x.png"], "b": [1, 2]}


def test_damaged_tables_are_read_or_refused(tmp_path: Path) -> None:
    """Whatever a few flipped bytes make of a pickle, a MATLAB file or a Parquet table, nothing else than our error comes out."""
    drawn.rtf(tmp_path)
    savemat(tmp_path / "table.mat", {"t": np.arange(400).reshape(-1, 4)}, do_compression=True)
    savemat(tmp_path / "raw.mat", {"t": np.arange(400).reshape(-1, 4)})
    generator = np.random.default_rng(5)
    columns = {"identity": ["a", "b"], "camera": [1, 2], "tracklet": ["t", "u"], "frame": [["1.jpg"], ["2.jpg"]]}
    parquet.write_table(pa.table(columns), tmp_path / "set.parquet")
    readers = {"partitions.pkl": rtf_pickle.load, "table.mat": table_of, "raw.mat": table_of, "set.parquet": read}
    refusals = 0
    for name, reader in readers.items():
        whole = np.frombuffer((tmp_path / name).read_bytes(), dtype=np.uint8)
        for _ in range(150):
            damaged = whole.copy()
            places = generator.integers(0, len(whole), size=3)
            damaged[places] = generator.integers(0, 256, size=3)
            (tmp_path / name).write_bytes(damaged.tobytes())
            try:
                reader(tmp_path / name)
            except InvalidArgumentError:
                refusals += 1
    assert refusals > 50


def table_of(path: Path) -> object:
    return read_matrix(path, "t", columns=4)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"test_marks": [0]}, "test_marks is not 8 numbers 0, 1 or 2"),
        ({"test_marks": [7] * 8}, "test_marks is not 8 numbers"),
        ({"test_marks": None}, "test_marks is not 8 numbers"),
        ({"test_marks": [[0]] * 8}, "test_marks is not 8 numbers"),
        ({"test_marks": [0, 1] + [1] * 6}, "frames of 0002_10001 have the marks [0, 1]"),
        ({"trainval_im_names": "0001_10001_1.png"}, "trainval_im_names is not a list of image names"),
        ({"trainval_im_names": [1]}, "trainval_im_names is not a list of image names"),
        ({"trainval_im_names": ["../../etc/0001_10001_1.png"]}, "is not person_cameratrack_offset.png"),
        ({"trainval_im_names": ["0001_1.png"]}, "is not person_cameratrack_offset.png"),
        ({"trainval_im_names": ["0001_10001_1.png"] * 2}, "trainval_im_names names an image twice"),
    ],
)
def test_partitions_that_lie(tmp_path: Path, change: dict[str, object], message: str) -> None:
    path = drawn.rtf(tmp_path) / "partitions.pkl"
    value = {**pickle.load(io.BytesIO(path.read_bytes())), **change}  # noqa: S301  written above
    path.write_bytes(pickle.dumps(value))
    assert message in refused(lambda: read_splits(tmp_path), path)


@pytest.mark.parametrize("value", [[], "text", None, 7, {}])
def test_partitions_that_are_none(tmp_path: Path, value: object) -> None:
    path = partitions(tmp_path, pickle.dumps(value))
    refused(lambda: read(tmp_path), path, PasserbyError)


# ---- manifests ----


@pytest.mark.parametrize(
    "data",
    [
        b"\xff\xfeidentity",
        b"identity,camera,tracklet,frame\na,b,c,\0\n",
        b"identity,camera,tracklet,frame\na,b,c," + b"x" * 200_000,
        b"identity,camera,tracklet,frame\na\x1b[2J,b,c,d\n",
        b'identity,camera,tracklet,frame\n"a\nb",b,c,d\n',
        b"identity,camera,tracklet,frame\n" + b"a" * 300 + b",b,c,d\n",
    ],
    ids=["utf-16", "nul", "long field", "escape", "line break", "long name"],
)
def test_manifests_of_absurd_content(tmp_path: Path, data: bytes) -> None:
    path = tmp_path / "set.csv"
    path.write_bytes(data)
    assert refused(lambda: read(path), path).isprintable()


def test_a_pattern_in_a_folder_that_is_not_there(tmp_path: Path) -> None:
    path = tmp_path / "set.csv"
    path.write_text("identity,camera,tracklet,frame\na,b,c,gone/*.jpg\n")
    refused(lambda: read(path), tmp_path / "gone", NotFoundError)
