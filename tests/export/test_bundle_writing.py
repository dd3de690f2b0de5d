"""Bundles appear whole under their final name, or not at all."""

from __future__ import annotations

from pathlib import Path

import pytest
from passerby.errors import AlreadyExistsError, FailedPreconditionError, PasserbyError
from passerby_export.bundle import new_bundle, seal
from passerby_model.bundle import Artefact, Input, Parity, ParityRow, open_bundle

ROW = ParityRow(
    runtime="openvino", snippets=1, relative_l2=0, cosine=1, max_relative_l2=1e-4, min_cosine=0.999, passed=True
)


def write(target: Path, content: bytes, *, force: bool = False, passed: bool = True) -> None:
    row = ROW.model_copy(update={"passed": passed, "cosine": 1 if passed else 0.5})
    with new_bundle(target, force=force) as folder:
        (folder / "encoder.onnx").write_bytes(content)
        artefact = Artefact(
            precision="fp32",
            format="onnx",
            files=("encoder.onnx",),
            runtimes=("openvino",),
            parity=Parity(reference="r", rows=(row,), passed=passed),
        )
        seal(
            folder,
            [artefact],
            name="n",
            architecture="a",
            input=Input(snippet_length=1, height=32, width=16),
            descriptor_dim=4,
            metric="cosine",
        )


def names(folder: Path) -> list[str]:
    return sorted(path.name for path in folder.iterdir())


def test_written_bundle_opens_and_leaves_nothing_else(tmp_path: Path) -> None:
    write(tmp_path / "new/deep/bundle", b"one")
    assert open_bundle(tmp_path / "new/deep/bundle").encoder_path.read_bytes() == b"one"
    assert names(tmp_path / "new/deep") == ["bundle"]
    assert (tmp_path / "new/deep/bundle").stat().st_mode & 0o777 == 0o755


def test_force_replaces_a_bundle(tmp_path: Path) -> None:
    write(tmp_path / "bundle", b"one")
    with pytest.raises(AlreadyExistsError, match="--force"):
        write(tmp_path / "bundle", b"two")
    write(tmp_path / "bundle", b"two", force=True)
    assert open_bundle(tmp_path / "bundle").encoder_path.read_bytes() == b"two"
    assert names(tmp_path) == ["bundle"]


@pytest.mark.parametrize("kind", ["file", "folder", "link"])
def test_force_never_replaces_what_is_no_bundle(tmp_path: Path, kind: str) -> None:
    target = tmp_path / "precious"
    if kind == "file":
        target.write_text("mine")
    elif kind == "folder":
        target.mkdir()
        (target / "thesis.txt").write_text("mine")
    else:
        write(tmp_path / "bundle", b"one")
        target.symlink_to(tmp_path / "bundle")
    before = names(tmp_path)
    with pytest.raises(AlreadyExistsError, match="is no bundle"):
        write(target, b"two", force=True)
    assert names(tmp_path) == before


def test_failed_parity_gets_no_bundle(tmp_path: Path) -> None:
    write(tmp_path / "bundle", b"one")
    with pytest.raises(FailedPreconditionError, match=r"batch 1 of frames: .*cosine 0\.5000000") as caught:
        write(tmp_path / "bundle", b"two", force=True, passed=False)
    assert caught.value.reason == "PARITY_FAILED"
    assert open_bundle(tmp_path / "bundle").encoder_path.read_bytes() == b"one"
    assert names(tmp_path) == ["bundle"]


@pytest.mark.parametrize("error", [OSError, KeyboardInterrupt])
def test_a_failing_replacement_leaves_the_old_bundle(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, error: type[BaseException]
) -> None:
    write(tmp_path / "bundle", b"one")
    rename = Path.rename

    def failing(self: Path, target: Path) -> Path:
        if self.suffix == ".partial":
            raise error(5, "it broke")
        return rename(self, target)

    with monkeypatch.context() as patch:
        patch.setattr(Path, "rename", failing)
        with pytest.raises((FailedPreconditionError, KeyboardInterrupt)):
            write(tmp_path / "bundle", b"two", force=True)
    assert open_bundle(tmp_path / "bundle").encoder_path.read_bytes() == b"one"
    assert names(tmp_path) == ["bundle"]


@pytest.mark.parametrize("error", [KeyboardInterrupt, RuntimeError])
def test_an_interrupt_leaves_nothing(tmp_path: Path, error: type[BaseException]) -> None:
    def interrupted() -> None:
        with new_bundle(tmp_path / "bundle") as folder:
            (folder / "encoder.onnx").write_bytes(b"half")
            raise error

    with pytest.raises(error):
        interrupted()
    assert names(tmp_path) == []


def test_a_parent_that_is_a_file_is_a_clear_error(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(PasserbyError, match="cannot be written"):
        write(tmp_path / "file/bundle", b"one")
