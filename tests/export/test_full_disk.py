"""A disk that fills up half-way: a clear error, what was there before as it was, and nothing half-written.

Twice: on a real file system of a few megabytes (where mounting one is allowed), and under the file size limit of the
process (everywhere).
"""

from __future__ import annotations

import contextlib
import errno
import os
import resource
import shutil
import subprocess
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Protocol

import onnx
import pytest
from passerby.errors import ResourceExhaustedError
from passerby_export import export as stage
from passerby_export.calibrate import write_calibration
from passerby_export.export import Options
from passerby_export.openvino_ir import read_model, save_ir
from passerby_export.spec import WrapSpec
from passerby_export.tune_cli import tune_command
from passerby_export.verify_gpu import verify_on_gpu
from passerby_export.wrap import wrap
from passerby_model.backends import base, open_backend, opening_gpu
from passerby_model.backends.gpu import Gpu
from passerby_model.bundle import Calibration, CalibrationPoint, Manifest, open_bundle

from tests.encoders import make_bundle
from tests.export.conftest import foreign_onnx
from tests.export.networks import Network

SIZE = 96  # MB
PAGE = os.sysconf("SC_PAGE_SIZE")


class Disk(Protocol):
    """A folder, and how to leave it so many bytes."""

    folder: Path

    def room(self, size: int) -> contextlib.AbstractContextManager[None]: ...

    def rooms(self, sizes: Sequence[int]) -> list[int]:
        """For each of several files, written in this order, what is too little for it; no more than needed before it."""
        ...


class SmallFileSystem:
    """A tmpfs, filled up by a file of its own."""

    def __init__(self, root: Path) -> None:
        self.root, self.folder = root, root / "work"
        self.folder.mkdir()

    @contextlib.contextmanager
    def room(self, size: int) -> Iterator[None]:
        filler, state = self.root / "filler", os.statvfs(self.root)
        with filler.open("wb") as stream:
            os.posix_fallocate(stream.fileno(), 0, state.f_bavail * state.f_bsize - size // PAGE * PAGE)
        try:
            yield
        finally:
            filler.unlink()

    def rooms(self, sizes: Sequence[int]) -> list[int]:
        whole = [-(-size // PAGE) * PAGE for size in sizes]
        return [sum(whole[:number]) + size // 2 for number, size in enumerate(sizes)]


class FileSizeLimit:
    """Any folder; no file may grow beyond the limit."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder

    @contextlib.contextmanager
    def room(self, size: int) -> Iterator[None]:
        before = resource.getrlimit(resource.RLIMIT_FSIZE)
        resource.setrlimit(resource.RLIMIT_FSIZE, (size, before[1]))
        try:
            yield
        finally:
            resource.setrlimit(resource.RLIMIT_FSIZE, before)

    def rooms(self, sizes: Sequence[int]) -> list[int]:
        return [size // 2 for size in sizes]


@pytest.fixture(params=["tmpfs", "file-size-limit"])
def disk(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[Disk]:
    folder = tmp_path / "disk"
    folder.mkdir()
    if request.param == "file-size-limit":
        yield FileSizeLimit(folder)
        return
    mount = shutil.which("mount")
    if mount is None:
        pytest.skip("no mount command here")
    done = subprocess.run(
        [mount, "-t", "tmpfs", "-o", f"size={SIZE}m", "tmpfs", folder], capture_output=True, text=True
    )
    if done.returncode != 0:
        pytest.skip(f"a small file system cannot be mounted here: {done.stderr.strip()}")
    try:
        yield SmallFileSystem(folder)
    finally:
        subprocess.run(["umount", "--lazy", folder], check=True)


def content(folder: Path) -> dict[str, bytes]:
    return {str(path.relative_to(folder)): path.read_bytes() for path in folder.rglob("*") if path.is_file()}


def sizes(root: Path, manifest: Manifest) -> list[int]:
    """Of the files of a bundle, in the order in which they are written."""
    names = [*(name for artefact in manifest.artefacts for name in artefact.files), manifest.reference, "bundle.json"]
    return [(root / str(name)).stat().st_size for name in names]


def fails_cleanly(disk: Disk, room: int, target: Path, write: Callable[[], object]) -> None:
    before, folders = content(disk.folder), sorted(disk.folder.rglob("*"))
    with disk.room(room), pytest.raises(ResourceExhaustedError, match=f"^no room for {target}") as caught:
        write()
    assert caught.value.reason == "DISK_FULL"
    assert sorted(disk.folder.rglob("*")) == folders
    assert content(disk.folder) == before


def test_export(disk: Disk, network: Network, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setattr(stage, "to_onnx", lambda _encoder: network.graph)
    monkeypatch.setattr(base, "DEFAULT_BATCH_FRAMES", 1)  # a short proof: it is the writing that counts
    options = Options(("fp32", "w8"), force=True)
    written = stage.export_encoder(network.encoder, tmp_path / "written", options)
    target = make_bundle(disk.folder / "bundle")
    for room in disk.rooms(sizes(tmp_path / "written", written)):
        fails_cleanly(disk, room, target, lambda: stage.export_encoder(network.encoder, target, options))
    assert open_bundle(target).manifest.name == "tiny"
    assert stage.export_encoder(network.encoder, target, options).fingerprint == written.fingerprint
    assert open_bundle(target).fingerprint == written.fingerprint


@pytest.mark.parametrize("suffix", [".onnx", ".xml"])
def test_wrap(disk: Disk, monkeypatch: pytest.MonkeyPatch, tmp_path: Path, suffix: str) -> None:
    model = foreign_onnx(tmp_path / "foreign.onnx").with_suffix(suffix)
    if suffix == ".xml":
        save_ir(read_model(model.with_suffix(".onnx")), model)
    monkeypatch.setattr(base, "DEFAULT_BATCH_FRAMES", 1)
    spec, target = WrapSpec(name="f"), disk.folder / "bundle"
    written = wrap(model, tmp_path / "written", spec)
    for room in disk.rooms(sizes(tmp_path / "written", written)):
        fails_cleanly(disk, room, target, lambda: wrap(model, target, spec))
    wrap(model, target, spec)
    assert open_bundle(target).fingerprint == written.fingerprint


def test_an_openvino_ir(disk: Disk, network: Network, tmp_path: Path) -> None:
    """OpenVINO says "iostream error" for a full disk."""
    onnx.save(network.graph, tmp_path / "encoder.onnx")
    model = read_model(tmp_path / "encoder.onnx")
    with disk.room(1 << 20), pytest.raises(OSError, match=r"No space|too large") as caught:
        save_ir(model, disk.folder / "encoder.xml")
    assert caught.value.errno in (errno.ENOSPC, errno.EFBIG)


def test_calibrate(disk: Disk) -> None:
    root = make_bundle(disk.folder / "bundle")
    block = Calibration(
        metric="squared_euclidean",
        data=("street",),
        protocol="pairs",
        clip_scheme="dense",
        genuine_pairs=10,
        impostor_pairs=1000,
        points=(CalibrationPoint(fmr=0.1, threshold=0.4, fnmr=0.3, errors=9),),
    )
    fails_cleanly(disk, 1024, root / "bundle.json", lambda: write_calibration(root, block))
    assert write_calibration(root, block).calibration == open_bundle(root).manifest.calibration


def test_tune(disk: Disk) -> None:
    root, cache = make_bundle(disk.folder / "bundle"), disk.folder / "cache"
    (cache / "tuning").mkdir(parents=True)

    def tune() -> None:
        tune_command(root, backend="onnxruntime", threads=1, seconds=0, cache=cache)

    fails_cleanly(disk, 1024, cache, tune)
    tune()
    assert len(list((cache / "tuning").iterdir())) == 1


def test_a_proof(disk: Disk, monkeypatch: pytest.MonkeyPatch) -> None:
    """With the encoder on the CPU: it is the writing that counts."""
    root, cache = make_bundle(disk.folder / "bundle"), disk.folder / "cache"
    (cache / "proofs").mkdir(parents=True)
    on_cpu = open_backend(open_bundle(root), "onnxruntime")
    monkeypatch.setattr(on_cpu, "name", "onnxruntime-cuda")
    monkeypatch.setattr(opening_gpu, "find_gpus", lambda: (Gpu(name="GPU", compute_capability="9.0", driver="1"),))
    monkeypatch.setattr(opening_gpu, "_onnxruntime", lambda *args, **kwargs: on_cpu)
    fails_cleanly(disk, 1024, cache, lambda: verify_on_gpu(root, "onnxruntime-cuda", "auto", cache))
    assert verify_on_gpu(root, "onnxruntime-cuda", "auto", cache)[1].is_file()
